"""Traces by OpenTelemetry, where an OTLP endpoint is configured; otherwise nothing is imported."""

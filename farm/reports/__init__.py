"""Stages' reports, treated as untrusted: the process that sent them had read an untrusted model."""

"""Measures engines: how close an engine is to its source, whether that is enough, and how fast it runs."""

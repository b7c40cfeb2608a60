"""Readers of untrusted files that need no framework."""

"""Untrusted PyTorch programs: checked before they run."""

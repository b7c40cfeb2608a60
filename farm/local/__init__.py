"""The farm on this machine."""

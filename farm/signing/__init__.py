"""Signatures: DSSE envelopes and their ECDSA keys; Ed25519 for plugin libraries."""

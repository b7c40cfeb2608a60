"""Limits of an inference: a quick check of an engine, not a way to serve it."""

from __future__ import annotations

#: Of all inputs, and of all outputs, in memory.
MAX_BYTES = 256 << 20
TIMEOUT_S = 300.0
EXAMPLE = "farm infer digits@prod --input images.npz -o scores.npz"

"""What signals are called."""

from __future__ import annotations

import signal


def name_of(number: int) -> str:
    """A signal's name, such as ``SIGSEGV``; of one without a name, as most real-time ones, its number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

"""The callback for a transfer's progress."""

from __future__ import annotations

from typing import Protocol


class TransferProgress(Protocol):
    """Called while a file is read, sent or received."""

    def __call__(self, what: str, done_bytes: int, total_bytes: int) -> None:
        """``what`` names the transfer: ``upload digits.pt2``."""


def silent(what: str, done_bytes: int, total_bytes: int) -> None:
    """Tell nobody."""

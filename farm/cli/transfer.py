"""A progress bar for uploads and downloads."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from farm.client import TransferProgress


@contextmanager
def bar(*, hidden: bool) -> Iterator[TransferProgress | None]:
    """Something that shows progress on stderr while the block runs; None off a terminal."""
    if hidden or not sys.stderr.isatty():
        yield None
        return
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        rich_progress.DownloadColumn(),
        rich_progress.TransferSpeedColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        tasks: dict[str, rich_progress.TaskID] = {}

        def report(what: str, done_bytes: int, total_bytes: int) -> None:
            if what not in tasks:
                tasks[what] = shown.add_task(what, total=total_bytes)
            shown.update(tasks[what], completed=done_bytes, total=total_bytes)

        yield report

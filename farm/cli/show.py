"""Output formatting: tables, sizes, times, JSON.

On a terminal tables fit its width, except for ids, which are never truncated: columns that would become
too narrow to read are told below each row. Elsewhere lines are not wrapped. Commands with ``--wide`` leave
out, without it, the last of the columns that don't fit: into 80 where there is no terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from farm.reports.shown import NONE as NONE
from farm.reports.shown import SOURCES as SOURCES
from farm.reports.shown import ago as ago
from farm.reports.shown import agreement as agreement
from farm.reports.shown import agrees as agrees
from farm.reports.shown import compute_types as compute_types
from farm.reports.shown import cosine as cosine
from farm.reports.shown import drop_interval as drop_interval
from farm.reports.shown import duration as duration
from farm.reports.shown import elapsed as elapsed
from farm.reports.shown import judged_on as judged_on
from farm.reports.shown import milliseconds as milliseconds
from farm.reports.shown import share as share
from farm.reports.shown import size as size
from farm.reports.shown import task as task
from farm.reports.shown import worth as worth

if TYPE_CHECKING:
    from farm.schemas.builds import LeftOut

_UNBOUNDED = 10_000
PIPED = 80
_LEGIBLE, _LONGEST_WORD, _GAP = 20, 40, 2
_STYLES = {
    "succeeded": "green",
    "buildable": "green",
    "online": "green",
    "failed": "red",
    "unsupported": "red",
    "running": "cyan",
    "queued": "yellow",
    "waits-for-worker": "yellow",
    "waiting": "dim",
    "offline": "dim",
    "cancelled": "magenta",
}


def on_terminal() -> bool:
    """Whether a person reads what is printed."""
    return sys.stdout.isatty()


def console(width: int | None = None) -> Console:
    """A console on stdout that prints texts verbatim.

    Parameters:
        width: in columns; by default the terminal's, and elsewhere unbounded.
    """
    return Console(
        file=sys.stdout,
        width=width or (None if on_terminal() else _UNBOUNDED),
        markup=False,
        emoji=False,
        highlight=False,
        soft_wrap=False,
    )


def line(text: str | Text = "") -> None:
    console().print(text, soft_wrap=True)


def note(text: str) -> None:
    """Print something to know beside the result, on stderr."""
    print(text, file=sys.stderr)


def document(value: Any) -> None:
    """Print a value as one line of JSON."""
    print(json.dumps(_plain(value), ensure_ascii=False), flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def grid(
    headers: Sequence[str], rows: Iterable[Sequence[str | Text]], *, keep: Sequence[str] = ()
) -> Table:
    """A table whose columns in ``keep`` are neither wrapped nor truncated."""
    cells = [list(row) for row in rows]
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for index, header in enumerate(headers):
        whole = header in keep
        table.add_column(
            header,
            no_wrap=whole,
            overflow="fold",
            # Kept even if the table is wider than the terminal.
            min_width=_least(headers, cells, index, whole=True) if whole else None,
        )
    for row in cells:
        table.add_row(*row)
    return table


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    keep: Sequence[str] = (),
    empty: str = "",
    wide: bool | None = None,
    prose: str | None = None,
) -> None:
    """Print a table, or ``empty`` if there are no rows.

    Parameters:
        keep: columns that are neither wrapped nor truncated; on a terminal too narrow for all of them, only
            the first and what fits beside it.
        wide: if False, leave out the columns that don't fit, the first of them last; never one in ``keep``.
        prose: a column that ends the lines where there is no terminal, however long it makes them.
    """
    cells = [list(row) for row in rows]
    if not cells:
        line(empty)
        return
    keep = _fitting_whole(headers, cells, keep)
    if wide is False:
        headers, cells = _fitting(headers, cells, keep, prose)
    least = [_least(headers, cells, n, whole=one in keep) for n, one in enumerate(headers)]
    room = console().width - sum(least) - _GAP * (len(least) - 1)
    if room < 0:
        _print_stacked(headers, cells, keep or headers[:1])
        return
    made = grid(headers, cells, keep=keep)
    lacking = [_least(headers, cells, n, whole=True) - one for n, one in enumerate(least)]
    for left, index in enumerate(sorted(range(len(least)), key=lacking.__getitem__)):
        more = min(lacking[index], room // (len(least) - left))
        made.columns[index].width = least[index] + more
        room -= more
    console().print(made)


def _fitting_whole(
    headers: Sequence[str], rows: list[list[str | Text]], keep: Sequence[str]
) -> Sequence[str]:
    """The columns of ``keep`` that fit a terminal beside each other: the first, and the narrowest others."""
    if not on_terminal():
        return keep
    widths = {
        header: _least(headers, rows, n, whole=True)
        for n, header in enumerate(headers)
        if header in keep
    }
    while len(widths) > 1 and sum(widths.values()) + _GAP * (len(widths) - 1) > console().width:
        del widths[max(list(widths)[1:], key=widths.__getitem__)]
    return tuple(widths)


def _fitting(
    headers: Sequence[str], rows: list[list[str | Text]], keep: Sequence[str], at_end: str | None
) -> tuple[Sequence[str], list[list[str | Text]]]:
    """The columns in ``keep``, and of the others those for which there is room, in their order.

    Prose is wrapped on a terminal; elsewhere one column of it may end the lines, which it makes longer.
    """
    room = (console().width if on_terminal() else PIPED) + _GAP
    taken = [n for n, one in enumerate(headers) if one in keep]
    room -= sum(_least(headers, rows, n, whole=True) + _GAP for n in taken)
    prose = [n for n, one in enumerate(headers) if one == at_end and not on_terminal()]
    left_out = []
    for index, header in enumerate(headers):
        if index in (*taken, *prose) or all(str(row[index]) in ("", NONE) for row in rows):
            continue
        whole = _least(headers, rows, index, whole=True)
        least = _least(headers, rows, index, whole=False)
        ends_lines = not (on_terminal() or prose) and whole > max(_LONGEST_WORD, least)
        needs = max(least, min(whole, _LEGIBLE)) if on_terminal() else whole
        needs = (least if ends_lines else needs) + _GAP
        if needs > room:
            left_out.append(header)
            continue
        (prose if ends_lines else taken).append(index)
        room -= needs
    if left_out and on_terminal():
        note(f"more with --wide: {', '.join(left_out)}")
    shown = [*sorted(taken), *prose]
    return [headers[n] for n in shown], [[row[n] for n in shown] for row in rows]


def _least(
    headers: Sequence[str], rows: Sequence[Sequence[str | Text]], index: int, *, whole: bool
) -> int:
    """The columns that a column needs: all of it, or what its longest word takes, within reason."""
    cells = [headers[index], *(str(row[index]) for row in rows)]
    if whole:
        return max(map(cell_len, cells))
    return min(_LONGEST_WORD, max(cell_len(word) for cell in cells for word in [*cell.split(), ""]))


def _print_stacked(
    headers: Sequence[str], rows: Sequence[Sequence[str | Text]], keep: Sequence[str]
) -> None:
    """Print the columns in ``keep`` as a table, and below each of its rows what the others hold."""
    kept = [index for index, header in enumerate(headers) if header in keep]
    beside = [index for index in range(len(headers)) if index not in kept]
    widths = {index: _least(headers, rows, index, whole=True) for index in kept}

    def told(row: Sequence[str | Text], style: str = "") -> None:
        cells = [Text.assemble(row[n], " " * (widths[n] - cell_len(str(row[n])))) for n in kept]
        text = Text(" " * _GAP, style=style).join(cells)
        text.rstrip()
        line(text)

    told(headers, "bold")
    for row in rows:
        told(row)
        held = [
            Text.assemble(f"{headers[n]}: ", row[n])
            for n in beside
            if str(row[n]) not in ("", NONE)
        ]
        if held:
            console().print(Padding(Text("; ").join(held), (0, 0, 0, _GAP)))


def state(name: str) -> Text:
    return Text(name, style=_STYLES.get(name, ""))


def precision(name: str, prune: str | None) -> str:
    """``fp16``, ``fp16, pruned 2:4``."""
    return f"{name}, pruned {prune}" if prune else str(name)


def one_line(cell: str | Text) -> Text:
    """A cell that is cut where a column is too narrow for it, instead of wrapped."""
    text = Text(cell) if isinstance(cell, str) else cell.copy()
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def minute(at: datetime) -> str:
    """A time of this machine's, to the minute."""
    return f"{at.astimezone():%Y-%m-%d %H:%M}"


def short(digest: str) -> str:
    """A digest, shortened for display."""
    return digest.removeprefix("sha256:")[:12]


def labels(of: Mapping[str, str]) -> str:
    """``team=vision, stage=canary``"""
    return ", ".join(f"{key}={value}" if value else key for key, value in of.items())


def left_out(entries: Iterable[LeftOut]) -> None:
    """What a build leaves out, and why."""
    from farm.specs.precision import Precision

    for one in entries:
        is_every = len(one.precisions) == len(Precision)
        precisions = "every precision" if is_every else ", ".join(one.precisions)
        line(f"left out: {one.target} in {precisions}: {one.why}")


def fixed(inputs: Mapping[str, Any]) -> str:
    """``sr=16000, size=[640, 480]``"""
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in inputs.items())

"""``farm compare``: two versions of a model beside each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli import complete, show
from farm.cli.options import Json, Url, connect, example
from farm.errors import InvalidRequest

if TYPE_CHECKING:
    from farm.schemas.aliases import Beside
    from farm.schemas.compare import ComparedGpu
    from farm.schemas.engines import EngineView


def register(app: typer.Typer) -> None:
    text = "farm compare digits@prod digits@7"
    app.command(rich_help_panel="Engines", epilog=example(text))(compare)


def compare(
    first: Annotated[
        str,
        typer.Argument(
            metavar="MODEL@VERSION",
            help="digits@prod, digits@7",
            autocompletion=complete.references,
        ),
    ],
    second: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL@]VERSION",
            help="Another version of the same model: digits@8, or 8 alone.",
            autocompletion=complete.references,
        ),
    ],
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Show what a pull gets of two versions, for each GPU that either serves.

    Ratios and differences are of the second beside the first. Latencies and metrics stand beside each other
    only where they can be compared; the reason is given where they can't.
    """
    model, at, a = first.partition("@")
    other, has_model, b = second.rpartition("@")
    if not at or (has_model and other != model):
        raise InvalidRequest(
            "two versions of one model are compared", hint="farm compare digits@prod digits@7"
        )
    found = connect(url).compare(model, a, b)
    if as_json:
        show.document(found)
        return
    headers = ("gpu", f"v{found.a}", f"v{found.b}", "size", "latency", "metric")
    show.table(headers, [_row(one) for one in found.gpus], keep=headers[:1], empty="no engines")


def _row(one: ComparedGpu) -> tuple[str, ...]:
    return (
        one.gpu,
        _engine(one.a),
        _engine(one.b),
        show.NONE if one.size_ratio is None else f"{one.size_ratio:.2f} ×",
        latency(one),
        metric(one),
    )


def _engine(engine: EngineView | None) -> str:
    return show.NONE if engine is None else f"{engine.precision} by {engine.runtime} ({engine.id})"


def latency(one: ComparedGpu | Beside) -> str:
    """The ratio of the latencies, or why there is none."""
    ratio = one.latency_ratio
    return _unknown(one.latency_reason) if ratio is None else f"{ratio:.2f} ×"


def metric(one: ComparedGpu | Beside) -> str:
    """The difference of the task's metric, or why there is none."""
    return _unknown(one.task_reason) if one.task_drop is None else f"{-one.task_drop:+.4f}"


def _unknown(reason: str | None) -> str:
    return f"unknown: {reason}" if reason else show.NONE

"""Registry commands: models and engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli import complete, show
from farm.cli.options import (
    Gpu,
    Json,
    LabelFilters,
    ModelName,
    Precision,
    Pruned,
    Runtime,
    Url,
    Version,
    Wide,
    again,
    connect,
    example,
)

if TYPE_CHECKING:
    from farm.reports.metrics import Metrics
    from farm.schemas.engines import EngineView, Judgement
    from farm.schemas.models import VersionView

_PANEL = "Engines"


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=_PANEL, epilog=example("farm engines digits --gpu rtx-4090"))(
        engines
    )
    app.command(rich_help_panel=_PANEL, epilog=example("farm models digits"))(models)


def engines(
    model: ModelName,
    gpu: Gpu = None,
    precision: Precision = None,
    runtime: Runtime = None,
    version: Version = None,
    prune: Pruned = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Maximum number of engines.")] = 200,
    wide: Wide = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """List a model's engines with their accuracy and speed, newest first.

    Accuracy is relative to the source model: top-1 agreement, the mean cosine similarity of
    the outputs, and the task's own metric if labels were given.
    """
    found = connect(url).engines(
        model,
        gpu=gpu,
        precision=precision,
        runtime=runtime,
        version=version,
        prune=prune,
        limit=limit,
    )
    if as_json:
        show.document(found)
        return
    is_all = not any((gpu, precision, runtime, version, prune, "@" in model))
    of = model.partition("@")[0]
    empty = (
        f"no engines of {of} yet; how far its builds are: {again(f'farm builds --model {of}', url)}"
        if is_all
        else f"no matching engines; list all: {again(f'farm engines {of}', url)}"
    )
    engines_table(found, empty=empty, wide=wide)


_HEADERS = (
    "id",
    "version",
    "target",
    "precision",
    "p50",
    "agreement",
    "speed-up",
    "size",
    "task",
    "computes in",
    "against",
    "cosine",
    "judged on",
    "measured on",
    "drop (95 %)",
)


def engines_table(
    engines: Sequence[EngineView], *, empty: str = "", wide: bool | None = None
) -> None:
    """Print engines with their accuracy and speed."""
    rows = [row for engine in engines for row in (_row(engine), *map(_judged, engine.judgements))]
    if wide is False:
        share = _HEADERS.index("agreement")
        # Its interval is for those who look closer.
        rows = [(*row[:share], row[share].partition(" (")[0], *row[share + 1 :]) for row in rows]
    keep = ("id", "version", "target", "precision")
    show.table(_HEADERS, rows, keep=keep, empty=empty, wide=wide)
    for engine in engines:
        if engine.yanked:
            show.line(f"yanked: {engine.id} ({engine.precision}@{engine.gpu}): {engine.yanked}")
        for warning in engine.accuracy.data_warnings if wide is not False else ():
            show.line(f"data of {engine.id} ({engine.precision}@{engine.gpu}): {warning}")
        if engine.doubts:
            show.line(
                f"doubtful: {engine.id} ({engine.precision}@{engine.gpu}): {'; '.join(engine.doubts)}"
            )


def _row(engine: EngineView) -> tuple[str, ...]:
    accuracy = engine.accuracy
    p50, speed_up = _speed(engine.metrics)
    return (
        engine.id,
        f"v{engine.version}",
        f"{engine.runtime}:{engine.gpu}",
        show.precision(engine.precision, engine.prune),
        p50,
        show.agreement(accuracy),
        speed_up,
        show.size(engine.bytes),
        show.task(accuracy.task),
        show.compute_types(engine.compute),
        against(engine),
        show.cosine(accuracy),
        show.judged_on(accuracy),
        accuracy.measured_on or show.NONE,
        show.drop_interval(accuracy.task) or show.NONE,
    )


def _judged(one: Judgement) -> tuple[str, ...]:
    """Another evaluation of the engine above, in the accuracy columns."""
    row = dict.fromkeys(_HEADERS, "") | {
        "id": f"└ {one.engine}",
        "precision": str(one.state),
        "agreement": show.agreement(one.accuracy),
        "cosine": show.cosine(one.accuracy),
        "drop (95 %)": show.drop_interval(one.accuracy.task) or show.NONE,
        "task": show.task(one.accuracy.task),
        "judged on": show.judged_on(one.accuracy),
        "measured on": one.accuracy.measured_on or show.NONE,
    }
    return tuple(row.values())


def against(engine: EngineView) -> str:
    """``fp16: 0.52× size, 0.61× p50, task −0.2 %``."""
    found = engine.against
    if found is None:
        return show.NONE
    said = [f"{found.size_ratio:.2f}× size"]
    if found.latency_ratio is not None:
        said.append(f"{found.latency_ratio:.2f}× p50")
    if found.task_drop is not None:
        said.append(f"task {round(-100 * found.task_drop, 1) + 0.0:+.1f} %")  # no -0.0
    twin = f"unpruned {found.precision}" if engine.prune else found.precision
    return f"{twin}: {', '.join(said)}"


def _speed(metrics: Metrics | None) -> tuple[str, str]:
    if metrics is None:
        return show.NONE, show.NONE
    p50_ms = metrics.at_its_best.p50_ms
    # On a CPU there is the one over eager alone.
    speed_up = metrics.speed_up if metrics.gpu is None else metrics.speed_up_over_best
    return (
        show.NONE if p50_ms is None else show.milliseconds(p50_ms),
        show.NONE if speed_up is None else f"{speed_up:.2f}×",
    )


def models(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="List this model's versions.",
            autocompletion=complete.models,
            show_default=False,
        ),
    ] = None,
    label: LabelFilters = None,
    wide: Wide = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """List the models, or one model's versions."""
    if model is not None:
        _versions(model, url, as_json=as_json, wide=wide)
        return
    found = connect(url).models(labels=label or ())
    if as_json:
        show.document(found)
        return
    rows = [
        (
            one.name,
            f"v{max(one.versions)}" if one.versions else show.NONE,
            str(one.engines),
            show.ago(one.created_at),
            show.labels(one.labels) or show.NONE,
        )
        for one in found
    ]
    empty = (
        f"no matching models; list all: {again('farm models', url)}"
        if label
        else f"no models; submit one: {again('farm submit MODEL_FILE --gpu sm_89', url)}"
    )
    show.table(
        ("model", "newest", "engines", "created", "labels"),
        rows,
        keep=("model",),
        empty=empty,
        wide=wide,
    )


def _versions(model: str, url: str | None, *, as_json: bool, wide: bool) -> None:
    detail = connect(url).model(model)
    if as_json:
        show.document(detail)
        return
    rows = [
        (
            f"v{one.version}",
            ", ".join(a.alias for a in detail.aliases if a.version == one.version) or show.NONE,
            str(one.engines),
            str(one.source_format),
            one.source_digest if wide else show.short(one.source_digest),
            show.ago(one.created_at),
            show.labels(one.labels) or show.NONE,
            _told(one),
        )
        for one in detail.versions
    ]
    columns = (
        "version",
        "aliases",
        "engines",
        "format",
        "source",
        "submitted",
        "labels",
        "interpreted as",
    )
    show.table(columns, rows, keep=("version", "aliases", "source"), wide=wide)
    for one in detail.versions:
        if one.yanked:
            show.line(f"yanked: v{one.version}: {one.yanked}")


def _told(version: VersionView) -> str:
    """What identifies a source besides its bytes."""
    module = version.architecture
    parts = [f"{module.library}:{module.name}"] if module else []
    if version.fixed_inputs:
        parts.append(show.fixed(version.fixed_inputs))
    return ", ".join(parts) or show.NONE

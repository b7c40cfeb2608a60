"""Fleet commands: workers, targets and timing caches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from farm.cli import complete, show
from farm.cli.options import Json, Url, Wide, connect, example

if TYPE_CHECKING:
    from farm.schemas.fleet import TargetView, WorkerView

_PANEL = "Fleet"


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=_PANEL, epilog=example("farm workers"))(workers)
    app.command(rich_help_panel=_PANEL, epilog=example("farm targets --gpu rtx-4090"))(targets)
    app.command(rich_help_panel=_PANEL, epilog=example("farm timing-caches"))(timing_caches)


def workers(wide: Wide = False, as_json: Json = False, url: Url = None) -> None:
    """List the workers: whether each is online, its GPU and runtimes, and its current job."""
    found = connect(url).workers()
    if as_json:
        show.document(found)
        return
    headers = ("worker", "state", "tags", "job", "seen", "gpu", "runtimes")
    empty = "no workers; start some: farm worker"
    show.table(
        headers, map(_worker, found), keep=("worker", "state", "tags"), empty=empty, wide=wide
    )


def _worker(worker: WorkerView) -> tuple[str | Text, ...]:
    jobs = "\n".join(f"{one.id} {one.title}" for one in worker.running) or show.NONE
    return (
        worker.name,
        _state(worker),
        ",".join(worker.tags) or show.NONE,
        jobs,
        show.ago(worker.last_seen_at),
        worker.gpu or "CPU",
        ", ".join(f"{name} {version}" for name, version in worker.runtimes.items()) or show.NONE,
    )


def _state(worker: WorkerView) -> str | Text:
    if worker.online and worker.unread:
        return Text(f"not reading {', '.join(worker.unread)}: restart it", style="red")
    return show.state("online" if worker.online else "offline")


def targets(
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            metavar="TAG",
            help="Only this GPU: sm_89, rtx-4090, cpu.",
            autocompletion=complete.gpus,
        ),
    ] = None,
    wide: Wide = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """List every runtime × GPU: buildable now, once a matching worker joins, or unsupported, and why."""
    found = [one for one in connect(url).targets() if gpu is None or _is_for(one, gpu)]
    if as_json:
        show.document(found)
        return
    headers = ("target", "status", "why", "precisions", "products")
    rows = [
        (
            one.target,
            show.state(one.status),
            one.why,
            ", ".join(one.precisions) or show.NONE,
            ", ".join(one.products) or show.NONE,
        )
        for one in found
    ]
    show.table(
        headers,
        rows,
        keep=("target", "status"),
        empty=f"no targets for {gpu}",
        wide=wide,
        prose="why",
    )


def _is_for(target: TargetView, gpu: str) -> bool:
    from farm.specs.gpus import compute_capability

    return target.compute_capability == compute_capability(gpu)


def timing_caches(wide: Wide = False, as_json: Json = False, url: Url = None) -> None:
    """List TensorRT's timing caches, one per GPU and toolchain, which the next build starts from.

    A hit is a build that found every entry it looked up and timed nothing.
    """
    found = connect(url).timing_caches()
    if as_json:
        show.document(found)
        return
    rows = [
        (
            one.gpu,
            str(one.builds),
            show.share(one.hit_rate),
            show.size(one.bytes),
            show.ago(one.updated_at),
            show.NONE if one.entries is None else str(one.entries),
            f"tensorrt {one.tensorrt}, cuda {one.cuda}, {one.compute_capability}",
        )
        for one in found
    ]
    headers = ("gpu", "builds", "hits", "size", "used", "entries", "toolchain")
    empty = "no timing caches yet: the first tensorrt build on a GPU creates one"
    show.table(headers, rows, keep=("gpu",), empty=empty, wide=wide)

"""Shell completion. Queries the farm with a short timeout; an unreachable farm offers nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

import typer

from farm.errors import FarmError

if TYPE_CHECKING:
    from farm.client import Farm

T = TypeVar("T")

_PATIENCE_S = 1.0
_OFFERED = 50
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "int8-dynamic")
PRUNED = ("2:4", "l1:0.5")
GOALS = ("latency", "throughput")
RUNTIMES = ("tensorrt", "tensorrt-rtx", "aotinductor", "onnxruntime", "torchscript")


def build_ids(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The newest builds, with their model and state."""
    return [
        (build.id, f"{build.model} v{build.version} {build.state}")
        for build in _ask(ctx, lambda farm: farm.builds(limit=_OFFERED))
        if build.id.startswith(incomplete)
    ]


def models(ctx: typer.Context, incomplete: str) -> list[str]:
    """The models' names, in the case that was typed: shells offer only what continues that."""
    from farm.specs.names import folded

    names = [model.name for model in _ask(ctx, lambda farm: farm.models(limit=_OFFERED))]
    return [
        incomplete + name[len(incomplete) :]
        for name in names
        if folded(name).startswith(folded(incomplete))
    ]


def aliases(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The aliases of the model that the command names."""
    model = ctx.params.get("model") or ""
    return [
        (one.alias, f"v{one.version}")
        for one in _ask(ctx, lambda farm: farm.aliases(model))
        if one.alias.startswith(incomplete)
    ]


def references(ctx: typer.Context, incomplete: str) -> list[str]:
    """The models' names, and after an ``@`` the versions and aliases of one."""
    name, at, _ = incomplete.partition("@")
    if not at:
        return models(ctx, incomplete)
    found = [
        str(of)
        for one in _ask(ctx, lambda farm: [farm.model(name)])
        for of in (*(a.alias for a in one.aliases), *reversed([v.version for v in one.versions]))
    ]
    return [f"{name}@{of}" for of in found if f"{name}@{of}".startswith(incomplete)][:_OFFERED]


def token_ids(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The join tokens that aren't revoked."""
    return [
        (one.id, f"{one.used} of {one.uses} used")
        for one in _ask(ctx, lambda farm: farm.tokens(limit=_OFFERED))
        if one.revoked_at is None and one.id.startswith(incomplete)
    ]


def triton_releases(incomplete: str) -> list[str]:
    """The releases of Triton that the farm knows, newest first."""
    from farm.specs import triton

    return [name for name in reversed(list(triton.releases())) if name.startswith(incomplete)]


def models_and_files(ctx: typer.Context, incomplete: str) -> list[str]:
    """The models' names, and the files and folders that begin so."""
    from pathlib import Path

    before, slash, _ = incomplete.rpartition("/")
    try:
        there = [f"{before}{slash}{path.name}" for path in Path(before + slash or ".").iterdir()]
    except OSError:
        there = []
    files = sorted(name for name in there if name.startswith(incomplete))
    return [*models(ctx, incomplete), *files[:_OFFERED]]


def goals(incomplete: str) -> list[str]:
    return [name for name in GOALS if name.startswith(incomplete)]


def gpus(incomplete: str) -> list[tuple[str, str]]:
    """GPU tags, with the compute capability of each product."""
    from farm.specs.gpus import COMPUTE_CAPABILITIES, CPU, PRODUCTS

    offered = {CPU: "no GPU needed"} | dict.fromkeys(COMPUTE_CAPABILITIES, "compute capability")
    return list(_last_part(incomplete, offered | PRODUCTS))


def targets(incomplete: str) -> list[tuple[str, str]]:
    """GPU tags, also after a runtime, and precisions after a tag: ``tensorrt:h100:fp8,int8``."""
    before, comma, last = incomplete.rpartition(",")
    words = last.split(":")
    if len(words) > 1 and words[-2] not in RUNTIMES:
        start = f"{before}{comma}{':'.join(words[:-1])}:"
        return [(start + name, "precision") for name in PRECISIONS if name.startswith(words[-1])]
    start = before + comma + "".join(f"{word}:" for word in words[:-1])
    offered = [(start + name, meaning) for name, meaning in gpus(words[-1])]
    if len(words) == 1 and _names_precisions(before):
        more = [name for name in PRECISIONS if name.startswith(last)]
        return [*offered, *((start + name, "precision") for name in more)]
    return offered


def _names_precisions(text: str) -> bool:
    """Whether the last target before a comma names precisions of its own."""
    from farm.specs.target_text import joined, split

    given = joined(text.split(","))
    return bool(given) and bool(split(given[-1]).precisions)


def precisions(incomplete: str) -> list[tuple[str, str]]:
    return list(_last_part(incomplete, dict.fromkeys(PRECISIONS, "")))


def metrics(incomplete: str) -> list[str]:
    from farm.specs.tasks import Metric

    return [one for one in Metric if one.startswith(incomplete.lower())]


def preprocess(incomplete: str) -> list[str]:
    from farm.specs.preprocess import PRESETS

    return [one for one in PRESETS if one.startswith(incomplete.lower())]


def builder_options(incomplete: str) -> list[str]:
    from farm.specs.options import BuilderOptions

    return [f"{n}=" for n in BuilderOptions.model_fields if n.startswith(incomplete)]


def facts(incomplete: str) -> list[str]:
    """What a machine may say of itself."""
    from farm.specs.machines import NAMES

    return [f"{name}=" for name in NAMES if name.startswith(incomplete)]


def prunings(incomplete: str) -> list[str]:
    return [name for name in PRUNED if name.startswith(incomplete)]


def pruned(incomplete: str) -> list[str]:
    return [name for name in (*PRUNED, "none") if name.startswith(incomplete)]


def build_states(incomplete: str) -> list[str]:
    from farm.specs.states import BuildState

    return [state for state in BuildState if state.startswith(incomplete)]


def scopes(incomplete: str) -> list[tuple[str, str]]:
    from farm.specs.scopes import Scope

    return list(_last_part(incomplete, dict.fromkeys(Scope, "")))


def quotas(incomplete: str) -> list[str]:
    from farm.specs.limits import Quota

    return [f"{one.option}=" for one in Quota if one.option.startswith(incomplete)]


def kinds(incomplete: str) -> list[tuple[str, str]]:
    from farm.schemas.search import Kind

    return list(_last_part(incomplete, dict.fromkeys(Kind, "")))


def runtimes(incomplete: str) -> list[str]:
    return [name for name in RUNTIMES if name.startswith(incomplete)]


def _last_part(incomplete: str, offered: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Complete what stands after the last comma."""
    before, comma, last = incomplete.rpartition(",")
    for name, meaning in offered.items():
        if name.startswith(last):
            yield before + comma + name, meaning


def _ask(ctx: typer.Context, question: Callable[[Farm], Iterable[T]]) -> Iterable[T]:
    from farm.client import Backoff, Farm

    try:
        with Farm(ctx.params.get("url"), _PATIENCE_S, backoff=Backoff(attempts=1)) as farm:
            return question(farm)
    except FarmError:
        return []  # completion must never print an error

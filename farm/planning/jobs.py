"""A plan's jobs, each once, however many engines need it."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from farm.planning import keys
from farm.planning.recipe import SHARED, Input, Made, Recipe
from farm.schemas.submission import BuildRequest
from farm.specs.accuracy_goal import Pins
from farm.specs.architectures import ARCHITECTURES, REVISIONS
from farm.specs.gpus import CPU
from farm.specs.precision import Precision
from farm.specs.preprocess import Preprocess
from farm.specs.queues import CPU_QUEUE
from farm.specs.roles import Role
from farm.specs.runtime import OF_PROGRAMS, Runtime, Target
from farm.specs.tasks import TaskOptions
from farm.stages import STAGES, BuildParams, JobKind, StageParams

#: Parameters that jobs take from the request unchanged.
AS_GIVEN = frozenset({"profiles", "fixed_inputs"})
#: The longest parameter inside a recipe, as JSON. Longer ones are stored once, and recipes refer to them.
_MOST_INLINE_CHARS = 1024
_MAY_BE_LARGE = AS_GIVEN | {"architecture"}
_LATER = {
    "task": TaskOptions().model_dump(mode="json"),
    "goal": None,
    "pins": Pins().model_dump(mode="json"),
}
_PREPROCESS = Preprocess().model_dump(mode="json")

Toolchains = Callable[[str], Mapping[str, str]]
"""Queue → the toolchain of a worker that consumes it, or nothing when none is known."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedJob:
    """A job that a build needs."""

    recipe: Recipe
    title: str
    queue: str
    target: Target | None
    precision: Precision | None

    @property
    def key(self) -> str:
        return self.recipe.key

    @property
    def kind(self) -> JobKind:
        return self.recipe.kind

    def output(self, role: Role) -> Made:
        """One of its outputs, as another job's input."""
        return Made(self.key, role)


class Jobs:
    """A request's jobs by key, inputs first."""

    def __init__(self, request: BuildRequest, toolchains: Toolchains) -> None:
        self.by_key: dict[str, PlannedJob] = {}
        #: Parameters that the recipes refer to: digest → value.
        self.shared: dict[str, Any] = {}
        self._request = request
        self._toolchains = toolchains
        # Computed once for all jobs: with many inputs, these are most of each recipe.
        self._given = {
            name: self._inline_or_named(value)
            for name, value in request.model_dump(mode="json", include=set(AS_GIVEN)).items()
        }

    def add(
        self,
        params: StageParams,
        inputs: Mapping[str, Input],
        *,
        queue: str = CPU_QUEUE,
        target: Target | None = None,
        precision: Precision | None = None,
        given: Collection[str] = AS_GIVEN,
    ) -> PlannedJob:
        """Plan the job with these parameters, or reuse it if it is already planned.

        Parameters:
            given: the parameters it takes from the request unchanged.
        """
        kind = JobKind.of(params)
        runtime: Runtime | None = target.runtime if target else None
        recipe = Recipe(
            kind=kind,
            stage=STAGES[kind].version + _revision(params),
            params=self._document(params) | {name: self._given[name] for name in given},
            inputs=inputs,
            tools=keys.tools(
                kind,
                runtime,
                self._toolchains(queue),
                self._request.source.format,
                images=_sees_images(params),
            ),
        )
        if recipe.key not in self.by_key:
            self.by_key[recipe.key] = PlannedJob(
                recipe=recipe,
                title=title(kind, self._request.model, precision, target),
                queue=queue,
                target=target,
                precision=precision,
            )
        return self.by_key[recipe.key]

    def _document(self, params: StageParams) -> dict[str, Any]:
        document = params.model_dump(mode="json", exclude={"architecture"})
        if "architecture" in type(params).model_fields:
            has = getattr(params, "architecture", None) is not None
            document["architecture"] = self._architecture if has else None
        return _without_later(document)

    @cached_property
    def _architecture(self) -> Any:
        """The architecture with its config, which may be large."""
        source = self._request.source
        return self._inline_or_named(source.model_dump(mode="json")["architecture"])

    def _inline_or_named(self, value: Any) -> Any:
        form, shared = _form(value)
        self.shared |= shared
        return form


def _form(value: Any) -> tuple[Any, dict[str, Any]]:
    """A parameter's form in recipes, where a large one is its digest; and what that stands for."""
    if len(json.dumps(value)) <= _MOST_INLINE_CHARS:
        return value, {}
    digest = keys.key({"value": value})
    return {SHARED: digest}, {digest: value}


def reduced(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Whole parameters as recipes have them, and what their digests stand for.

    The inverse of ``farm.planning.parameters.whole``.
    """
    found, shared = dict(params), dict[str, Any]()
    for name in _MAY_BE_LARGE & params.keys():
        found[name], more = _form(params[name])
        shared |= more
    return found, shared


def _without_later(document: dict[str, Any]) -> dict[str, Any]:
    """Leave out what came later, where it has its default: what was built stays built."""
    document = {n: one for n, one in document.items() if n not in _LATER or one != _LATER[n]}
    if "preprocess" in document:
        changed = _changed(document.pop("preprocess"))
        document |= {} if changed is None else {"preprocess": changed}
    if document.get("goal") and document["goal"].get("max_latency_ratio") is None:
        document["goal"] = _but(document["goal"], "max_latency_ratio")
    if "gates" in document and not document["gates"].get("outputs"):
        document["gates"] = _but(document["gates"], "outputs")
    return document


def _but(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {n: one for n, one in document.items() if n != name}


def _sees_images(params: StageParams) -> bool:
    own, goal = getattr(params, "preprocess", None), getattr(params, "goal", None)
    return own is not None or (goal is not None and goal.preprocess is not None)


def _changed(preprocess: dict[str, Any] | None) -> dict[str, Any] | None:
    """What differs from the defaults."""
    if preprocess is None:
        return None
    return {name: value for name, value in preprocess.items() if value != _PREPROCESS[name]}


def _rounds_results(params: StageParams) -> bool:
    """Whether a job makes the form in integers for CPUs, or judges by it."""
    if isinstance(params, BuildParams):
        on_cpu = params.target.runtime is Runtime.ONNXRUNTIME and params.target.gpu == CPU
        return on_cpu and params.precision is Precision.INT8
    goal = getattr(params, "goal", None)
    return goal is not None and goal.on_cpus


def _ends_in_halves(params: StageParams) -> bool:
    """Whether a job looks for what keeps an accuracy with the rest in fp16, as GPUs compute it."""
    goal = getattr(params, "goal", None)
    return goal is not None and goal.on_gpus


def _revision(params: StageParams) -> int:
    """What the version of a stage is raised by for the runtime, or for the weights that it loads."""
    target = params.target if isinstance(params, BuildParams) else None
    # Packages for GPUs computed something else than their programs.
    raised = int(target is not None and target.runtime is Runtime.AOTINDUCTOR and target.gpu != CPU)
    # The results of convolutions were rounded up to their largest values.
    raised += _rounds_results(params)
    # What was found for GPUs was judged with the rest in fp32.
    raised += _ends_in_halves(params)
    architecture = getattr(params, "architecture", None)
    if architecture is None:
        return raised
    takes = ARCHITECTURES[architecture.library].get(architecture.name)
    return raised + (REVISIONS.get(takes, 0) if takes else 0)


def title(kind: JobKind, model: str, precision: Precision | None, target: Target | None) -> str:
    """A job's title in Flower and in tables: ``build digits:int8@sm_89``."""
    name = f"{kind} {model}"
    if precision:
        name += f":{precision}"
    if target:
        # Tells it from ONNX Runtime's engine for the same machine.
        name += f"@{target if target.runtime in OF_PROGRAMS else target.gpu}"
    return name

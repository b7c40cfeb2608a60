"""``farm pull ENGINE_ID``: which engine an argument means, and whether it is for this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from farm.cli import show
from farm.database.ids import begins_id, is_id
from farm.errors import InvalidRequest, NotFound
from farm.machine import facts, gpus
from farm.specs import machines
from farm.specs.gpus import CPU
from farm.specs.reach import reach

if TYPE_CHECKING:
    from farm.client import Farm
    from farm.schemas.engines import EngineView

_LEAST_BEGUN = 4  #: characters of an id, where a model may be named as well


def engine_meant(farm: Farm, name: str | None) -> str | None:
    """The id of the engine that an argument names; None if it is a model's name.

    A model with this name comes before an engine with this id: a model may be called anything.

    Raises:
        NotFound: it has the form of an id, and is neither.
        IdAmbiguous: it begins several engines' ids, and is no model's name.
    """
    if name is None or not is_id(name):
        return _begun(farm, name) if name is not None and may_begin_id(name) else None
    is_engine = _is_engine(farm, name)
    if _is_model(farm, name):
        if is_engine:
            show.note(
                f"note: {name} is a model; the engine with this id: farm pull --engine {name}"
            )
        return None
    if not is_engine:
        raise NotFound(f"there is neither a model nor an engine {name!r}", hint=_hint(farm, name))
    return name


def may_begin_id(text: str) -> bool:
    """Whether an argument that may also be a model's name can be meant as the first characters of an id."""
    return len(text) >= _LEAST_BEGUN and text[0].isdigit() and begins_id(text)


def _begun(farm: Farm, name: str) -> str | None:
    """The engine whose id begins like this; None if a model is called so, or there is no such engine."""
    if _is_model(farm, name):
        return None
    try:
        return farm.engine(name).id
    except NotFound:
        return None


def refuse_choices(given: Mapping[str, object], named: str) -> None:
    """Refuse options that choose an engine where something else already does.

    Raises:
        InvalidRequest: names them.
    """
    options = [option for option, value in given.items() if value]
    if options:
        raise InvalidRequest(
            f"{named} says which engines are pulled: it doesn't go with {', '.join(options)}",
            hint="omit them, or choose by the model's name: farm pull MODEL --gpu TAG",
        )


def misfit(engine: EngineView) -> str | None:
    """Why an engine may not run on this machine, in words; None if nothing speaks against it."""
    lacks = machines.misfit(engine, facts.here())
    if engine.gpu == CPU:
        return lacks
    try:
        here = gpus.look()
    except gpus.NoGpu as err:
        return f"it is for {engine.gpu}: {err}"
    if any(reach(engine, gpu.tag or gpu.compute_capability) is not None for gpu in here):
        return lacks
    names = ", ".join(dict.fromkeys(gpu.name for gpu in here)) or "no NVIDIA GPU"
    return f"it is for {engine.gpu}, and this machine has {names}"


def _is_engine(farm: Farm, name: str) -> bool:
    try:
        farm.engine(name)
    except NotFound:
        return False
    return True


def _is_model(farm: Farm, name: str) -> bool:
    try:
        farm.engines(name, limit=1)
    except NotFound:
        return False
    return True


def _hint(farm: Farm, name: str) -> str:
    try:
        farm.build(name)
    except NotFound:
        return "`farm models` lists the models, and `farm engines MODEL` their engines"
    return f"it is a build's id: farm pull --build {name}"

"""What another farm says of the engines that were copied from it, verified and bounded.

All of it comes from outside. A signature says whose word it is; that the farm is told of its own kind of
records alone, and that they don't contradict each other or the files here, is checked of signed and unsigned
ones alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic import TypeAdapter, ValidationError

from farm.errors import InvalidRequest, SignatureRefused, UnknownGpu
from farm.planning import jobs, keys
from farm.planning.recipe import Given, Made, Recipe
from farm.registry.oci.mirrored import Blob, EngineCopy
from farm.reports import extent, kept
from farm.reports.extent import TooMuch
from farm.reports.records import Word, first_of
from farm.schemas.base import Digest
from farm.schemas.engines import EngineView
from farm.schemas.signing import EnginePredicate
from farm.signing import bundles, statements
from farm.signing.bundles import Opened, Statement
from farm.signing.keys import PublicKey
from farm.specs import gpus
from farm.specs.roles import Role
from farm.specs.runtime import Target
from farm.specs.states import EngineState
from farm.stages import JobKind

Read = Callable[[Blob], bytes]
"""A blob's bytes, at most ``bundles.MAX_BUNDLE_BYTES`` and one more."""

_MOST_INPUTS = 16
_INPUT = re.compile(r"sha256:[0-9a-f]{64}(?:#[a-z0-9_]{1,30})?")
_MOST_NAMES = 64
_LONGEST_VERSION = 40
_MATERIALS: TypeAdapter[dict[Any, str]] = TypeAdapter(dict[Role, Digest])
_TOOLS: TypeAdapter[dict[Any, str]] = TypeAdapter(dict[Word, Word])
_ENGINE_ID = re.compile(r"[0-9A-Za-z_-]{1,40}")


@dataclass(frozen=True, kw_only=True)
class Done:
    """A job that the other farm did."""

    key: str
    recipe: Recipe
    params: Mapping[str, Any]  #: the recipe's, whole
    shared: Mapping[str, Any]  #: what the recipe's references stand for
    worker: str | None


@dataclass(frozen=True, kw_only=True)
class Vouched:
    """An engine as the other farm describes it."""

    engine: EngineView
    build: Done
    measure: Done
    materials: Mapping[str, str]
    layers: str | None  #: digest of its layer report
    key: PublicKey | None  #: that signed it


def vouched(copy: EngineCopy, source: str, known: Sequence[PublicKey], read: Read) -> Vouched:
    """What is said of an engine by one of these keys; without any, what its manifest says.

    Parameters:
        source: the digest of its version's source.

    Raises:
        SignatureRefused: none of the keys has signed it, or something else than what is here.
        InvalidRequest: it isn't what a farm says of an engine.
    """
    try:
        found = _vouched(copy, known, read)
        if found.engine.source_digest != source:
            _refuse(
                f"it was made from {found.engine.source_digest}, and the source here is {source}"
            )
        return found
    except TooMuch as err:
        raise InvalidRequest(f"the engine {copy.digest} can't be registered: {err}") from None
    except ValidationError as err:
        raise InvalidRequest(
            f"the engine {copy.digest} can't be registered: {first_of(err)}"
        ) from None


def _vouched(copy: EngineCopy, known: Sequence[PublicKey], read: Read) -> Vouched:
    said = _json(_bounded(copy.config, read))
    layers, key = next(iter(copy.layers), None), None
    files: Mapping[str, str] = {}
    if known:
        opened, said = _signed(copy, said, known, read)
        files, key = opened.statement.digests(), opened.key
        layers = files.get(Role.LAYERS) if files.get(Role.LAYERS) in copy.layers else None
    engine = _engine(said.get("engine"), copy)
    if known and files.get(engine.file_name()) != copy.digest:
        _refuse("the statement's subject isn't the engine's file")
    found = Vouched(
        engine=engine,
        build=_done(said, "build", JobKind.BUILD),
        measure=_done(said, "measure", JobKind.MEASURE),
        materials=_of(_MATERIALS, said.get("materials") or {}, "materials"),
        layers=layers,
        key=key,
    )
    _check_jobs(found)
    return found


def _bounded(blob: Blob, read: Read) -> bytes:
    content = read(blob)
    if len(content) > bundles.MAX_BUNDLE_BYTES:
        raise InvalidRequest(
            f"{blob.digest} has more than {bundles.MAX_BUNDLE_BYTES} bytes: no farm says so much"
        )
    return content


def _json(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidRequest("the config of an engine's manifest isn't a JSON object")
    return value


def _signed(
    copy: EngineCopy, config: Mapping[str, Any], known: Sequence[PublicKey], read: Read
) -> tuple[Opened, dict[str, Any]]:
    """The statement of an engine, verified, and its predicate. Anybody may have pushed others beside it."""
    why = SignatureRefused(
        f"the engine {copy.digest} has no signature here",
        hint="does that farm sign? farm signing show there; unsigned: true (--unsigned) believes it unseen",
    )
    for one in copy.bundles:
        try:
            opened = bundles.opened(_bounded(one, read), known)
            said = _predicate(opened.statement, copy).model_dump(mode="json")
            _check_config(config, said)
        except SignatureRefused as err:
            why = err
            continue
        return opened, said
    raise why


def _predicate(statement: Statement, copy: EngineCopy) -> EnginePredicate:
    if statement.type != statements.ENGINE or copy.digest not in statement.digests().values():
        raise SignatureRefused(f"the signature isn't of the engine {copy.digest}")
    return EnginePredicate.model_validate(dict(statement.predicate))


def _check_config(config: Mapping[str, Any], signed: Mapping[str, Any]) -> None:
    """Refuse a manifest that says something else than was signed; either may be of a newer farm."""
    for part in ("engine", "provenance"):
        told, true = config.get(part), signed[part]
        if not isinstance(told, dict):
            raise InvalidRequest(f"the config of an engine's manifest has no {part}")
        differs = sorted(name for name in told.keys() & true.keys() if told[name] != true[name])
        if differs:
            raise SignatureRefused(
                f"the engine's manifest isn't what was signed: {', '.join(differs)[:200]} differ"
            )


def _engine(given: Any, copy: EngineCopy) -> EngineView:
    if not isinstance(given, dict):
        _refuse("its description is missing")
    _check_extent(given, "its description")
    engine = EngineView.model_validate(given)
    if not _ENGINE_ID.fullmatch(engine.id):
        _refuse("its id isn't one")
    if (engine.digest, engine.bytes) != (copy.digest, copy.bytes):
        _refuse(f"its description is of {engine.digest}, which has {engine.bytes} bytes")
    if (engine.state == EngineState.DOUBTFUL) != bool(engine.doubts):
        _refuse(f"it is {engine.state}, and has {len(engine.doubts)} doubts")
    if _canonical(engine.gpu) != engine.gpu:
        _refuse(f"this farm doesn't know the GPU {engine.gpu[:40]!r}")
    if len(engine.runtime_version) > _LONGEST_VERSION:
        _refuse("its runtime_version is longer than any")
    _of(_TOOLS, engine.toolchain, "toolchain")
    measured = measure_facts(engine)
    try:
        kept.engine_record(
            measured["accuracy"], measured["metrics"], build_facts(engine), measured["doubts"]
        )
    except kept.Unreadable as err:
        if isinstance(err.__cause__, ValidationError):
            raise err.__cause__ from None
        _refuse(str(err.__cause__))
    return engine


def _check_extent(given: Mapping[str, Any], what: str) -> None:
    text = json.dumps(given)
    if len(text) > extent.MAX_BYTES:
        _refuse(f"{what} is larger than any that a farm makes")
    if "\\u0000" in text:  # Postgres can't keep it
        _refuse(f"{what} has a null character")
    extent.check(given)


def _canonical(gpu: str) -> str | None:
    try:
        return gpus.canonical(gpu)
    except UnknownGpu:
        return None


def build_facts(engine: EngineView) -> dict[str, Any]:
    """What the engine's build found, as this farm keeps it: ``farm.reports.description``."""
    names = (
        "inputs outputs profiles differences compute options timing_cache provider "
        "peak_memory_bytes"
    )
    return engine.model_dump(mode="json", include=set(names.split()))


def measure_facts(engine: EngineView) -> dict[str, Any]:
    """What the engine's measurement found, as this farm keeps it."""
    names = "accuracy metrics metrics_reason doubts"
    return engine.model_dump(mode="json", include=set(names.split()))


def _done(said: Mapping[str, Any], name: str, kind: JobKind) -> Done:
    given = (said.get("provenance") or {}).get(name)
    if not isinstance(given, dict) or not isinstance(given.get("recipe"), dict):
        _refuse(f"its provenance has no {name}")
    recipe, worker = given["recipe"], given.get("worker")
    _check_extent(given, f"the {name} in its provenance")
    _check_recipe(recipe, kind)
    params, shared = jobs.reduced(recipe["params"])
    document = recipe | {"params": params}
    if keys.key(document) != given.get("key"):
        _refuse(f"the key of its {name} isn't that of its recipe")
    return Done(
        key=given["key"],
        recipe=Recipe.read(document),
        params=recipe["params"],
        shared=shared,
        worker=worker[:200] if isinstance(worker, str) else None,
    )


def _check_recipe(recipe: Mapping[str, Any], kind: JobKind) -> None:
    if recipe.keys() != {"kind", "stage", "params", "inputs", "tools"}:
        _refuse("a recipe of it has other fields")
    inputs, stage = recipe["inputs"], recipe["stage"]
    if recipe["kind"] != kind or type(stage) is not int or not isinstance(recipe["params"], dict):
        _refuse(f"its recipe isn't one of the stage {kind}")
    if not isinstance(inputs, dict) or len(inputs) > _MOST_INPUTS:
        _refuse(f"the inputs of its {kind} aren't those of a stage")
    for role, text in inputs.items():
        if role not in set(Role) or not isinstance(text, str) or not _INPUT.fullmatch(text):
            _refuse(f"the input {role[:40]!r} of its {kind} is none")
    _of(_TOOLS, recipe["tools"], "tools")


def _check_jobs(found: Vouched) -> None:
    """Refuse jobs that are of another engine than the one they are said to have made."""
    engine, build, measure = found.engine, found.build, found.measure
    target = Target(runtime=engine.runtime, gpu=engine.gpu).model_dump(mode="json")
    made = measure.recipe.inputs.get(Role.ENGINE)
    agrees = {
        "target": build.params.get("target") == target,
        "precision": build.params.get("precision")
        == engine.precision
        == measure.params.get("precision"),
        "toolchain": dict(build.recipe.tools) == engine.toolchain,
        "source": measure.recipe.inputs.get(Role.SOURCE) == Given(engine.source_digest),
        "fixed inputs": measure.params.get("fixed_inputs")
        == engine.model_dump(mode="json")["fixed_inputs"],
        "engine": made in (None, Made(build.key, Role.ENGINE)),
        "materials": found.materials.get(Role.SOURCE, engine.source_digest) == engine.source_digest,
    }
    wrong = [name for name, is_right in agrees.items() if not is_right]
    if wrong:
        _refuse(f"its description and its provenance contradict each other: {wrong[0]}")


def _of(shape: TypeAdapter[dict[Any, str]], given: Any, what: str) -> dict[str, str]:
    if not isinstance(given, Mapping) or len(given) > _MOST_NAMES:
        _refuse(f"its {what} aren't at most {_MOST_NAMES} names")
    return {str(name): value for name, value in shape.validate_python(dict(given)).items()}


def _refuse(why: str) -> NoReturn:
    raise TooMuch(why)

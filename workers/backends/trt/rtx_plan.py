"""Reads what a TensorRT-RTX plan says about itself from its bytes, without a GPU or the runtime.

A plan holds its programs as text among binary weights and kernels, each preceded by a mark and its length::

    header { version = 5 … region = { name=devmem_topdown_0 size=8192000 type=user place=accelerator … } }
    descriptors { tensor={ const_payload_size=4608 dims={ 32 16 3 3 } name="a" region=… type=int8 } … }
    main { corrltn={ name="/conv" output={"c" } input={"b" "a" } layers="[ONNX Layer: /conv]" … } … }

The text has no published schema: this one was found in plans of tensorrt-rtx 1.7.1, and tests check it
against plans of the installed version. Unexpected parts are left out, and a plan without a readable program
is None, never a guess. The work is bounded for any input.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from farm.formats.rtx_header import MalformedHeader, parse_header
from farm.reports.layers import Layer, LayerTensor, MemoryView
from workers.backends.trt.inspector import operators_of

_MARK = b"NLYM"
_LENGTH_AT, _TEXT_AT = 8, 16
_START = b"header {"
#: More than any plan seen; with more, the bytes aren't a plan.
_MAX_MARKS = 50_000
_MAX_TEXT_BYTES = 32 << 20
_MAX_ITEMS = 100_000
_MAX_ITEM_BYTES = 1 << 20

_BLOCK = re.compile(rb"(?:\A|\n)(\w{1,60}) \{\n")
_ITEM = re.compile(rb"\n  (\w{1,60}) ?= ?\{")
#: A name, and its value in quotes, in braces, or bare. Possessive, so that no input causes backtracking.
_FIELD = re.compile(
    rb'(?<!\w)(\w{1,60}) ?= ?(?:"([^"]*+)"|\{((?:[^{}"]++|"[^"]*+")*+)\}|([^\s{}"]++))'
)
_STRING = re.compile(rb'"([^"]*+)"')
_SHAPES = b"\nshape_main {\n"
_INPUTS = re.compile(rb"\n  inputs=\{([^\n]*+)")
_PROFILE = re.compile(rb" \[profile (\d{1,6})\]")
_VERSION = re.compile(rb"\n  version = (\d{1,6})\n")

#: The text's name → the usual one.
_KINDS = {"corrltn": "convolution"}
_TYPES = {"fp8_e4m3": "fp8", "fp8_e5m2": "fp8", "fp4_e2m1": "fp4"}
#: Steps that store or assert something and compute nothing of the graph.
_NO_LAYERS = {"assert", "memset", "shape_call", "speculate"}
_STUB = "__myelin_CASK_STUB"


@dataclass(frozen=True, kw_only=True)
class RtxPlan:
    """What could be read from a plan."""

    version: str | None  #: of the TensorRT-RTX that built it; None if the header doesn't say
    schema: int | None  #: the text's own version
    layers: tuple[Layer, ...]  #: of its first profile, in order
    inner: tuple[Layer, ...]  #: of the programs inside its fused kernels, and of other profiles
    memory: MemoryView


def read_plan(plan: bytes) -> RtxPlan | None:
    """Read a plan; None when no program can be found in it."""
    programs = []
    items = 0
    for text in _texts(plan):
        program = _program(text, _MAX_ITEMS - items)
        items += program.items
        if program.layers:
            programs.append(program)
    if not programs:
        return None
    # A profile's program resolves its shapes first; the others are parts of these.
    profile = next((one.profile for one in programs if one.profile is not None), None)
    first = [one for one in programs if one.profile == profile]
    others = [one for one in programs if one.profile != profile]
    whole = [one for one in programs if one.profile is not None] or first
    return RtxPlan(
        version=_version(plan),
        schema=first[0].schema,
        layers=tuple(layer for program in first for layer in program.layers),
        inner=tuple(layer for program in others for layer in program.layers),
        memory=_memory(whole, [*first, *(one for one in others if one.profile is None)]),
    )


def _version(plan: bytes) -> str | None:
    try:
        return parse_header(plan).version
    except MalformedHeader:
        return None


def _texts(plan: bytes) -> Iterator[bytes]:
    """The programs' texts. Weights may contain a mark by chance, so the text must begin like a program."""
    at, left = 0, _MAX_TEXT_BYTES
    for _ in range(_MAX_MARKS):
        at = plan.find(_MARK, at)
        if at < 0:
            return
        start = at + _TEXT_AT
        size = int.from_bytes(plan[at + _LENGTH_AT : start], "little")
        if plan.startswith(_START, start) and size <= min(left, len(plan) - start):
            yield plan[start : start + size]
            left -= size
            at = start + size
        else:
            at += len(_MARK)


@dataclass(frozen=True, kw_only=True)
class _Program:
    schema: int | None
    profile: int | None  #: None for a part
    layers: tuple[Layer, ...]
    regions: Mapping[str, int]  #: on the GPU, without constants: name → bytes
    constants: frozenset[tuple[str, str, str, int]]  #: region, offset, type, bytes
    items: int


@dataclass(frozen=True, kw_only=True)
class _Item:
    kind: str
    fields: Mapping[str, bytes]

    @property
    def gives(self) -> list[str]:
        """The tensors it outputs."""
        return self.names("output", "output_args")

    def text(self, name: str) -> str | None:
        value = self.fields.get(name)
        return None if value is None else value.decode(errors="replace")

    def number(self, name: str) -> int | None:
        value = self.fields.get(name, b"")
        return int(value) if value.isdigit() and len(value) < 20 else None

    def names(self, *fields: str) -> list[str]:
        values = (self.fields.get(field, b"") for field in fields)
        strings = (one for value in values for one in _STRING.findall(value))
        return [one.decode(errors="replace") for one in strings]


def _program(text: bytes, limit: int) -> _Program:
    schema = _VERSION.search(text, 0, 1000)
    regions: dict[str, int] = {}
    constants: set[tuple[str, str, str, int]] = set()
    tensors: dict[str, LayerTensor] = {}
    steps: list[_Item] = []
    count = 0
    for block, item in _items(text, limit):
        count += 1
        if block == "header":
            _add_region(item, regions)
        elif block == "descriptors":
            _add_tensor(item, tensors, constants)
        elif not block.startswith("shape_") and item.kind not in _NO_LAYERS and item.gives:
            steps.append(item)
    return _Program(
        schema=int(schema[1]) if schema else None,
        profile=_profile(text),
        layers=tuple(_layer(step, tensors) for step in steps),
        regions=regions,
        constants=frozenset(constants),
        items=count,
    )


def _items(text: bytes, limit: int) -> Iterator[tuple[str, _Item]]:
    """Each item with the block that contains it, up to the limit."""
    blocks = [(found.start(), found[1].decode()) for found in _BLOCK.finditer(text)]
    blocks.append((len(text), ""))
    starts = _ITEM.finditer(text)
    found = next(starts, None)
    for (_, name), (until, _) in pairwise(blocks):
        while found is not None and found.start() < until and limit > 0:
            following = next(starts, None)
            end = min(until, following.start() if following else until)
            yield name, _item(found[1], text, found.end(), end)
            found, limit = following, limit - 1


def _item(kind: bytes, text: bytes, start: int, end: int) -> _Item:
    fields: dict[str, bytes] = {}
    for found in _FIELD.finditer(text, start, min(end, start + _MAX_ITEM_BYTES)):
        value = next((part for part in found.groups()[1:] if part is not None), b"")
        # Fields nested in braces come later, and may have the same names.
        fields.setdefault(found[1].decode(), value)
    return _Item(kind=kind.decode(), fields=fields)


def _add_region(item: _Item, regions: dict[str, int]) -> None:
    name, size = item.text("name"), item.number("size")
    on_gpu = item.text("place") == "accelerator" and item.text("constant") != "true"
    if item.kind == "region" and on_gpu and name is not None and size is not None:
        regions[name] = size


def _add_tensor(
    item: _Item,
    tensors: dict[str, LayerTensor],
    constants: set[tuple[str, str, str, int]],
) -> None:
    name, type_ = item.text("name"), item.text("type")
    if name is None:
        return
    type_ = _TYPES.get(type_, type_) if type_ else None
    tensors[name] = LayerTensor(name=name, type=type_, shape=_shape(item.text("dims")))
    size = item.number("const_payload_size")
    if size is not None:
        # Equal constants share their storage.
        constants.add((item.text("region") or "", item.text("offset") or name, type_ or "?", size))


def _shape(dims: str | None) -> list[int] | None:
    if dims is None:
        return None
    return [int(dim) if dim.isdigit() and len(dim) < 20 else -1 for dim in dims.split()]


def _layer(item: _Item, tensors: Mapping[str, LayerTensor]) -> Layer:
    def known(names: Sequence[str]) -> list[LayerTensor]:
        return [
            tensors[name] if name in tensors else LayerTensor(name=name, type=None, shape=None)
            for name in names
        ]

    kernel = item.text("fqn") or item.text("kernel")
    return Layer(
        name=item.text("name") or "?",
        type=_KINDS.get(item.kind, item.kind),
        inputs=known(item.names("input", "input_args")),
        outputs=known(item.gives),
        # A stub's tactic is chosen at run time.
        kernel=None if kernel == _STUB else kernel,
        operators=list(dict.fromkeys(operators_of(item.text("layers") or ""))),
    )


def _profile(text: bytes) -> int | None:
    """The profile a program belongs to, by the names of its inputs; None for a part."""
    if _SHAPES not in text:
        return None
    inputs = _INPUTS.search(text)
    named = _PROFILE.search(inputs[1]) if inputs else None
    return int(named[1]) if named else 0


def _memory(whole: Sequence[_Program], holding: Sequence[_Program]) -> MemoryView:
    """The profiles' memory, and the first one's constants: the others share the same bytes."""
    by_profile: Counter[int] = Counter()
    for program in whole:
        by_profile[program.profile or 0] += sum(program.regions.values())
    by_type: Counter[str] = Counter()
    for _, _, type_, size in frozenset().union(*(program.constants for program in holding)):
        by_type[type_] += size
    return MemoryView(
        context_bytes=max(by_profile.values()),
        context_bytes_by_profile=[by_profile[profile] for profile in sorted(by_profile)],
        weights_bytes=sum(by_type.values()),
        streamable_weights_bytes=None,
        aux_streams=None,
        constants=dict(by_type),
    )

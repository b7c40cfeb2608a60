"""Converts a ``trtexec`` command line to a submission. Pure, no I/O.

Source: trtexec's help, TensorRT 10 and 11.
"""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from farm.errors import InvalidRequest
from farm.specs.precision import CALIBRATED


@dataclass(kw_only=True)
class Imported:
    """What a command requests, and where the farm differs."""

    source: str = ""
    precisions: list[str] = field(default_factory=list)
    profiles: list[dict[str, dict[str, list[int]]]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)  #: of `farm.specs.options.BuilderOptions`
    notes: list[str] = field(default_factory=list)

    def command(self) -> str:
        """The equivalent ``farm submit``, without the GPUs."""
        words = ["farm", "submit", self.source, "--precision", ",".join(self.precisions)]
        for profile in self.profiles[:1]:
            for name, shapes in profile.items():
                given = ":".join(
                    "x".join(map(str, shapes[which])) for which in ("min", "opt", "max")
                )
                words += ["--profile", f"{name}={given}"]
        for name, value in self.options.items():
            words += ["--option", f"{name}={str(value).lower()}"]
        return shlex.join(words)


_PRECISIONS = ("fp8", "int8", "bf16", "fp16")  #: the narrowest first
#: How to measure, and what to print.
_MEASURES = (
    "allocationStrategy avgRuns avgTiming dumpLayerInfo dumpOutput dumpProfile "
    "dumpRawBindingsToFile duration exportLayerInfo exportOutput exportProfile exportTimes "
    "exposeDMA idleTime infStreams iterations loadInputs minTiming noCompilationCache "
    "noDataTransfers percentile persistentCacheRatio preview profilingVerbosity "
    "separateProfileRun skipInference sleepTime streams threads timeDeserialize timeRefit "
    "useCudaGraph useManagedMemory useProfile useRuntime useSpinWait verbose warmUp"
).split()
_REFUSED = {
    "plugins": "libraries are loaded only by builds that name them: --option plugins=DIGEST",
    "layerPrecisions": "layer precisions come from the graph: type the ONNX and submit it as fp32",
    "refit": "the farm doesn't refit engines: submit the new weights as the next version",
    "useDLACore": "the farm builds for GPUs, not for DLA",
    "inputIOFormats": "inputs and outputs keep the ONNX model's formats",
    "sparsity": "it would overwrite weights: submit with --prune 2:4, which reports the accuracy lost",
    "loadEngine": "this command measures an existing engine and builds nothing",
    "model": "submit ONNX: Caffe and UFF are no longer supported",
}
_ALIKE = {
    "setPluginsToSerialize": "plugins",
    "ignoreParsedPluginLibs": "plugins",
    "layerOutputTypes": "layerPrecisions",
    "layerDeviceTypes": "useDLACore",
    "allowGPUFallback": "useDLACore",
    "precisionConstraints": "layerPrecisions",
    "stripWeights": "refit",
    "stripAllWeights": "refit",
    "outputIOFormats": "inputIOFormats",
    "uff": "model",
    "deploy": "model",
}
_LEVELS = {
    "none": "none",
    "ampere+": "ampere_plus",
    "sameComputeCapability": "same_compute_capability",
}
_MIB = {"B": 1 / 2**20, "K": 1 / 2**10, "": 1.0, "M": 1.0, "G": 2.0**10}


def parse(command: str) -> Imported:
    """Read a command.

    Raises:
        InvalidRequest: naming the flag that the farm can't follow, and why.
    """
    try:
        words = shlex.split(command)
    except ValueError as err:
        raise InvalidRequest(
            f"the command can't be parsed: {err}", hint="check its quotes"
        ) from err
    if words and not words[0].startswith("-"):
        words = words[1:]
    reader = _Reader()
    for word in words:
        name, _, value = word.lstrip("-").partition("=")
        if not word.startswith("--") or not name:
            raise InvalidRequest(f"{word!r} isn't a trtexec flag", hint="use --name=value")
        reader.read(name, value)
    return reader.result()


class _Reader:
    def __init__(self) -> None:
        self._made = Imported()
        self._wanted: set[str] = set()
        self._shapes: defaultdict[int, dict[str, dict[str, list[int]]]] = defaultdict(dict)
        self._profile = 0
        self._ignored: list[str] = []
        made, options = self._made, self._made.options
        self._flags: dict[str, Callable[[str], object]] = {
            "onnx": lambda v: setattr(made, "source", v),
            "saveEngine": lambda v: made.notes.append(
                f"{v or 'the engine'} is kept in the registry: farm pull brings it"
            ),
            "best": lambda _: self._best(),
            "stronglyTyped": lambda _: made.notes.append(
                "--stronglyTyped: the farm types every graph; fp32 keeps the graph's own types"
            ),
            "noTF32": lambda _: options.update(tf32=False),
            "sparsity": self._sparsity,
            "builderOptimizationLevel": lambda v: options.update(
                builder_optimization_level=_whole("builderOptimizationLevel", v)
            ),
            "maxAuxStreams": lambda v: options.update(max_aux_streams=_whole("maxAuxStreams", v)),
            "versionCompatible": lambda _: options.update(version_compatible=True),
            "allowWeightStreaming": lambda _: options.update(weight_streaming=True),
            "hardwareCompatibilityLevel": self._compatibility,
            "workspace": lambda v: options.update(workspace_mib=_whole("workspace", v)),
            "memPoolSize": self._pools,
            "profile": lambda v: setattr(self, "_profile", _whole("profile", v)),
            "minShapes": lambda v: self._range("min", v),
            "optShapes": lambda v: self._range("opt", v),
            "maxShapes": lambda v: self._range("max", v),
            "shapes": lambda v: made.notes.append(
                f"--shapes={v}: the farm measures at the profile's batch sizes"
            ),
            "calib": lambda v: made.notes.append(
                f"--calib={v}: for int8 add --calibration {v}, whose ranges are then taken, or your data"
            ),
            "timingCacheFile": lambda _: made.notes.append(
                "--timingCacheFile: the farm keeps one per GPU and toolchain: farm timing-caches"
            ),
            **{name: self._plugin(name) for name in ("plugins", "staticPlugins", "dynamicPlugins")},
            "noBuilderCache": lambda _: options.update(timing_cache=False),
            "device": lambda _: made.notes.append(
                "--device: choose the GPU by tag; the farm pins a worker to each GPU"
            ),
        }
        self._flags["vc"] = self._flags["versionCompatible"]

    def read(self, name: str, value: str) -> None:
        if name in _PRECISIONS:
            self._wanted.add(name)
        elif name in self._flags:
            self._flags[name](value)
        elif name in _MEASURES:
            self._ignored.append(f"--{name}")
        elif name in _REFUSED or name in _ALIKE:
            _refuse(name, value, _REFUSED[_ALIKE.get(name, name)])
        else:
            raise InvalidRequest(f"--{name} isn't a trtexec flag that the farm knows")

    def result(self) -> Imported:
        made = self._made
        if not made.source:
            raise InvalidRequest("the command names no model", hint="add --onnx=FILE")
        # trtexec allows a type in addition to wider ones; here it is the type the engine computes in.
        chosen = next((one for one in _PRECISIONS if one in self._wanted), "fp32")
        made.precisions = made.precisions or [chosen]
        if len(self._wanted) > 1:
            others = ", ".join(sorted(self._wanted - {chosen}))
            made.notes.append(
                f"the engine computes in {chosen}; for engines in {others} too, add them to --precision"
            )
        if not set(CALIBRATED).isdisjoint(made.precisions):
            made.notes.append(
                "int8 and fp8 need calibration: add --calibration FILE. Without a calibration "
                "trtexec makes up ranges, and its engine is only good for timing"
            )
        made.profiles = [_complete(self._shapes[number]) for number in sorted(self._shapes)]
        if len(made.profiles) > 1:
            made.notes.append(
                "several profiles: farm submit takes one; in Python pass them all as profiles=…"
            )
        if self._ignored:
            made.notes.append(
                f"ignored, since the farm measures in its own way: {' '.join(self._ignored)}"
            )
        return made

    def _plugin(self, name: str) -> Callable[[str], object]:
        return lambda library: self._made.notes.append(
            f"--{name}={library}: have an operator sign and add the library: farm plugins add "
            f"{library} --signature FILE; then add --option plugins=DIGEST"
        )

    def _best(self) -> None:
        self._made.precisions = ["fp16", "int8"]
        self._made.notes.append("--best: an fp16 and an int8 engine; the registry compares them")

    def _sparsity(self, value: str) -> None:
        if value == "force":
            _refuse("sparsity", value, _REFUSED["sparsity"])
        if value == "enable":
            self._made.options["sparse_weights"] = True

    def _compatibility(self, value: str) -> None:
        if value not in _LEVELS:
            raise InvalidRequest(
                f"unknown --hardwareCompatibilityLevel={value}", hint="use " + " or ".join(_LEVELS)
            )
        self._made.options["hardware_compatibility_level"] = _LEVELS[value]

    def _pools(self, value: str) -> None:
        for pool in value.split(","):
            name, _, size = pool.partition(":")
            found = re.fullmatch(r"([0-9.]+)([BKMG]?)(?:iB)?", size)
            if found is None:
                raise InvalidRequest(
                    f"--memPoolSize={value} can't be parsed", hint="use the form workspace:1024M"
                )
            if name == "workspace":
                mib = float(found[1]) * _MIB[found[2]]
                self._made.options["workspace_mib"] = max(1, round(mib))
            else:
                self._made.notes.append(f"--memPoolSize: {name} keeps its default")

    def _range(self, which: str, value: str) -> None:
        for text in value.split(","):
            # Names may hold colons.
            name, _, shape = text.rpartition(":")
            if not name or not re.fullmatch(r"\d+(x\d+)*", shape):
                raise InvalidRequest(
                    f"--{which}Shapes={value} can't be parsed",
                    hint="use the form image:1x3x224x224",
                )
            axes = [int(size) for size in shape.split("x")]
            self._shapes[self._profile].setdefault(name.strip("'\""), {})[which] = axes


def _complete(profile: dict[str, dict[str, list[int]]]) -> dict[str, dict[str, list[int]]]:
    """Fill in missing shapes from their neighbours, like trtexec."""
    return {
        name: {
            "min": given.get("min") or given.get("opt") or given["max"],
            "opt": given.get("opt") or given.get("max") or given["min"],
            "max": given.get("max") or given.get("opt") or given["min"],
        }
        for name, given in profile.items()
    }


def _whole(name: str, value: str) -> int:
    if not value.isdecimal():
        raise InvalidRequest(f"--{name}={value}: {value!r} isn't an integer")
    return int(value)


def _refuse(name: str, value: str, why: str) -> None:
    raise InvalidRequest(f"--{name}{'=' * bool(value)}{value} isn't supported", hint=why)

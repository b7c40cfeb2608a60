"""Loads ``tensorrt_rtx``, or ``tensorrt`` 10 and 11, with plugins; collects its log and errors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from farm.errors import EngineBuildFailed
from farm.specs.runtime import Runtime
from workers.failures.known import Said

if TYPE_CHECKING:
    # TensorRT-RTX has the same classes; members that only one of the two has are probed, so untyped.
    import tensorrt as types


_MODULES = {Runtime.TENSORRT_RTX: "tensorrt_rtx", Runtime.TENSORRT: "tensorrt"}


_PACKAGES = {Runtime.TENSORRT_RTX: "rtx", Runtime.TENSORRT: "tensorrt"}


#: Source locations; and complaints about a missing driver where TensorRT-RTX needs none.
_NOISE = re.compile(
    r"\[checkMacros\.cpp::catchCudaError::\d+\] Error Code \d+: Cuda Runtime \(.*?\(cudaError 35:[^)]*\)\)"
    r"| ?In \w+ at /_src/[\w/.]+:\d+"
)


def load_runtime(runtime: Runtime) -> ModuleType:
    """Import the Python module of a TensorRT runtime.

    Raises:
        EngineBuildFailed: it isn't installed on this worker.
    """
    name = _MODULES[runtime]
    try:
        return import_module(name)
    except ImportError as err:
        is_missing = isinstance(err, ModuleNotFoundError) and err.name == name
        what = "isn't installed" if is_missing else "is installed but can't be loaded"
        raise EngineBuildFailed(
            f"{runtime} {what} on this worker: {err}",
            hint="install it there (pip install -c constraints.txt "
            f"'.[{_PACKAGES[runtime]}]'), or choose another runtime in the target",
        ) from err


def preload() -> None:
    """Import the installed runtimes, so that forked jobs needn't. Doesn't initialise CUDA."""
    for name in _MODULES.values():
        with suppress(ImportError):
            import_module(name)


def load_plugins(trt: Any, log: Any, libraries: Sequence[Path]) -> None:
    """Load plugin libraries into this process, for parsers, builders and runtimes alike.

    Raises:
        EngineBuildFailed: has TensorRT's reason.
    """
    if not libraries:
        return
    registry: types.IPluginRegistry = trt.get_plugin_registry()
    if not hasattr(registry, "load_library"):
        raise EngineBuildFailed(
            f"{trt.__name__} {trt.__version__} doesn't support plugins", hint="omit plugins"
        )
    for library in libraries:
        if registry.load_library(str(library)) is None:
            reason = "; ".join(log.errors) or "TensorRT gives no reason"
            raise EngineBuildFailed(
                f"the plugin library {library.name} can't be loaded: {reason}"[:800],
                hint="build it against this TensorRT, export getCreators, and check that the libraries it "
                "links to are installed on the worker; none of its plugins may be loaded already",
            )


def plain(reason: str) -> str:
    """TensorRT's reason in one line, without source locations."""
    return " ".join(_NOISE.sub("", " ".join(reason.split())).split())


def last_errors(log: Any) -> str:
    """The last distinct errors in a ``collecting_log``; empty without any."""
    return "; ".join(dict.fromkeys(log.errors[-3:]))


def failure(log: Any, fallback: str, verb: str = "can't build") -> EngineBuildFailed:
    reason = last_errors(log) or fallback
    told = plain(fallback if verb == "can't read" else reason)
    # Its parser says this for an unknown operator.
    told = re.sub(r"(?<![^ ])false(?= \(operator)", "it has no such operator", told)
    failed = EngineBuildFailed(f"TensorRT {verb} this graph: {told}"[:800])
    failed.__cause__ = Said(f"{fallback} {reason}")
    return failed


def collecting_log(trt: Any) -> Any:
    """Create a logger that prints to the job's log and keeps the errors.

    The class is defined here since its base belongs to the given module. The alternative, an
    IErrorRecorder in Python, crashes when the network is freed.
    """
    severity = trt.ILogger.Severity

    class CollectingLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self._told: set[str] = set()

        def log(self, level: Any, message: str) -> None:
            if level <= severity.ERROR:
                self.errors.append(" ".join(message.split())[:400])
            if level <= severity.WARNING and message not in self._told:
                self._told.add(message)  # an int8 graph repeats one warning hundreds of times
                print(f"[{trt.__name__}] {level.name}: {message}", flush=True)

    return CollectingLog()

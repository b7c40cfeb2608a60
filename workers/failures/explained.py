"""Turns a stage's failure into a farm error whose hint fits the request."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import workers
from farm.errors import (
    AccuracyDropped,
    CalibrationFailed,
    CastFailed,
    ChildFilledDisk,
    ChildOutOfMemory,
    FarmError,
    PrecisionMissed,
    StageFailed,
    StageFault,
    StorageFull,
)
from farm.specs.precision import CALIBRATED, Precision
from farm.specs.runtime import Runtime
from workers.failures.answers import another_way, memory
from workers.failures.asked import Asked, either
from workers.failures.known import known

_HERE = Path(workers.__file__).parent
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def explained(err: Exception, asked: Asked) -> FarmError:
    """The error that a stage ends in, with a hint that fits the request.

    An unforeseen error becomes a ``StageFault``, which names the stage, the target and the line.
    """
    found = known(said_by_others(err), asked)
    if isinstance(err, StageFailed):
        if found:
            err.hint = found[1]
        elif _is_general(err) or asked.misses(err.hint or ""):
            err.hint = _by_kind(err, asked)
        return err
    if isinstance(err, FarmError):
        return err
    if isinstance(err, MemoryError):
        return ChildOutOfMemory(f"{asked}: out of memory", hint=memory(asked))
    if isinstance(err, OSError) and err.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(
            f"{asked}: no space left in the worker's home folder ({err.strerror})",
            hint="free space there, or give the worker another FARM_HOME: the job is retried after a delay",
        )
    if isinstance(err, OSError) and err.errno == errno.EFBIG:
        return ChildFilledDisk(f"{asked}: a file exceeds the job's disk limit")
    if isinstance(err, PermissionError):
        return StageFailed(
            f"{asked}: the sandbox denied an access: {first_line(err)} ({_where(err)})",
            hint="if that is a library's own file, add its folder to FARM_SANDBOX_READ on the worker; a "
            "model needs only its inputs",
        )
    if isinstance(err, ImportError):
        return StageFailed(
            f"{asked}: a library of this worker can't be used: {first_line(err)}",
            hint="reinstall it: pip install 'engine-farm[worker,cpu,rtx]', with gpu in "
            "the place of cpu where it has a GPU",
        )
    if found:
        return found[0].error(f"{asked}: {first_line(err)}", hint=found[1])
    return StageFault(f"{asked}: {type(err).__name__}: {first_line(err)} ({_where(err)})")


def said_by_others(err: BaseException) -> str:
    """The libraries' messages that led to an error, in one line; excludes the farm's own errors."""
    return " ".join(
        " ".join(_COLOUR.sub("", f"{one}").split())
        for one in _chain(err)
        if not isinstance(one, FarmError)
    )


def _chain(err: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = err
    seen: set[int] = set()
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def first_line(err: BaseException) -> str:
    """The first line of an error's message."""
    lines = [line.strip() for line in _COLOUR.sub("", str(err)).splitlines() if line.strip()]
    return lines[0][:300] if lines else "it gives no reason"


def _where(err: BaseException) -> str:
    """The last line of the farm's code in its traceback."""
    frames = traceback.extract_tb(err.__traceback__)
    ours = [f for f in frames if Path(f.filename).parent.is_relative_to(_HERE)]
    if not ours:
        return "in no line of the farm"
    return f"{Path(ours[-1].filename).relative_to(_HERE.parent)}:{ours[-1].lineno}"


def _is_general(err: StageFailed) -> bool:
    """Whether its hint is its class's default, or a stage's catch-all for a tool."""
    return err.hint in (None, type(err).default_hint) or (
        isinstance(err, CastFailed | CalibrationFailed) and bool(said_by_others(err))
    )


def _by_kind(err: StageFailed, asked: Asked) -> str:
    """The hint when neither the stage nor the table has a better one."""
    if isinstance(err, PrecisionMissed):
        return either(
            asked.better(Precision.FP16, Precision.FP32),
            "see what the preceding job left out: farm logs ID",
        )
    if isinstance(err, AccuracyDropped):
        return _accuracy(asked)
    if isinstance(err, ChildOutOfMemory):
        return memory(asked)
    return either(
        another_way(asked), "report it with the job's log: this failure is unknown to the farm"
    )


def _accuracy(asked: Asked) -> str:
    """The hint for an engine whose outputs are too far from its source's, or NaN where those aren't."""
    drop = "raise max_drop" if asked.may_drop else ""
    if asked.pruned:
        return either("prune less", drop)
    if asked.precision in CALIBRATED:
        data = "pass more calibration data that resembles real inputs"
        return either(
            data,
            "try the other calibration method",
            asked.better(Precision.FP16, Precision.BF16),
            drop,
        )
    if asked.precision is Precision.FP32:
        return either(
            asked.elsewhere(Runtime.TENSORRT, Runtime.ONNXRUNTIME),
            "look for random operators in the model (Dropout in training mode), and report it if there "
            "are none: fp32 engines should reproduce their model",
            drop,
        )
    wider = (Precision.BF16, Precision.FP32) if asked.precision is Precision.FP16 else ()
    return either(
        asked.better(*wider or (Precision.FP32,)) or asked.elsewhere(*Runtime),
        drop or "set an allowed drop on evaluation data: max_drop",
    )

"""The one error tree. A class names a fact; its docstring is the default message.

FarmError
├── Rejected                 the request can't be taken as it is (4xx)
│   ├── InvalidRequest       422
│   │   ├── SourceRefused
│   │   ├── UnknownGpu
│   │   ├── TargetUnsupported
│   │   ├── PluginRefused
│   │   └── CalibrationMissing
│   ├── NotFound             404
│   ├── Conflict             409
│   ├── DigestMismatch       400
│   ├── EmptyBlob            400
│   ├── TooLarge             413
│   ├── TooSlow              408
│   ├── KeyNeeded            401
│   ├── ScopeMissing         403
│   ├── WrongHost            421
│   ├── CrossSite            403
│   └── WrongContentType     415
├── StageFailed              a job's child ended in failure
│   ├── InvalidModel
│   ├── InvalidData
│   ├── PruningFailed
│   ├── ProfileMismatch
│   ├── FixedInputRefused
│   ├── ExportDiverged
│   ├── CastFailed
│   ├── CalibrationFailed
│   ├── EngineBuildFailed
│   ├── PrecisionMissed
│   ├── AccuracyDropped
│   ├── StageFault           the farm's own fault, not the model's
│   │   └── ResultRefused    what its process sent is no result
│   ├── InputFailed          a job before this one failed
│   └── ChildDied
│       ├── ChildTimedOut
│       ├── ChildFilledDisk
│       └── ChildOutOfMemory
├── BuildFailed, BuildCancelled, WaitTimedOut   what a client waited for
├── ExtraMissing             a command needs what isn't installed here
├── HttpError                no such call, or one that broke off
├── InternalError            the farm has a bug
├── LeaseLost                another attempt holds the job now
├── IllegalTransition        a state change that the state machine doesn't know
└── Unavailable              503, worth a retry
    ├── Busy
    │   └── TooMany          429
    ├── DatabaseUnavailable
    ├── BrokerUnavailable
    ├── SandboxMissing
    ├── StorageUnavailable
    └── StorageFull          507

All of them stand here, so that every code is known wherever an error arrives.
"""

from __future__ import annotations

import inspect
import re
from typing import Any


class FarmError(Exception):
    """Something in the farm went wrong."""

    status = 500
    retryable = False
    default_hint: str | None = None
    #: What the API asked its caller to wait before a repeat; zero where it didn't say.
    retry_after_s = 0.0

    def __init__(self, detail: str | None = None, *, hint: str | None = None) -> None:
        self.detail = detail or inspect.cleandoc(type(self).__doc__ or "").splitlines()[0]
        self.hint = hint or self.default_hint
        #: The fact in kebab case, stable for scripts: ``calibration-missing``. Its class's, but where a
        #: newer farm sent one that this one hasn't.
        self.code = code_of(type(self))
        super().__init__(self.detail)


def code_of(cls: type[FarmError]) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()


def from_code(code: str, detail: str | None = None, hint: str | None = None) -> FarmError:
    """The error with this code, as it was raised in a child or on the other side of the API."""
    error = _by_code(FarmError).get(code, FarmError)(detail, hint=hint)
    error.code = code
    return error


def _by_code(cls: type[FarmError]) -> dict[str, type[FarmError]]:
    found = {code_of(cls): cls}
    for child in cls.__subclasses__():
        found |= _by_code(child)
    return found


class Rejected(FarmError):
    """The request can't be taken as it is."""

    status = 400


class InvalidRequest(Rejected):
    """The request isn't valid."""

    status = 422


class SourceRefused(InvalidRequest):
    """This source can't be taken."""

    default_hint = (
        "hand in a torch.export program (torch.export.save(…, 'model.pt2')) or an ONNX model"
    )


class UnknownGpu(InvalidRequest):
    """The farm doesn't know this GPU tag."""


class TargetUnsupported(InvalidRequest):
    """No runtime of the farm can serve this target."""

    default_hint = "`farm targets` lists what each runtime can serve, and why not"


class PluginRefused(InvalidRequest):
    """This plugin library may not run here."""

    default_hint = (
        "have an operator sign it with a key of FARM_PLUGIN_KEYS, then: "
        "farm plugins add LIBRARY --signature FILE"
    )


class CalibrationMissing(InvalidRequest):
    """INT8 and FP8 need calibration data."""

    default_hint = (
        "pass calibration data (--calibration samples.npz), or choose fp16, or int8-dynamic for cpu"
    )


class NotFound(Rejected):
    """There is no such thing."""

    status = 404


class Conflict(Rejected):
    """The request contradicts what the farm already holds."""

    status = 409


class DigestMismatch(Rejected):
    """The bytes that arrived aren't the bytes that were announced; nothing was kept."""

    status = 400
    default_hint = "upload the file again"


class EmptyBlob(Rejected):
    """The body is empty; nothing was kept."""

    default_hint = "check the file and its path"


class TooLarge(Rejected):
    """The blob is larger than the farm takes."""

    status = 413
    default_hint = "raise FARM_MAX_UPLOAD_BYTES on the API"


class TooSlow(Rejected):
    """The request's body stopped coming, or comes too slowly; nothing was kept."""

    status = 408
    default_hint = "send it again; FARM_BODY_IDLE_S and FARM_BODY_MIN_BYTES_PER_S are the limits"


class KeyNeeded(Rejected):
    """The farm asks for a key, and the request has none that it knows."""

    status = 401
    was_given = False  #: a key, or something like it
    default_hint = (
        "send Authorization: Bearer KEY (FARM_KEY for the command line); an administrator makes keys: "
        "farm keys create"
    )


class ScopeMissing(Rejected):
    """The key doesn't allow this."""

    status = 403
    scope = ""  #: that it lacks
    default_hint = "ask an administrator for a key with that scope: farm keys create --scope …"


class WrongHost(Rejected):
    """The farm isn't reached by this name."""

    status = 421
    default_hint = "use localhost or an address, or add the name to FARM_HOSTS on the API"


class CrossSite(Rejected):
    """A page of another site may not do this."""

    status = 403
    default_hint = (
        "send it from the farm's own pages or from a program; behind a proxy, set FARM_HOSTS on the API "
        "to the name that browsers see"
    )


class WrongContentType(Rejected):
    """The request's Content-Type isn't what this call takes."""

    status = 415


class BlobDamaged(FarmError):
    """What the store holds aren't the bytes that their digest names; they were set aside."""

    status = 503
    default_hint = (
        "`farm retry` of the build makes it again; if it was uploaded, submit it again first: that heals it. "
        "And look at the disk: farm scrub"
    )


class StageFailed(FarmError):
    """A stage of the build failed."""


class InvalidModel(StageFailed):
    """The model isn't valid."""


class InvalidData(StageFailed):
    """The calibration or evaluation data don't fit the model."""


class PruningFailed(StageFailed):
    """No layer of the model can be pruned so."""

    default_hint = "prune by l1:0.5, which takes layers of any size, or submit it without prune"


class ProfileMismatch(StageFailed):
    """The profile doesn't fit the model's inputs."""


class FixedInputRefused(StageFailed):
    """An input can't be fixed to this value."""


class ExportDiverged(StageFailed):
    """The exported ONNX model doesn't give the PyTorch model's outputs."""


class CastFailed(StageFailed):
    """The model couldn't be converted to the asked precision."""


class CalibrationFailed(StageFailed):
    """The model couldn't be calibrated."""


class EngineBuildFailed(StageFailed):
    """The runtime couldn't build an engine."""


class PrecisionMissed(StageFailed):
    """Nothing in the engine would compute in the precision that it is called by."""

    default_hint = "see in the log of the calibration or the cast what it left out, and why"


class AccuracyDropped(StageFailed):
    """The engine loses more accuracy than the build allows."""

    default_hint = (
        "add calibration data, choose another method or precision, prune less, or raise max_drop"
    )


class StageFault(StageFailed):
    """The farm has a fault in this stage."""

    default_hint = (
        "this is the farm's fault, not the model's, and running it again won't help: report it with the "
        "end of the job's log, which has the traceback and the request that repeats it"
    )


class ResultRefused(StageFault):
    """What the stage's process sent isn't a result of this stage's."""

    default_hint = (
        "no stage of the farm does that: if the worker's packages are whole (pip check), take the model for "
        "hostile"
    )


class InputFailed(StageFailed):
    """A job that this one waited for failed."""

    default_hint = "look at the job that failed first"


class ChildDied(StageFailed):
    """The stage's process died."""

    retryable = True


class ChildTimedOut(ChildDied):
    """The stage ran longer than its time limit."""

    default_hint = (
        "raise FARM_JOB_TIMEOUT_S or FARM_STAGE_TIMEOUTS_S on the worker, or make the model or the data "
        "smaller"
    )


class ChildOutOfMemory(ChildDied):
    """The stage was killed for memory."""

    default_hint = (
        "allow smaller shapes or batches; or give jobs more memory: FARM_JOB_MEMORY_BYTES, or fewer "
        "FARM_CPU_SLOTS, on the worker"
    )


class ChildFilledDisk(ChildDied):
    """The stage wrote more than a job may, and was ended."""

    default_hint = "free space under the worker's FARM_HOME, or raise FARM_JOB_DISK_BYTES there"


class BuildFailed(FarmError):
    """The build failed."""

    view: Any = None  #: the build as the client that waited for it saw it: a ``schemas.BuildView``


class BuildCancelled(FarmError):
    """The build was cancelled."""


class WaitTimedOut(FarmError):
    """The build hadn't ended in the time given; it goes on."""


class ExtraMissing(FarmError):
    """What this needs isn't installed here."""

    default_hint = "pip install 'engine-farm[server]'"


class HttpError(FarmError):
    """There is no such call, or the request broke off."""

    status = 400


class InternalError(FarmError):
    """The farm has a bug here."""

    default_hint = "report it with the traceback, which is in the log of the process that failed"


class LeaseLost(FarmError):
    """Another attempt holds this job now."""


class IllegalTransition(FarmError):
    """The state machine has no such transition."""


class Unavailable(FarmError):
    """A service that the farm needs can't be reached."""

    status = 503
    retryable = True
    default_hint = "try again in a moment"


class Busy(Unavailable):
    """The farm has too much to do just now."""


class TooMany(Busy):
    """This client holds as many of the farm's places as one may."""

    status = 429
    default_hint = "let some of your other requests end first, then try again"


class DatabaseUnavailable(Unavailable):
    """The database can't be reached."""


class NotReady(FarmError):
    """The farm can't take work."""

    status = 503
    default_hint = "mend what it says; it is looked at anew with each request"


class DatabaseDamaged(FarmError):
    """The database's file isn't whole."""

    status = 503
    default_hint = (
        "stop the farm and restore farm.db from a backup, or recover what is left: "
        "sqlite3 farm.db .recover | sqlite3 recovered.db"
    )


class SchemaOutdated(FarmError):
    """The database's schema isn't the one that this code is for."""

    status = 503
    default_hint = "run: farm db upgrade"


class BrokerUnavailable(Unavailable):
    """The broker can't be reached."""


class SandboxMissing(Unavailable):
    """This worker can't keep a job to itself as FARM_SANDBOX=required wants it."""

    default_hint = (
        "see what its machine lacks: farm worker --check-sandbox; or allow less: FARM_SANDBOX=best"
    )


class StorageUnavailable(Unavailable):
    """The artifact store can't be reached."""


class StorageFull(Unavailable):
    """The artifact store is full; nothing was kept."""

    status = 507
    default_hint = "free space in the artifact store (farm gc --dry-run), then try again"

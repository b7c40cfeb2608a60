"""The farm's error tree. A class names a fact; its docstring is the default message.

FarmError
├── Rejected                 the request can't be accepted (4xx)
│   ├── InvalidRequest       422
│   │   ├── SourceRefused
│   │   ├── UnknownGpu
│   │   │   └── GpuUnsupported
│   │   ├── TargetUnsupported
│   │   ├── TritonUnsupported
│   │   ├── PluginRefused
│   │   ├── CalibrationMissing
│   │   ├── DataRefused
│   │   └── NameMissing
│   ├── NotFound             404
│   │   ├── Unsigned
│   │   ├── RepositoryUnknown
│   │   ├── ManifestUnknown
│   │   ├── BlobUnknown
│   │   └── UploadUnknown
│   ├── RepositoryNameInvalid  400
│   ├── DigestInvalid        400
│   ├── ManifestInvalid      400
│   │   └── ManifestBlobUnknown
│   ├── ChunkOutOfOrder      416
│   ├── TagTaken             403
│   ├── StillReferred        405
│   ├── Conflict             409
│   │   ├── NameAmbiguous
│   │   ├── IdAmbiguous
│   │   └── WorkerNameTaken
│   ├── DigestMismatch       400
│   ├── EmptyBlob            400
│   ├── SignatureRefused     400
│   ├── SigningKeyUnknown    400
│   ├── TooLarge             413
│   ├── UploadsUnused        413
│   ├── TooSlow              408
│   ├── KeyNeeded            401
│   │   └── TokenRefused
│   ├── ScopeMissing         403
│   ├── JoinRefused          403
│   ├── QuotaExceeded        403
│   ├── WrongHost            421
│   ├── CrossSite            403
│   └── WrongContentType     415
├── ResultDeleted            a job's outputs were deleted
├── StageFailed              a job's child process failed
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
│   ├── LatencyMissed
│   ├── StageFault           a bug in the farm, not in the model
│   │   └── ResultRefused    its process sent an invalid result
│   ├── InputFailed          a job before this one failed
│   └── ChildDied
│       ├── ChildTimedOut
│       ├── ChildFilledDisk
│       └── ChildOutOfMemory
├── BuildFailed, BuildCancelled, WaitTimedOut   how a client's wait ended
├── TritonLoadFailed         Triton can't load a model that farm sync gave it
├── ExtraMissing             a command needs an extra that isn't installed
├── HttpError                no such call, or the request was aborted
├── InternalError            the farm has a bug
├── LeaseLost                another attempt holds the job now
├── IllegalTransition        a transition the state machine doesn't have
└── Unavailable              503, worth a retry
    ├── Busy
    │   └── TooMany          429
    │       └── RateExceeded
    ├── DatabaseUnavailable
    ├── IssuerUnavailable
    ├── BrokerUnavailable
    ├── SandboxMissing
    ├── StageInterrupted
    ├── SigningFailed
    ├── StorageUnavailable
    └── StorageFull          507

All of them are defined here, so that every process knows every code.
"""

from __future__ import annotations

import inspect
import re
from typing import Any


class FarmError(Exception):
    """Something in the farm went wrong."""

    status = 500
    retryable = False
    recurs = False  #: whether the same job would fail again with the same tools
    default_hint: str | None = None
    #: Seconds the API asked the caller to wait before a retry; zero if it didn't.
    retry_after_s = 0.0

    def __init__(self, detail: str | None = None, *, hint: str | None = None) -> None:
        self.detail = detail or inspect.cleandoc(type(self).__doc__ or "").splitlines()[0]
        self.hint = hint or self.default_hint
        #: The class's name in kebab case, stable for scripts: ``calibration-missing``. Differs from the
        #: class's only if a newer farm sent a code unknown here.
        self.code = code_of(type(self))
        super().__init__(self.detail)


def code_of(cls: type[FarmError]) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()


def from_code(code: str, detail: str | None = None, hint: str | None = None) -> FarmError:
    """The error with this code, as it was raised in a child or on the other side of the API."""
    error = _by_code(FarmError).get(code, FarmError)(detail, hint=hint)
    error.code = code
    return error


def is_code(code: str) -> bool:
    """Whether this is the code of one of the farm's errors."""
    return code in _by_code(FarmError)


def codes(*roots: type[FarmError]) -> list[str]:
    """The codes of these errors and of all kinds of them."""
    return sorted({code for root in roots for code in _by_code(root)})


def recurs(code: str) -> bool:
    """Whether a job that failed with this code would do so again with the same tools."""
    return _by_code(FarmError).get(code, FarmError).recurs


def _by_code(cls: type[FarmError]) -> dict[str, type[FarmError]]:
    found = {code_of(cls): cls}
    for child in cls.__subclasses__():
        found |= _by_code(child)
    return found


class Rejected(FarmError):
    """The request can't be accepted."""

    status = 400


class InvalidRequest(Rejected):
    """The request isn't valid."""

    status = 422


class SourceRefused(InvalidRequest):
    """This source isn't accepted."""

    default_hint = (
        "submit a torch.export program (torch.export.save(…, 'model.pt2')) or an ONNX model"
    )


class UnknownGpu(InvalidRequest):
    """The farm doesn't know this GPU tag."""


class GpuUnsupported(UnknownGpu):
    """The farm builds nothing under this GPU's name."""

    default_hint = "`farm targets` lists every tag; cpu is one of them"


class TargetUnsupported(InvalidRequest):
    """None of the farm's runtimes supports this target."""

    default_hint = "`farm targets` lists what each runtime supports, and why not"


class TritonUnsupported(InvalidRequest):
    """Triton can't load this engine."""


class PluginRefused(InvalidRequest):
    """This plugin library isn't allowed here."""

    default_hint = (
        "have an operator sign it with a key in FARM_PLUGIN_KEYS, then: "
        "farm plugins add LIBRARY --signature FILE"
    )


class CalibrationMissing(InvalidRequest):
    """INT8 and FP8 need calibration data."""

    default_hint = (
        "pass calibration data (--calibration samples.npz), or choose fp16, or int8-dynamic for cpu"
    )


class DataRefused(InvalidRequest):
    """These data don't fit the model's inputs."""


class NameMissing(InvalidRequest):
    """The model needs a name."""

    default_hint = "pass its name: --name (name=…)"


class NotFound(Rejected):
    """Not found."""

    status = 404


class Unsigned(NotFound):
    """This farm has no signing key, so its engines aren't signed."""

    default_hint = "make one where the API runs: farm signing rotate"


class SignatureRefused(Rejected):
    """The signature, or what it covers, isn't the farm's."""

    default_hint = "don't use this engine, and alert the farm's operator"


class SigningKeyUnknown(Rejected):
    """Nobody has said that this farm's signing key is the right one."""


class RepositoryUnknown(NotFound):
    """There is no such repository."""


class ManifestUnknown(NotFound):
    """The repository has no such manifest."""


class BlobUnknown(NotFound):
    """The repository has no such blob."""


class UploadUnknown(NotFound):
    """There is no such upload: it ended, or was left for too long."""

    default_hint = "begin another: POST /v2/NAME/blobs/uploads/"


class RepositoryNameInvalid(Rejected):
    """This can't be the name of a repository, or of a tag."""

    default_hint = (
        "a repository's name is lower-case letters and digits, with . _ __ - between them and / between its "
        "parts; a tag is up to 128 letters, digits, and . _ -"
    )


class DigestInvalid(Rejected):
    """This isn't a digest the farm knows."""

    default_hint = "a digest is sha256: and 64 hexadecimal digits, or sha512: and 128"


class ManifestInvalid(Rejected):
    """This manifest isn't accepted."""

    default_hint = "push an OCI image manifest or image index, with its media type as Content-Type"


class ManifestBlobUnknown(ManifestInvalid):
    """The manifest refers to what the repository doesn't have."""

    default_hint = "push the blobs and the manifests it refers to first"


class ChunkOutOfOrder(Rejected):
    """The chunk doesn't begin where the upload ends."""

    status = 416
    default_hint = "GET the upload: Range says how far it came"


class TagTaken(Rejected):
    """This tag is the farm's own."""

    status = 403
    default_hint = (
        "push it by another tag, such as upload-1: versions come from submissions, and aliases move by "
        "farm promote"
    )


class StillReferred(Rejected):
    """Something of the farm refers to it."""

    status = 405


class Conflict(Rejected):
    """The request conflicts with the farm's current state."""

    status = 409


class NameAmbiguous(Conflict):
    """Several models' names differ from this one in case alone."""


class IdAmbiguous(Conflict):
    """Several ids begin like this one."""

    default_hint = "give more of it"


class WorkerNameTaken(Conflict):
    """Another worker has this name."""

    default_hint = "give this machine another name: farm worker --name NAME"


class DigestMismatch(Rejected):
    """The received bytes don't match the announced digest; nothing was stored."""

    status = 400
    default_hint = "upload the file again"


class EmptyBlob(Rejected):
    """The body is empty; nothing was stored."""

    default_hint = "check the file and its path"


class TooLarge(Rejected):
    """The blob is larger than the farm accepts."""

    status = 413
    default_hint = "raise FARM_MAX_UPLOAD_BYTES on the API"


class UploadsUnused(Rejected):
    """This key holds as much as it may in uploads that no build uses."""

    status = 413
    default_hint = "submit them, or delete them: farm delete DIGEST"


class TooSlow(Rejected):
    """The request body stalled or is too slow; nothing was stored."""

    status = 408
    default_hint = "send it again; the limits are FARM_BODY_IDLE_S and FARM_BODY_MIN_BYTES_PER_S"


class KeyNeeded(Rejected):
    """The farm requires a key, and the request has no valid one."""

    status = 401
    was_given = False  #: a key, or something like it
    default_hint = (
        "send Authorization: Bearer KEY (FARM_KEY for the command line, FARM_TOKEN for an issuer's token); "
        "an administrator creates keys: farm keys create"
    )


class TokenRefused(KeyNeeded):
    """The farm doesn't accept this token."""

    was_given = True
    default_hint = "get another one from the issuer, or use a key: farm keys create makes one"


class ScopeMissing(Rejected):
    """The key doesn't allow this."""

    status = 403
    scope = ""  #: that it lacks
    default_hint = "ask an administrator for a key with that scope: farm keys create --scope …"


class JoinRefused(Rejected):
    """This join token doesn't open the farm."""

    status = 403
    default_hint = "an administrator makes another: farm tokens create --worker"


class QuotaExceeded(Rejected):
    """This key has used up one of its limits."""

    status = 403
    quota = ""  #: which: a ``farm.specs.limits.Quota``
    default_hint = "see what is used and what is left: farm whoami"


class WrongHost(Rejected):
    """The farm doesn't accept this host name."""

    status = 421
    default_hint = "use localhost or an IP address, or add the name to FARM_HOSTS on the API"


class CrossSite(Rejected):
    """Cross-site requests aren't allowed here."""

    status = 403
    default_hint = (
        "send it from the farm's own pages or from a program; behind a proxy, set FARM_HOSTS on the API "
        "to the name browsers see"
    )


class WrongContentType(Rejected):
    """This call doesn't accept the request's Content-Type."""

    status = 415


class BlobDamaged(FarmError):
    """The stored bytes don't match their digest; they were quarantined."""

    status = 503
    default_hint = (
        "run farm retry on the build to rebuild it; if it was uploaded, submit it again first. "
        "Then check the disk: farm scrub"
    )


class ResultDeleted(FarmError):
    """The job succeeded, and its outputs have been deleted since."""

    default_hint = "submit the model again: what is missing is built again"


class StageFailed(FarmError):
    """A stage of the build failed."""


class InvalidModel(StageFailed):
    """The model isn't valid."""

    recurs = True


class InvalidData(StageFailed):
    """The calibration or evaluation data doesn't fit the model."""

    recurs = True


class PruningFailed(StageFailed):
    """No layer of the model can be pruned this way."""

    recurs = True
    default_hint = "use l1:0.5, which works for layers of any size, or submit without prune"


class ProfileMismatch(StageFailed):
    """The profile doesn't fit the model's inputs."""

    recurs = True


class FixedInputRefused(StageFailed):
    """An input can't be fixed to this value."""

    recurs = True


class ExportDiverged(StageFailed):
    """The exported ONNX model's outputs differ from the PyTorch model's."""

    recurs = True


class CastFailed(StageFailed):
    """The model couldn't be converted to the requested precision."""

    recurs = True


class CalibrationFailed(StageFailed):
    """The model couldn't be calibrated."""

    recurs = True


class EngineBuildFailed(StageFailed):
    """The runtime couldn't build an engine."""


class PrecisionMissed(StageFailed):
    """Nothing in the engine would compute in the requested precision."""

    recurs = True
    default_hint = "see the log of the calibrate or cast job for what it left out, and why"


class AccuracyDropped(StageFailed):
    """The engine lost more accuracy than the build allows."""

    recurs = True
    default_hint = (
        "add calibration data, choose another method or precision, prune less, or raise max_drop"
    )


class LatencyMissed(StageFailed):
    """What keeps the accuracy isn't as fast as the build asks."""

    default_hint = "raise max_latency_ratio, or max_drop"


class StageFault(StageFailed):
    """The farm has a bug in this stage."""

    default_hint = (
        "this is a bug in the farm, not in the model, and a retry won't help: report it with the "
        "end of the job's log, which has the traceback and the request that reproduces it"
    )


class ResultRefused(StageFault):
    """The stage's process sent an invalid result."""

    default_hint = (
        "no stage of the farm does that: if the worker's packages are intact (pip check), treat the model as "
        "hostile"
    )


class InputFailed(StageFailed):
    """A job that this one depends on failed."""

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
    """The stage ran out of memory and was killed."""

    default_hint = (
        "allow smaller shapes or batches; or give jobs more memory: FARM_JOB_MEMORY_BYTES, or fewer "
        "FARM_CPU_SLOTS, on the worker"
    )


class ChildFilledDisk(ChildDied):
    """The stage exceeded the disk limit of a job and was killed."""

    default_hint = "free space under the worker's FARM_HOME, or raise FARM_JOB_DISK_BYTES there"


class BuildFailed(FarmError):
    """The build failed."""

    view: Any = None  #: the build as the client that waited for it saw it: a ``schemas.BuildView``


class BuildCancelled(FarmError):
    """The build was cancelled."""


class WaitTimedOut(FarmError):
    """The build didn't end within the given time; it continues."""


class TritonLoadFailed(FarmError):
    """Triton couldn't load the model; what it served before stays."""


class ExtraMissing(FarmError):
    """A package this needs isn't installed here."""

    default_hint = "pip install 'engine-farm[server]'"


class HttpError(FarmError):
    """There is no such call, or the request was aborted."""

    status = 400


class InternalError(FarmError):
    """The farm has a bug here."""

    default_hint = "report it with the traceback from the failed process's log"


class LeaseLost(FarmError):
    """Another attempt holds this job now."""


class IllegalTransition(FarmError):
    """The state machine has no such transition."""


class Unavailable(FarmError):
    """A service that the farm depends on is unreachable."""

    status = 503
    retryable = True
    default_hint = "try again in a moment"


class Busy(Unavailable):
    """The farm is overloaded right now."""


class TooMany(Busy):
    """This client has reached its limit of concurrent requests."""

    status = 429
    default_hint = "wait for some of your other requests to finish, then try again"


class RateExceeded(TooMany):
    """This key has sent more requests than it may."""

    rate: Any = None  #: what is left, and when there is more: a ``farm.quotas.rates.Rate``
    default_hint = "wait as long as Retry-After says"


class DatabaseUnavailable(Unavailable):
    """The database can't be reached."""


class NotReady(FarmError):
    """The farm can't take work."""

    status = 503
    default_hint = "fix what the detail names; readiness is rechecked on every request"


class DatabaseDamaged(FarmError):
    """The database file is damaged."""

    status = 503
    default_hint = (
        "stop the farm and restore farm.db from a backup, or recover what is left: "
        "sqlite3 farm.db .recover | sqlite3 recovered.db"
    )


class SchemaOutdated(FarmError):
    """The database schema doesn't match this version of the farm."""

    status = 503
    default_hint = "run: farm db upgrade"


class IssuerUnavailable(Unavailable):
    """The issuer of tokens doesn't give its keys."""

    default_hint = (
        "try again in a moment, or use a key; an operator checks FARM_OIDC and the issuer"
    )


class BrokerUnavailable(Unavailable):
    """The broker can't be reached."""


class SandboxMissing(Unavailable):
    """This worker can't isolate jobs as FARM_SANDBOX=required demands."""

    default_hint = (
        "see what the machine lacks: farm worker --check-sandbox; or accept less: FARM_SANDBOX=best"
    )


class StageInterrupted(Unavailable):
    """A stage's processes were ended from outside of the farm."""


class SigningFailed(Unavailable):
    """The farm can't use its signing key."""

    default_hint = "check FARM_SIGNING_KEY or FARM_SIGNING_COMMAND where the API runs"


class StorageUnavailable(Unavailable):
    """The artifact store can't be reached."""


class StorageFull(Unavailable):
    """The artifact store is full; nothing was stored."""

    status = 507
    default_hint = "free space in the artifact store (farm gc --dry-run), then try again"

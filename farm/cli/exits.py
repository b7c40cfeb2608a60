"""The command line's exit codes."""

from __future__ import annotations

from farm.errors import (
    BuildCancelled,
    BuildFailed,
    DigestMismatch,
    ExtraMissing,
    FarmError,
    NotFound,
    SignatureRefused,
    StageFailed,
    TritonLoadFailed,
    WaitTimedOut,
)

OK = 0
FAILED = 1
USAGE = 2
NOT_FOUND = 3
UNAVAILABLE = 4
DOUBTFUL = 5
TIMED_OUT = 6
INTERRUPTED = 130

_ENDED_BADLY = (
    BuildFailed,
    BuildCancelled,
    DigestMismatch,
    SignatureRefused,
    StageFailed,
    TritonLoadFailed,
)

#: For ``farm --help``.
EPILOG = (
    f"Exit codes: {OK} ok · {FAILED} the build failed or was cancelled, a download doesn't match "
    f"the registry, an engine of several is missing, or Triton refused a model · "
    f"{USAGE} usage error, or the farm refused the request (4xx) · "
    f"{NOT_FOUND} not found · {UNAVAILABLE} the farm is unreachable or had an error (5xx) · "
    f"{DOUBTFUL} the build succeeded, but an engine is doubtful · "
    f"{TIMED_OUT} --timeout was over; a build goes on, an inference is cancelled · {INTERRUPTED} Ctrl+C."
)


def of(error: FarmError) -> int:
    """The exit code for an error."""
    if isinstance(error, _ENDED_BADLY):
        return FAILED
    if isinstance(error, WaitTimedOut):
        return TIMED_OUT
    if isinstance(error, NotFound) or error.status == NotFound.status:
        return NOT_FOUND
    if isinstance(error, ExtraMissing):
        return USAGE
    return USAGE if 400 <= error.status < 500 else UNAVAILABLE

"""A job's environment, by an allow-list, since a secret can have any name.

A worker's environment holds the URLs and passwords of the broker and the database. The fork server is started
without them, and erases whatever else it inherits before it imports anything, including from
``/proc/PID/environ``, where the kernel exposes it.
"""

from __future__ import annotations

import fnmatch
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from workers.sandbox import kernel

#: Names and patterns: where libraries are found, how they compute, locale.
_ALLOWED = """
    PATH LANG LANGUAGE LC_* TZ TERM NO_COLOR VIRTUAL_ENV PYTHON* LD_LIBRARY_PATH LD_PRELOAD
    GLIBC_TUNABLES MALLOC_* OMP_* GOMP_* KMP_* MKL_* OPENBLAS_* NUMEXPR_* BLIS_* DNNL_* ONEDNN_*
    CUDA_* NVIDIA_* CUDNN_* CUBLAS_* NVRTC_* TORCH_* TORCHINDUCTOR_* PYTORCH_* TRITON_* ORT_*
    TF_CPP_* TF_ENABLE_* TF_NUM_* TF_FORCE_* TF_GPU_* TF_USE_LEGACY_KERAS XLA_FLAGS
    HF_HUB_OFFLINE TRANSFORMERS_OFFLINE TQDM_* CC CXX COVERAGE_PROCESS_START
    FARM_SANDBOX
""".split()
#: Never allowed, whatever the prefix.
_SECRET = ("*TOKEN*", "*SECRET*", "*PASSW*", "*CREDENTIAL*", "*API_KEY*", "*ACCESS_KEY*")
#: The variable of the setting that allows more names.
MORE = "FARM_SANDBOX_ENVIRONMENT"
#: A job's own limit, by the setting's name: for a stage that starts a process and must keep below it.
MEMORY = "FARM_JOB_MEMORY_BYTES"
#: Variables that a worker reads after it has started.
_WORKERS = ("HOME", "USER", "TMPDIR", "FARM_WORKER_HOST", "FARM_CHAOS_CLOCK", MORE)
_NOWHERE = "/nonexistent"


def allowed(environment: Mapping[str, str], more: Iterable[str] = ()) -> dict[str, str]:
    """The part of an environment that a job may see.

    Parameters:
        more: names that an operator adds.
    """
    named = frozenset(more)
    return {
        name: value
        for name, value in environment.items()
        if name in named or (_is_any(name, _ALLOWED) and not _is_any(name, _SECRET))
    }


def _is_any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def more() -> tuple[str, ...]:
    """The names that an operator adds, from the setting."""
    return tuple(one.strip() for one in os.environ.get(MORE, "").split(",") if one.strip())


def of_job(folder: Path) -> dict[str, str]:
    """Variables that make a job's libraries keep their files in this folder."""
    at = str(folder)
    homes = (
        "HOME TMPDIR XDG_CACHE_HOME XDG_CONFIG_HOME XDG_DATA_HOME TORCHINDUCTOR_CACHE_DIR "
        "TRITON_CACHE_DIR CUDA_CACHE_PATH HF_HOME TORCH_HOME MPLCONFIGDIR"
    )
    return dict.fromkeys(homes.split(), at) | {"USER": "job", "LOGNAME": "job"}


def replace(environment: Mapping[str, str]) -> None:
    """Replace the environment of this process and of those it starts."""
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # force a new lookup


def of_worker(more: Iterable[str] = ()) -> dict[str, str]:
    """The environment that a worker still needs after it has read its settings."""
    return allowed(os.environ, (*_WORKERS, *more))


@contextmanager
def allowed_only(more: Iterable[str] = ()) -> Iterator[None]:
    """Processes started meanwhile never hold the other variables in memory. For a single-threaded process."""
    before = dict(os.environ)
    kept = set(of_worker(more))
    try:
        for name in before.keys() - kept:
            del os.environ[name]
        yield
    finally:
        os.environ.update(before)


def forget(more: Iterable[str] = ()) -> None:
    """Keep only what a job may see, and wipe the rest from ``/proc/self/environ``.

    For the fork server. Its libraries find no home folder: every job would inherit files opened there.
    """
    kept = allowed(os.environ, more) | {"HOME": _NOWHERE}
    replace(kept)
    with suppress(OSError, ValueError, IndexError):
        # Fields 50 and 51: where the kernel put the environment at the start.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[47]), int(fields[48])
        if 0 < start < end:
            kernel.wipe(start, end)

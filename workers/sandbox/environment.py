"""The environment of a job: by an allow-list, since secrets have any name.

The process that jobs are forked from is started with its worker's environment, which holds the URLs and
passwords of the broker and the database. It forgets them before it imports anything, also where the
kernel shows them: ``/proc/PID/environ``.
"""

from __future__ import annotations

import fnmatch
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from workers.sandbox import kernel

#: Names and patterns. What libraries are found by, how they compute, and how they speak.
_ALLOWED = """
    PATH LANG LANGUAGE LC_* TZ TERM NO_COLOR VIRTUAL_ENV PYTHON* LD_LIBRARY_PATH LD_PRELOAD
    GLIBC_TUNABLES MALLOC_* OMP_* GOMP_* KMP_* MKL_* OPENBLAS_* NUMEXPR_* BLIS_* DNNL_* ONEDNN_*
    CUDA_* NVIDIA_* CUDNN_* CUBLAS_* NVRTC_* TORCH_* TORCHINDUCTOR_* PYTORCH_* TRITON_* ORT_*
    TF_CPP_* TF_ENABLE_* TF_NUM_* TF_FORCE_* TF_GPU_* TF_USE_LEGACY_KERAS XLA_FLAGS
    HF_HUB_OFFLINE TRANSFORMERS_OFFLINE TQDM_* CC CXX COVERAGE_PROCESS_START
    FARM_SANDBOX
""".split()
#: Never, whatever it begins with.
_SECRET = ("*TOKEN*", "*SECRET*", "*PASSW*", "*CREDENTIAL*", "*API_KEY*", "*ACCESS_KEY*")
#: The setting that names more of them, by its variable.
MORE = "FARM_SANDBOX_ENVIRONMENT"
#: What a worker looks up late.
_WORKERS = ("HOME", "USER", "TMPDIR", "FARM_WORKER_HOST", "FARM_CHAOS_CLOCK", MORE)
_NOWHERE = "/nonexistent"


def allowed(environment: Mapping[str, str], more: Iterable[str] = ()) -> dict[str, str]:
    """What a job may see of an environment.

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
    """The names that an operator adds, as the setting has them."""
    return tuple(one.strip() for one in os.environ.get(MORE, "").split(",") if one.strip())


def of_job(folder: Path) -> dict[str, str]:
    """Where a job's libraries keep what they keep: all of it in this folder."""
    at = str(folder)
    homes = (
        "HOME TMPDIR XDG_CACHE_HOME XDG_CONFIG_HOME XDG_DATA_HOME TORCHINDUCTOR_CACHE_DIR "
        "TRITON_CACHE_DIR CUDA_CACHE_PATH HF_HOME TORCH_HOME MPLCONFIGDIR"
    )
    return dict.fromkeys(homes.split(), at) | {"USER": "job", "LOGNAME": "job"}


def replace(environment: Mapping[str, str]) -> None:
    """Make this the whole environment of this process and of those that it starts."""
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # to be looked up again


def of_worker(more: Iterable[str] = ()) -> dict[str, str]:
    """What a worker itself still needs when it has read its settings."""
    return allowed(os.environ, (*_WORKERS, *more))


@contextmanager
def allowed_only(more: Iterable[str] = ()) -> Iterator[None]:
    """What is started meanwhile never has the rest in its memory. For a process of one thread."""
    before = dict(os.environ)
    kept = set(of_worker(more))
    try:
        for name in before.keys() - kept:
            del os.environ[name]
        yield
    finally:
        os.environ.update(before)


def forget(more: Iterable[str] = ()) -> None:
    """Keep only what a job may see, and wipe what the kernel shows of the rest.

    For the process that jobs are forked from. Its libraries find no home: what they would keep there,
    every job would have open.
    """
    kept = allowed(os.environ, more) | {"HOME": _NOWHERE}
    replace(kept)
    with suppress(OSError, ValueError, IndexError):
        # Fields 50 and 51: where the kernel put the environment at the start.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[47]), int(fields[48])
        if 0 < start < end:
            kernel.wipe(start, end)

"""A job's sandbox, from the worker's settings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from farm.settings import Settings
from workers.sandbox.features import Mode
from workers.sandbox.limits import Limits
from workers.sandbox.policy import Sandbox


def sandbox_of(
    settings: Settings, workdir: Path, inputs: Iterable[Path], *, is_gpu: bool, timeout_s: float
) -> Sandbox:
    """The sandbox of a job on a worker with these settings.

    Parameters:
        inputs: files to read; those in the work folder needn't be listed.
    """
    limits = Limits.of_machine(
        workdir,
        slots=1 if is_gpu else settings.cpu_slots,
        timeout_s=timeout_s,
        memory_bytes=settings.job_memory_bytes,
        disk_bytes=settings.job_disk_bytes,
    )
    return Sandbox(
        workdir=workdir,
        reads=tuple(one for one in inputs if not one.is_relative_to(workdir)),
        limits=limits,
        mode=Mode(settings.sandbox),
        gpu=is_gpu,
        own_user=settings.sandbox_own_user,
        libraries=settings.sandbox_read,
        environment=settings.sandbox_environment,
    )

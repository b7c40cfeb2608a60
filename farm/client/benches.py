"""Benches: every engine of a model for a GPU, and the best of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from farm.client import model_folders
from farm.client.build import Build
from farm.client.noun import given, part
from farm.client.objects import Source
from farm.client.submission import Files, checked, data_and_gates
from farm.client.submit import Submissions
from farm.errors import BuildFailed
from farm.formats.sources import SAVED_MODEL
from farm.schemas.bench import Bench, ModelBench
from farm.schemas.forecast import DryRun
from farm.schemas.submission import BenchOptions
from farm.specs import digests


class Benches(Submissions):
    """Benches models: a file, or a model that the farm has."""

    def bench(
        self,
        model: str | Path,
        gpu: str,
        *,
        build: bool = True,
        goal: str | None = None,
        batch: int | None = None,
        timeout: float | None = None,
        **submission: Any,
    ) -> Bench:
        """Build a model in every runtime and precision for a GPU, wait, and return the table.

        Engines that can't be built are in the table with their error, or among ``left_out``.

        Parameters:
            model: a file or a SavedModel's folder, as in ``submit``, or the name of a model.
            build: whether to build what is missing of a model that the farm has.
            goal: ``latency`` or ``throughput``; pulls for this GPU follow it from then on.
            batch: the batch to rank at, by default the profile's opt.
            timeout: seconds to wait; the build continues after a timeout.
            submission: as in ``submit_bench``.

        Raises:
            NotFound, InvalidRequest, BuildCancelled, WaitTimedOut, Unavailable
        """
        if not build:
            return self.bench_table(str(model), gpu, goal=goal, batch=batch, **submission)
        made = self.submit_bench(model, [gpu], goal=goal, batch=batch, **submission)
        with suppress(BuildFailed):  # the table tells which engines failed, and why
            made.wait(timeout)
        return self.bench_table(made.view.model, gpu, version=made.view.version)

    def bench_table(
        self,
        model: str,
        gpu: str,
        *,
        goal: str | None = None,
        batch: int | None = None,
        version: int | None = None,
    ) -> Bench:
        """A model's engines for a GPU, best first. Nothing is built.

        Parameters:
            goal, batch: instead of the goal kept for the version and the GPU.

        Raises:
            NotFound, UnknownGpu
        """
        query = {"gpu": gpu, "goal": goal, "batch": batch, "version": version}
        return self.http.read(Bench, "GET", _path(model), params=given(query))

    def submit_bench(
        self,
        model: Source,
        gpus: Sequence[str],
        *,
        goal: str | None = None,
        batch: int | None = None,
        wait_for_workers: bool = False,
        precisions: Sequence[str] = (),
        version: int | None = None,
        **submission: Any,
    ) -> Build:
        """Submit a bench: a file's, or of a model that the farm has what is missing.

        Parameters:
            wait_for_workers: build also what no online worker can, once one joins.
            precisions: only these; by default every precision.
            version: of a model that the farm has, by default the newest.
            submission: for a file as in ``submit``; for a model instead of what its builds had:
                ``calibration`` and its options, ``evaluation`` and its options, ``profiles``, ``options``,
                ``min_agreement``, ``max_error``, ``output_errors``, ``priority``, ``labels``.

        Raises:
            InvalidRequest: or a subclass; nothing was submitted.
            NotFound, Unavailable
        """
        options = {"goal": goal, "batch": batch, "wait_for_workers": wait_for_workers}
        if is_file(model):
            bench = checked(BenchOptions, **options)
            return self.submit(
                model, targets=gpus, precisions=precisions, bench=bench, **submission
            )
        key, progress = (submission.pop(name, None) for name in ("idempotency_key", "progress"))
        files = Files(progress)
        request = _of_model(files, options, gpus, precisions, version, **submission)
        return self._post(_path(model), request, files, key, progress)

    def dry_run_bench(
        self,
        model: Source,
        gpus: Sequence[str],
        *,
        goal: str | None = None,
        batch: int | None = None,
        wait_for_workers: bool = False,
        precisions: Sequence[str] = (),
        version: int | None = None,
        **submission: Any,
    ) -> DryRun:
        """What a bench would build, and how long it would take. Nothing is uploaded, and nothing is kept.

        Parameters:
            submission: as in ``submit_bench``, but for ``idempotency_key``.

        Raises:
            FarmError: as ``submit_bench`` would.
        """
        options = {"goal": goal, "batch": batch, "wait_for_workers": wait_for_workers}
        if is_file(model):
            bench = checked(BenchOptions, **options)
            return self.dry_run(
                model, targets=gpus, precisions=precisions, bench=bench, **submission
            )
        files = Files(submission.pop("progress", None))
        request = _of_model(files, options, gpus, precisions, version, **submission)
        return self.http.read(DryRun, "POST", _path(model), params={"dry_run": True}, json=request)


def _path(model: Source) -> str:
    return f"/v1/models/{part(str(model))}/bench"


def _of_model(
    files: Files,
    bench: Mapping[str, Any],
    gpus: Sequence[str],
    precisions: Sequence[str],
    version: int | None,
    *,
    profiles: Sequence[Mapping[str, Any]] | None = None,
    options: Mapping[str, Any] | None = None,
    priority: int = 5,
    labels: Mapping[str, str] | None = None,
    **data: Any,
) -> dict[str, Any]:
    """The request of a bench of a model that the farm has.

    Parameters:
        data: data and gates, as ``submission.data_and_gates`` takes them.
    """
    fields = {
        "targets": list(gpus),
        "version": version,
        "precisions": list(precisions) or None,
        "profiles": list(profiles) if profiles else None,
        "options": dict(options) if options else None,
        "labels": dict(labels) if labels else None,
    }
    request = checked(
        ModelBench,
        **given(dict(bench) | fields),
        **data_and_gates(files, **data),
        priority=priority,
    )
    return request.model_dump(mode="json", exclude_unset=True)


def is_file(model: Source) -> bool:
    """Whether it is a source, as an object, a file, a model's folder or a digest, and not a model's name."""
    if not isinstance(model, str | Path):
        return True
    path = Path(model)
    is_model = (path / SAVED_MODEL).is_file() or (path.is_dir() and model_folders.is_one(path))
    return digests.means(str(model)) or path.is_file() or is_model

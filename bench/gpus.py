"""GPU jobs spread over the GPUs of a machine."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2

from bench.cold import HOME, upload
from bench.processes import api_without_worker, module, wait_for
from bench.table import Row, row
from farm.machine import gpus
from farm.settings import Settings

#: Of the scaling: so many models for each GPU, a build and a measurement each.
MODELS_A_GPU = 3


def scaling() -> Iterator[Row]:
    """GPU jobs a second with 1, 2, 4 … GPUs; every job sees a GPU of its own."""
    found = gpus.visible(gpus.discover(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    one: float | None = None
    count = 1
    while count <= len(found):
        rate, at_once = _spread([gpu.uuid for gpu in found[:count]], found[0].tags[-1])
        one = one or rate
        print(f"{count} GPUs: {rate:.3f} jobs/s, on {at_once} UUIDs at once", flush=True)
        yield row(f"GPU jobs a second with {count} GPUs, beside one", rate, one, "/s", digits=3) | {
            "goal": f"{at_once} at once"
        }
        count *= 2


@contextmanager
def farm_of(uuids: Sequence[str]) -> Iterator[httpx2.Client]:
    """A farm with a CPU worker and one for each of these GPUs."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(uuids)
    os.environ["FARM_CPU_SLOTS"] = str(max(2, (os.cpu_count() or 2) // 4))
    HOME.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=HOME) as home:
        settings = Settings(home=Path(home))
        with api_without_worker(settings) as client, module("workers", home=settings.home):
            wait_for(
                lambda: sum(w["online"] for w in client.get("/v1/workers").json()) > len(uuids),
                seconds=180,
            )
            yield client


def _spread(uuids: Sequence[str], tag: str) -> tuple[float, int]:
    """Jobs a second of these GPUs, and the most UUIDs that had a job at the same time."""
    with farm_of(uuids) as client, tempfile.TemporaryDirectory() as folder:
        ids = []
        for seed in range(MODELS_A_GPU * len(uuids)):
            source = _small_net(Path(folder) / f"{seed}.pt2", seed)
            request = {
                "model": f"net{seed}",
                "source": {"digest": upload(client, source), "format": "pt2"},
                "precisions": ["fp32"],
                "targets": [f"onnxruntime:{tag}"],
            }
            ids.append(client.post("/v1/builds", json=request).raise_for_status().json()["id"])
        builds = [_ended(client, build) for build in ids]
        uuid_of = {w["name"]: w["gpu_uuid"] for w in client.get("/v1/workers").json()}
    jobs = [
        (*(datetime.fromisoformat(job[f"{end}_at"]) for end in ("started", "finished")), uuid)
        for build in builds
        for job in build["jobs"]
        if (uuid := uuid_of[job["worker"]])
    ]
    span = max(end for _, end, _ in jobs) - min(start for start, _, _ in jobs)
    at_once = max(
        len({uuid for start, end, uuid in jobs if start <= at < end}) for at, _, _ in jobs
    )
    return len(jobs) / span.total_seconds(), at_once


def _ended(client: httpx2.Client, build: str) -> Mapping[str, Any]:
    while True:
        view = client.get(f"/v1/builds/{build}").json()
        if view["state"] == "succeeded":
            return dict(view)
        if view["state"] in ("failed", "cancelled"):
            sys.exit(f"the build {view['state']}: {json.dumps(view['error'])}")
        time.sleep(0.5)


def _small_net(path: Path, seed: int) -> Path:
    import torch
    from torch import nn

    from workers.demo import save_program

    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
    )
    save_program(net.eval(), torch.zeros(2, 3, 64, 64), path)
    return path

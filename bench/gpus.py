"""What only a machine with GPUs can show: engines timed on one, and jobs spread over several."""

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

from bench.cold import HOME, finish, upload
from bench.processes import ROOT, api_without_worker, module, wait_for
from bench.table import Row, row
from farm.machine import gpus
from farm.settings import Settings

#: Of the scaling: so many models for each GPU, a build and a measurement each.
MODELS_A_GPU = 3
_FIGURES = ("eager", "eager_typed", "eager_cuda_graph", "compiled", "compiled_cuda_graph")


def engines() -> Iterator[Row]:
    """ResNet-50 and BERT-base by ONNX Runtime's CUDA provider, beside PyTorch on the same GPU."""
    found = gpus.discover()
    if not found:
        print("no GPU here: skipped")
        return
    HOME.mkdir(exist_ok=True)
    tag = found[0].tags[-1]
    with _farm([found[0].uuid]) as client, tempfile.TemporaryDirectory() as folder:
        for model, path in (
            ("resnet50", _resnet50(Path(folder))),
            ("bert-base", _bert_base(Path(folder))),
        ):
            for precision in ("fp32", "fp16", "bf16"):
                engine = _build(client, model, path, tag, precision)
                if engine is not None:
                    yield from _rows(f"{model} {precision}", engine)


def scaling() -> Iterator[Row]:
    """GPU jobs a second with 1, 2, 4 … GPUs; every job sees a GPU of its own."""
    found = gpus.discover()
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
def _farm(uuids: Sequence[str]) -> Iterator[httpx2.Client]:
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


def _build(
    client: httpx2.Client, model: str, source: Path, tag: str, precision: str
) -> Mapping[str, Any] | None:
    request = {
        "model": model,
        "source": {"digest": upload(client, source), "format": "pt2"},
        "precisions": [precision],
        "targets": [f"onnxruntime:{tag}"],
    }
    try:
        finish(client, request)
    except SystemExit as err:  # told, and the others are measured all the same
        print(f"{model} {precision}: {err}", flush=True)
        return None
    [engine] = [
        one
        for one in client.get(f"/v1/models/{model}/engines").json()["items"]
        if one["precision"] == precision
    ]
    kept = ROOT / ".bench" / f"{model}-{precision}.json"
    kept.write_text(json.dumps(engine, indent=2) + "\n")
    return dict(engine)


def _rows(name: str, engine: Mapping[str, Any]) -> Iterator[Row]:
    metrics = engine["metrics"]
    print(
        f"{name}: cosine {engine['accuracy']['cosine_mean']:.6f}", *metrics["warnings"], sep="\n  "
    )
    p50 = metrics["latency_ms"]["p50"]
    p50_graph = (metrics["cuda_graph"].get("latency_ms") or {}).get("p50")
    for peer in _FIGURES:
        facts = metrics.get(peer) or {}
        alike = p50_graph if peer.endswith("cuda_graph") else p50
        if facts.get("precision") != metrics["peers_precision"]:
            continue  # the source as it is, in another precision
        if "latency_ms" in facts and alike is not None:
            peer_p50 = facts["latency_ms"]["p50"]
            yield row(f"{name}, p50 over {peer}", alike, peer_p50, " ms", digits=3)
        elif "reason" in facts:
            print(f"  {peer}: {facts['reason']}")
    graph = metrics["cuda_graph"]
    if "latency_ms" in graph:
        yield row(f"{name}, CUDA graph over none", graph["latency_ms"]["p50"], p50, " ms", digits=3)
    else:
        print(f"  CUDA graph: {graph['reason']}")


def _spread(uuids: Sequence[str], tag: str) -> tuple[float, int]:
    """Jobs a second of these GPUs, and the most UUIDs that had a job at the same time."""
    with _farm(uuids) as client, tempfile.TemporaryDirectory() as folder:
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


def _resnet50(folder: Path) -> Path:
    import torch

    from workers.demo import random_resnet50, save_program, textured_images

    path = folder / "resnet50.pt2"
    images = textured_images(8, seed=0)
    save_program(random_resnet50(images), torch.from_numpy(images[:2]), path)
    return path


def _bert_base(folder: Path) -> Path:
    """Random weights, sequences of 128."""
    import torch
    from transformers import BertConfig, BertModel

    class Tokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = BertModel(BertConfig())

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            found = self.bert(input_ids=input_ids, attention_mask=attention_mask)
            hidden: torch.Tensor = found.last_hidden_state
            return hidden

    torch.manual_seed(0)
    example = torch.zeros(2, 128, dtype=torch.long), torch.ones(2, 128, dtype=torch.long)
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(
            Tokens().eval(), example, dynamic_shapes=({0: batch}, {0: batch})
        )
    path = folder / "bert-base.pt2"
    torch.export.save(program, path)
    return path

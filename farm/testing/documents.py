"""The stub farm's answers: a build of the model digits, with its jobs, events and engine."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

NOW = "2026-05-01T12:00:00Z"
LATER = "2026-05-01T12:01:05Z"
BUILD = "01m7y8mb9kssegkq"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def rtx_plan(size: int = 300_000, *, capability_bit: int = 0x08, seed: int = 7) -> bytes:
    """Bytes that begin like a TensorRT-RTX engine (sm_89 by default)."""
    header = bytearray(36)
    header[:4] = b"vtrt"
    struct.pack_into("<Q", header, 16, size)
    header[24:28] = bytes([1, 7, 1, 116])
    struct.pack_into("<I", header, 32, capability_bit)
    body = hashlib.shake_256(bytes([seed])).digest(size - len(header))
    return bytes(header) + body


def engine(data: bytes, **changes: Any) -> dict[str, Any]:
    """The registry's row for these bytes."""
    return {
        "id": "01m7y8mbznssegkq",
        "model": "digits",
        "version": 1,
        "runtime": "tensorrt-rtx",
        "runtime_version": "1.7.1.116",
        "gpu": "sm_89",
        "precision": "int8",
        "digest": digest_of(data),
        "bytes": len(data),
        "accuracy": {
            "samples": 450,
            "data": "evaluation",
            "top1_agreement": 0.9978,
            "top1_interval": [0.9875, 0.9996],
            "cosine_mean": 0.99934,
            "task": {"source": 0.984, "engine": 0.982, "drop": 0.002},
            "measured_on": "typed-onnx",
        },
        "metrics": None,
        "metrics_reason": "built on a CPU",
        "profiles": [],
        "inputs": [],
        "outputs": [],
        "toolchain": {},
        "source_digest": "sha256:" + "a" * 64,
        "build": BUILD,
        "created_at": NOW,
    } | changes


#: An int8 network with one product that isn't quantised.
LAYERS: dict[str, Any] = {
    "source": "the network, before the builder fused its layers",
    "compute": {
        "macs": 4_000_000_000,
        "types": {"int8": {"layers": 1, "share": 0.97}, "fp16": {"layers": 1, "share": 0.03}},
    },
    "products": [
        {
            "name": "c1",
            "op_type": "Conv",
            "type": "int8",
            "macs": 3_880_000_000,
            "not_quantized": [],
        },
        {
            "name": "head",
            "op_type": "Gemm",
            "type": "fp16",
            "macs": 120_000_000,
            "not_quantized": ["pooled"],
        },
    ],
    "layers": [
        {
            "name": f"layer {n}",
            "type": "CONVOLUTION",
            "inputs": [],
            "outputs": [{"name": "y", "type": "half", "shape": [-1, 10]}],
        }
        for n in range(50)
    ],
}


def job(number: int, title: str, state: str = "succeeded", **changes: Any) -> dict[str, Any]:
    return {
        "id": number,
        "kind": title.split()[0],
        "title": title,
        "key": "k" * 64,
        "state": state,
        "reuse": "ran",
        "runtime": None,
        "target": None,
        "precision": None,
        "attempt": 1,
        "worker": "host-cpu",
        "waits_for": None,
        "phase": None,
        "progress": None,
        "error": None,
        "facts": {},
        "created_at": NOW,
        "started_at": NOW,
        "finished_at": LATER,
    } | changes


def build(state: str = "succeeded", **changes: Any) -> dict[str, Any]:
    """A build of digits as int8 for sm_89."""
    done = state == "succeeded"
    return {
        "id": BUILD,
        "model": "digits",
        "version": 1,
        "state": state,
        "precisions": ["int8"],
        "targets": ["rtx-4090"],
        "priority": 5,
        "labels": {"team": "vision"},
        "jobs_total": 2,
        "jobs_done": 2 if done else 0,
        "engines_total": 1,
        "engines_done": 1 if done else 0,
        "created_at": NOW,
        "started_at": NOW,
        "finished_at": LATER if done else None,
        "error": None,
        "source": {"digest": "sha256:" + "a" * 64, "format": "pt2"},
        "calibration": None,
        "evaluation": None,
        "profiles": [],
        "jobs": [
            job(1, "export digits", reuse="cached"),
            job(2, "build digits:int8@sm_89", "succeeded" if done else "queued"),
        ],
        "engines": [
            {
                "asked": "rtx-4090",
                "target": "tensorrt-rtx:sm_89",
                "why": "first of tensorrt, tensorrt-rtx that a worker online can build",
                "precision": "int8",
                "build_job": 2,
                "measure_job": 2,
                "engine": "01m7y8mbznssegkq" if done else None,
            }
        ],
    } | changes


def failed_build() -> dict[str, Any]:
    error = {
        "code": "calibration-failed",
        "detail": "no samples [for image]",
        "hint": "add samples",
    }
    follows = {"code": "input-failed", "detail": "calibrate failed", "hint": "add samples"}
    return build(
        "failed",
        finished_at=LATER,
        jobs=[
            job(1, "calibrate digits", "failed", error=error),
            job(2, "build digits:int8@sm_89", "failed", error=follows),
        ],
    )


def event(number: int, kind: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": number,
        "at": NOW,
        "kind": kind,
        "build": BUILD,
        "job": None,
        "title": None,
        "state": None,
        "data": {},
    } | changes


EVENTS = [
    event(1, "build", state="queued"),
    event(2, "job", job=2, title="build digits:int8@sm_89", state="running", data={"worker": "w1"}),
    event(3, "phase", job=2, title="build digits:int8@sm_89", data={"phase": "compile"}),
    event(
        4,
        "phase",
        job=2,
        title="build digits:int8@sm_89",
        data={"phase": "compile", "progress": 0.5},
    ),
    event(5, "log", job=2, title="build digits:int8@sm_89", data={"text": "tactic 7\n"}),
    event(6, "job", job=2, title="build digits:int8@sm_89", state="succeeded"),
    event(7, "build", state="succeeded"),
]


#: Two runtimes compared, one engine that failed a gate, and one that couldn't be built.
BENCH: dict[str, Any] = {
    "model": "digits",
    "version": 1,
    "gpu": "h100",
    "goal": {"aim": "latency", "batch": 8, "followed": True},
    "rows": [
        {
            "target": "aotinductor:sm_90",
            "runtime": "aotinductor",
            "precision": "fp16",
            "engine": "01m7y8mbznssegkq",
            "state": "ready",
            "place": 1,
            "latency_ms": 0.412,
            "batch": 8,
            "cuda_graph": True,
            "samples_per_s": 40120.5,
            "samples_batch": 64,
            "speed_up_over_best": 1.07,
            "accuracy": {"samples": 450, "data": "evaluation", "top1_agreement": 0.9978},
            "bytes": 51_200_000,
        },
        {
            "target": "onnxruntime:h100",
            "runtime": "onnxruntime",
            "precision": "fp16",
            "engine": "01m7y8mbznssegkr",
            "state": "ready",
            "place": 2,
            "latency_ms": 0.655,
            "batch": 8,
            "bytes": 51_100_000,
        },
        {
            "target": "onnxruntime:h100",
            "runtime": "onnxruntime",
            "precision": "bf16",
            "engine": "01m7y8mbznssegks",
            "state": "ready",
            "latency_ms": 0.3,
            "batch": 8,
            "passed_over": "other processes used 41% of the CPU during timing",
        },
        {
            "target": "aotinductor:sm_90",
            "runtime": "aotinductor",
            "precision": "fp8",
            "engine": "01m7y8mbznssegkt",
            "state": "doubtful",
            "doubts": ["its error is 0.9"],
            "passed_over": "it failed a gate",
        },
        {
            "target": "aotinductor:sm_90",
            "runtime": "aotinductor",
            "precision": "int8",
            "state": "failed",
            "error": {"code": "engine-build-failed", "detail": "no kernel [for c1]\nat line 7"},
        },
    ],
    "winner": "01m7y8mbznssegkq",
    "why": "fp16 by aotinductor is the fastest of fp16 by aotinductor, fp16 by onnxruntime: "
    "p50 0.412 ms against 0.655 ms, at batch 8 on NVIDIA H100",
    "left_out": [
        {
            "target": "tensorrt:h100",
            "precisions": ["fp32", "fp16"],
            "why": "no online worker can build it",
        }
    ],
}

#: What an engine gave: an archive of no arrays.
OUTPUTS = b"PK\x05\x06" + bytes(18)
INFERENCE: dict[str, Any] = {
    "id": 42,
    "state": "succeeded",
    "target": "onnxruntime:cpu",
    "outputs": [{"name": "scores", "dtype": "float32", "shape": [8, 10]}],
    "run_ms": 1.5,
    "digest": digest_of(OUTPUTS),
    "created_at": NOW,
}

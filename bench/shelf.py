"""A registry filled with engines, without building any: for what reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import insert

from bench.processes import analyze
from farm.database.base import Base, now
from farm.database.session import Database
from farm.database.tables import Artifact, Build, EngineRow, Job, Model, Version, Wanted
from farm.testing import documents

GPUS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
OF_VERSION = len(GPUS) * len(PRECISIONS)
_CHUNK = 20_000


def fill(db: Database, engines: int, *, models: int, digest: str, size: int) -> list[str]:
    """Add engines of so many models, all with the same bytes; return the models' names."""
    versions = -(-engines // OF_VERSION)
    each = -(-versions // models)
    rows = {
        Artifact: iter([{"digest": digest, "bytes": size}]),
        Model: (
            {"id": n, "name": f"model-{n}", "folded": f"model-{n}"} for n in range(1, models + 1)
        ),
        Version: (_version(n, each) for n in range(1, versions + 1)),
        Build: (_build(n) for n in range(1, versions + 1)),
        Job: (_job(n) for n in range(1, OF_VERSION + 1)),
        EngineRow: (engine(n, digest) for n in range(engines)),
        Wanted: (_wanted(n) for n in range(engines)),
    }
    for table, made in rows.items():
        _insert(db, table, made)
    analyze(db)
    return [f"model-{n}" for n in range(1, models + 1)]


def _insert(db: Database, table: type[Base], rows: Iterator[dict[str, Any]]) -> None:
    chunk: list[dict[str, Any]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _CHUNK:
            _write(db, table, chunk)
            chunk = []
    if chunk:
        _write(db, table, chunk)


def _write(db: Database, table: type[Base], rows: list[dict[str, Any]]) -> None:
    with db.write() as session:
        session.execute(insert(table), rows)


def _version(n: int, each: int) -> dict[str, Any]:
    return {
        "id": n,
        "model_id": 1 + (n - 1) // each,
        "number": 1 + (n - 1) % each,
        "source_digest": f"sha256:{n:064x}",
        "source_format": "onnx",
    }


def _build(n: int) -> dict[str, Any]:
    request = {"model": "m", "precisions": [], "targets": []}
    times = dict.fromkeys(("created_at", "started_at", "finished_at"), now())
    return (
        {"id": f"b{n:015}", "version_id": n, "state": "succeeded", "priority": 5}
        | times
        | {"request": request}
    )


def _job(n: int) -> dict[str, Any]:
    given: dict[str, Any] = {"kind": "build", "title": "build", "queue": "cpu", "priority": 5}
    return given | {"id": n, "key": f"sha256:{n:064x}", "state": "failed", "recipe": _RECIPE}


def engine(n: int, digest: str) -> dict[str, Any]:
    """The columns of an engine of the shelf."""
    version, of_version = divmod(n, OF_VERSION)
    gpu, precision = divmod(of_version, len(PRECISIONS))
    return {
        "id": f"e{n:015}",
        "version_id": 1 + version,
        "runtime": "tensorrt-rtx",
        "runtime_version": "1.7.1.116",
        "gpu": GPUS[gpu],
        "precision": PRECISIONS[precision],
        "digest": digest,
        "accuracy": _ACCURACY,
        "metrics_reason": "not measured",
        "description": {"inputs": [], "outputs": [], "profiles": [], "same": f"same-{n}"},
        "toolchain": {},
        "build_id": f"b{1 + version:015}",
        "build_job_id": 1,
        "measure_job_id": 1 + of_version,
    }


def _wanted(n: int) -> dict[str, Any]:
    row = engine(n, "")
    kept = {name: row[name] for name in ("build_id", "precision", "build_job_id", "measure_job_id")}
    target = f"{row['runtime']}:{row['gpu']}"
    return kept | {"target": target, "asked": row["gpu"], "why": "", "engine_id": row["id"]}


_RECIPE = {"kind": "build", "stage": 1, "params": {}, "inputs": {}, "tools": {}}
_ACCURACY = documents.engine(b"")["accuracy"]

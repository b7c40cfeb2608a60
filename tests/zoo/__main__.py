"""``python -m tests.zoo PAGE [MODEL…]``: build the models of a page of docs/ for all GPUs in all precisions.

The page is written after each model. Results are kept in .zoo/ and taken from there the next time,
unless the stages or their tools have changed; ``--again`` builds in any case.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from farm.specs.precision import Precision
from farm.stages import STAGES
from tests.zoo import models, pages
from tests.zoo.runner import Built, Ended, Runner, in_child
from workers.runner import toolchain

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / ".zoo"
GPUS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121", "cpu")
PAGES = {
    "support-matrix": (models.small, pages.support_matrix),
    "gpu-architectures": (models.large, pages.gpu_architectures),
}


def results(names: Sequence[str], *, again: bool) -> Iterator[dict[str, Any]]:
    """What came of each model, kept or new; what is kept in some precisions is built in the others."""
    for name in names:
        path = KEPT / f"{name}.json"
        kept = json.loads(path.read_text()) if path.exists() and not again else {}
        if kept.get("made_by") != _made_by():
            kept = {"model": name, "made_by": _made_by(), "rows": [], "jobs": []}
        there = {row["precision"] for row in kept["rows"]}
        missing = [precision for precision in Precision if precision not in there]
        if missing:
            _build(kept, missing)
            KEPT.mkdir(exist_ok=True)
            path.write_text(json.dumps(kept, indent=1) + "\n")
        _tell(kept)
        yield kept


def _build(kept: dict[str, Any], precisions: Sequence[Precision]) -> None:
    """Build a model in these precisions, and add the results."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        runner = Runner(models.source(kept["model"], folder), folder, in_child)
        for gpu in GPUS:
            for built in runner.build(precisions, [gpu]):
                kept["rows"].append(_row(gpu, built))
                for file in built.results["build"].outputs.values() if built.results else ():
                    file.unlink()  # dozens of engines would fill the disk
        titles = {job["title"] for job in kept["jobs"]}
        made = [_job(ended) for ended in runner.ended.values()]
        kept["jobs"] += [job for job in made if job["title"] not in titles]
    order = list(Precision)
    kept["rows"].sort(key=lambda row: (GPUS.index(row["gpu"]), order.index(row["precision"])))


def _made_by() -> dict[str, Any]:
    return {"stages": {str(kind): stage.version for kind, stage in STAGES.items()}} | dict(
        toolchain.installed()
    )


def _row(gpu: str, built: Built) -> dict[str, Any]:
    row: dict[str, Any] = {"gpu": gpu, "precision": built.precision}
    if built.error:
        return row | {"error": [built.error.code, built.error.detail, built.error.hint]}
    types = built.facts["compute"]["types"]
    return row | {
        "error": None,
        "bytes": built.bytes,
        "seconds": round(built.build.seconds, 1),
        "cpu_s": round(built.build.cpu_s, 1),
        "peak_bytes": built.build.peak_bytes,
        "types": {name: found["share"] for name, found in types.items()},
        "accuracy": built.accuracy.model_dump(mode="json"),
    }


def _job(ended: Ended) -> dict[str, Any]:
    return {
        "title": ended.job.title,
        "kind": ended.job.kind,
        "precision": ended.job.precision,
        "seconds": ended.seconds,
        "cpu_s": ended.cpu_s,
        "peak_bytes": ended.peak_bytes,
        "error": ended.error and ended.error.detail,
    }


def _tell(result: dict[str, Any]) -> None:
    good = sum(not row["error"] for row in result["rows"])
    spent = sum(job["seconds"] for job in result["jobs"])
    print(f"{result['model']}: {good} of {len(result['rows'])} in {spent:.0f} s", flush=True)
    for row in result["rows"]:
        if row["error"]:
            print(f"  {row['precision']}@{row['gpu']}: {row['error'][1]}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__)
    parser.add_argument("page", choices=PAGES)
    parser.add_argument("models", nargs="*", help="by default all of the page, which is written")
    parser.add_argument("--again", action="store_true", help="take nothing that was kept")
    options = parser.parse_args()
    names, page = PAGES[options.page]
    found = []
    for result in results(options.models or names(), again=options.again):
        found.append(result)
        if not options.models:
            (ROOT / "docs" / f"{options.page}.md").write_text(page(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m tests.zoo [MODEL…]``: build the zoo for every GPU in every precision, and tell what came of it.

``--write FILE`` makes docs/support-matrix.md of it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from farm.specs import Precision

ROOT = Path(__file__).resolve().parents[2]
GPUS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121", "cpu")
_ACCURACY = ("cosine_mean", "top1_agreement")


def one(name: str, gpus: Sequence[str]) -> dict[str, Any]:
    """Build one model in this process."""
    from tests.zoo import models, runner

    start = time.monotonic()
    # What stages print is their log; this process prints JSON.
    with tempfile.TemporaryDirectory() as text, contextlib.redirect_stdout(sys.stderr):
        folder = Path(text)
        source = models.source(name, folder)
        built = runner.build(source, precisions=list(Precision), gpus=gpus, folder=folder)
        rows = [
            {
                "gpu": one.target.rpartition(":")[2],
                "precision": one.precision,
                "error": one.error and [one.error.code, one.error.detail, one.error.hint],
                "bytes": one.bytes,
                "seconds": round(one.seconds, 1),
                "share": _share(one.facts, one.precision),
                "accuracy": {name: one.accuracy.get(name) for name in _ACCURACY},
            }
            for one in built
        ]
    return {
        "model": name,
        "rows": rows,
        "seconds": round(time.monotonic() - start, 1),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _share(facts: Any, precision: str) -> float | None:
    types = facts.get("compute", {}).get("types", {})
    return types.get(Precision(precision).computes_in, {}).get("share")


def all_of(names: Sequence[str], gpus: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Build each in a process of its own, for its peak memory."""
    for name in names:
        command = [sys.executable, "-m", "tests.zoo", name, "--here"]
        command += [word for gpu in gpus for word in ("--gpu", gpu)]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if run.returncode:
            sys.exit(f"{name}: {run.stderr[-3000:]}")
        result = json.loads(run.stdout.splitlines()[-1])
        good = sum(not row["error"] for row in result["rows"])
        print(f"{name}: {good} of {len(result['rows'])} in {result['seconds']} s", flush=True)
        for row in result["rows"]:
            if row["error"]:
                print(f"  {row['precision']}@{row['gpu']}: {row['error'][1]}", flush=True)
        yield result


def page(results: Sequence[dict[str, Any]]) -> str:
    """docs/support-matrix.md."""
    gpus = list(dict.fromkeys(row["gpu"] for result in results for row in result["rows"]))
    lines = [_HEAD]
    reasons: dict[str, str] = {}
    for precision in Precision:
        lines += ["", f"## {precision}", "", f"| model | {' | '.join(gpus)} |"]
        lines.append(f"| --- |{' --- |' * len(gpus)}")
        for result in results:
            cells = [_cell(row, reasons) for row in result["rows"] if row["precision"] == precision]
            lines.append(f"| {result['model']} | {' | '.join(cells)} |")
    lines += ["", "## Why not", ""]
    lines += [f"- **{mark}** {text}" for text, mark in reasons.items()]
    lines += [
        "",
        "## Time and memory",
        "",
        "| model | seconds | peak memory |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| {result['model']} | {result['seconds']:.0f} | {result['peak_bytes'] / 1e9:.1f} GB |"
        for result in results
    ]
    return "\n".join(lines) + "\n"


_HEAD = """# Support matrix

Made by `make support-matrix` on a machine of 2 cores without a GPU: TensorRT-RTX ahead of time for each
architecture, ONNX Runtime for `cpu`. The models are the light ones inside the
`onnx` package and small configurations of `transformers`, all with random weights and samples.

A cell says the engine's size, the share of the multiplications that are in that type where it isn't all,
and the cosine similarity with the source where it is below 0.999."""


def _cell(row: dict[str, Any], reasons: dict[str, str]) -> str:
    if row["error"]:
        _code, detail, hint = row["error"]
        text = f"{detail}. {hint or ''}".replace("|", "/").strip()
        return f"[{reasons.setdefault(text, str(len(reasons) + 1))}]"
    said = [f"{row['bytes'] / 1e6:.1f} MB"]
    share, cosine = row["share"], row["accuracy"]["cosine_mean"]
    if share is not None and share < 0.995:
        said.append(f"{share:.0%}")
    if cosine is not None and cosine < 0.999:
        said.append(f"cos {cosine:.3f}")
    return ", ".join(said)


def main() -> int:
    from tests.zoo import models

    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__)
    parser.add_argument("models", nargs="*", help="by default all")
    parser.add_argument("--gpu", action="append", choices=GPUS)
    parser.add_argument("--here", action="store_true", help="one model in this process, as JSON")
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args()
    gpus = options.gpu or list(GPUS)
    if options.here:
        print(json.dumps(one(options.models[0], gpus)))
        return 0
    results = []
    for result in all_of(options.models or models.names(), gpus):
        results.append(result)
        if options.write:  # after each: the large ones take minutes
            options.write.write_text(page(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())

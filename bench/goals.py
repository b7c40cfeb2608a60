"""INT8 that meets a goal: the farm's search beside NNCF's accuracy control, on the same data and metric.

Each side has a process of its own (``python -m bench.goals SIDE FOLDER``), which reads the case's graph,
calibrates with 128 samples, searches with labelled ones, and leaves what ONNX Runtime runs on a CPU. A third
process judges both on samples that neither has seen, and times them in turns. Ahead is who meets the goal
where it searched; of two who do, who has the lower p50, then the larger share of multiplications in int8.

``FARM_BENCH_CASES`` chooses cases by their numbers (``0,2``), ``FARM_BENCH_KEEP`` is a folder that keeps them
with each side's log and graph, and ``FARM_BENCH_BUDGET_S`` the farm's seconds for a search. NNCF is in the
extra ``peers``: ``pip install -c constraints.txt -e '.[peers]'`` moves nothing that is pinned.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import goal_cases
from bench.goal_cases import Case
from bench.processes import ROOT
from bench.table import Row, row, verdict

SIDES = ("farm", "nncf")
BUDGET_S = int(os.environ.get("FARM_BENCH_BUDGET_S", "180"))
_TIMEOUT_S = 1800.0
_ROUNDS = 60
#: Shares of multiplications, and latencies, this close count as level.
_LEVEL = 0.05
_FIGURES = (
    ("drop where it searched", "drop", "{:.4f}"),
    ("drop on other data", "test_drop", "{:.4f}"),
    ("multiplications in int8", "int8_share", "{:.0%}"),
    ("layers in floats", "in_float", "{}"),
    ("p50 over fp32's", "p50_of_fp32", "{:.2f}"),
)


def searches() -> Iterator[Row]:
    """For each case drops, the share of multiplications in int8, seconds and p50, beside NNCF's."""
    if find_spec("nncf") is None:
        print("NNCF isn't installed: pip install 'engine-farm[peers]'", flush=True)
        return
    only = [one for one in os.environ.get("FARM_BENCH_CASES", "").split(",") if one]
    with tempfile.TemporaryDirectory() as made:
        root = Path(os.environ.get("FARM_BENCH_KEEP") or made)
        places: Counter[str] = Counter()
        for number, name in enumerate(goal_cases.cases()):
            if only and str(number) not in only:
                continue
            folder = root / str(number)
            if not (folder / "case.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
                print(f"  {name}: prepare", flush=True)
                goal_cases.write(name, folder, root / "wheels")
            found = {}
            for side in SIDES:
                print(f"  {name}: {side}", flush=True)
                (folder / f"{side}.onnx").unlink(missing_ok=True)
                found[side] = _child(side, folder)
            judged = _child("judge", folder)
            for side in SIDES:
                found[side] |= judged.get(side, {})
                print(f"  {name}, {side}: {json.dumps(found[side])}", flush=True)
            yield from _rows(name, found)
            place = _place(goal_cases.read(folder), found)
            places[place] += 1
            yield _beside(f"{name}: the farm is", place)
        for what, place, most in (("NNCF is ahead", "behind", 0), ("both are level", "level", 1)):
            told = {"goal": f"≤ {most}", "verdict": verdict(places[place] <= most)}
            yield _beside(f"cases in which {what}", str(places[place])) | told


def _rows(name: str, found: dict[str, dict[str, Any]]) -> Iterator[Row]:
    farm, nncf = (found[side] for side in SIDES)
    for what, key, form in _FIGURES:
        told = [form.format(one[key]) if key in one else "failed" for one in (farm, nncf)]
        yield _beside(f"{name}: {what}", *told)
    if "p50_ms" in nncf and "p50_ms" in farm:
        yield row(f"{name}: seconds", farm["seconds"], nncf["seconds"], " s")
        yield row(f"{name}: p50", farm["p50_ms"], nncf["p50_ms"], " ms", digits=2)


def _beside(what: str, farm: str, peer: str = "") -> Row:
    return {"what": what, "farm": farm, "peer": peer, "ratio": "", "goal": "–", "verdict": ""}


def _place(case: Case, found: dict[str, dict[str, Any]]) -> str:
    """How the farm does: ahead, level or behind."""
    farm, nncf = (found[side] for side in SIDES)
    meets = [one.get("drop", 1.0) <= case.max_drop for one in (farm, nncf)]
    if meets[0] != meets[1]:
        return "ahead" if meets[0] else "behind"
    if not meets[0]:
        return "level"
    speed = farm["p50_ms"] / nncf["p50_ms"]
    if abs(speed - 1) > _LEVEL:
        return "ahead" if speed < 1 else "behind"
    share = farm["int8_share"] - nncf["int8_share"]
    if abs(share) > _LEVEL:
        return "ahead" if share > 0 else "behind"
    return "level"


def _child(what: str, folder: Path) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bench.goals", what, str(folder)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {_TIMEOUT_S:.0f} s"}
    (folder / f"{what}.log").write_text(done.stdout + done.stderr)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"failed": last[:300]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


# The sides.


def _farm(case: Case, folder: Path) -> dict[str, Any]:
    from farm.specs.runtime import Target
    from farm.stages import BuildParams, CalibrateParams, JobKind
    from workers.stages import calibrate as _imported  # noqa: F401
    from workers.stages.base import Stage, run

    given = {
        "onnx": folder / "model.onnx",
        "calibration": folder / "calibration.npz",
        "evaluation": folder / "evaluation.npz",
    }
    goal = {
        "metric": case.metric,
        "max_drop": case.max_drop,
        "task": case.task,
        "on_cpus": True,
        "budget_s": BUDGET_S,
    }
    profiles = {"profiles": [case.profile()]}
    work = _fresh(folder / "farm")
    start = time.perf_counter()
    made = run(
        Stage(
            kind=JobKind.CALIBRATE,
            params=CalibrateParams.model_validate(profiles | {"goal": goal}),
            inputs=given,
            workdir=work,
            progress=lambda *_: None,
        )
    )
    seconds = time.perf_counter() - start
    target = Target.model_validate({"runtime": "onnxruntime", "gpu": "cpu"})
    params = {"target": target, "compute_capability": "cpu", "precision": "int8"}
    built = run(
        Stage(
            kind=JobKind.BUILD,
            params=BuildParams.model_validate(profiles | params),
            inputs={
                "typed": made.outputs["typed"],
                "onnx": given["onnx"],
                "calibration": given["calibration"],
            },
            workdir=_fresh(folder / "farm-build"),
            progress=lambda *_: None,
        )
    )
    shutil.copy(built.outputs["engine"], folder / "farm.onnx")
    search = made.facts.search  # type: ignore[attr-defined]
    how = {"method": search.method, "tried": len(search.tried), "cut_short": search.cut_short}
    return {"seconds": seconds} | how | _int8(made.outputs["typed"], case)


def _nncf(case: Case, folder: Path) -> dict[str, Any]:
    import nncf
    import onnx
    import onnxslim

    # One of its passes fails at a Cast of a constant, which this folds.
    model = onnxslim.slim(onnx.load(str(folder / "model.onnx")))
    calibration = list(_batches(case, folder / "calibration.npz"))
    evaluation = list(_batches(case, folder / "evaluation.npz"))
    start = time.perf_counter()
    made = nncf.quantize_with_accuracy_control(
        model,
        nncf.Dataset(calibration, _inputs),
        nncf.Dataset(evaluation),
        lambda one, data: _validated(case, one, data),
        max_drop=case.max_drop,
        drop_type=nncf.DropType.ABSOLUTE,
        model_type=nncf.ModelType.TRANSFORMER if case.name == "transformer" else None,
    )
    seconds = time.perf_counter() - start
    onnx.save(made, str(folder / "nncf.onnx"))
    return {"seconds": seconds} | _int8(folder / "nncf.onnx", case)


def _validated(case: Case, model: Any, data: Iterable[Any]) -> tuple[float, list[float]]:
    """As NNCF wants it: the metric, higher for better, and every batch's."""
    scores = _scores(case, _session(model.SerializeToString()), data)
    # It counts the items of its dataset, which are batches.
    by_item = scores.reshape(-1, case.batch, 2).sum(axis=1)
    each = by_item[:, 0] / np.maximum(by_item[:, 1], 1)
    whole = float(scores[:, 0].sum() / scores[:, 1].sum())
    if case.metric == "cer":
        return 1 - whole, (1 - each).tolist()
    return whole, each.tolist()


def _judge(case: Case, folder: Path) -> dict[str, Any]:
    """Accuracies of what each side made, and latencies taken in turns."""
    sessions = {
        name: _session(folder / f"{name}.onnx")
        for name in (*SIDES, "model")
        if (folder / f"{name}.onnx").exists()
    }
    found: dict[str, dict[str, float]] = {name: {} for name in sessions}
    for data, key in (("evaluation", "drop"), ("test", "test_drop")):
        batches = list(_batches(case, folder / f"{data}.npz"))
        values = {}
        for name, session in sessions.items():
            scores = _scores(case, session, batches)
            values[name] = float(scores[:, 0].sum() / scores[:, 1].sum())
        sign = -1 if case.metric == "cer" else 1
        for name, value in values.items():
            found[name][key] = sign * (values["model"] - value)
    batch = _inputs(next(iter(_batches(case, folder / "test.npz"))))
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(_ROUNDS):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, batch)
            times[name].append(time.perf_counter() - start)
    for name, taken in times.items():
        found[name]["p50_ms"] = 1e3 * float(np.median(taken))
        found[name]["p50_of_fp32"] = float(np.median(taken) / np.median(times["model"]))
    return found


def _session(model: Any) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    given = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def _scores(case: Case, session: Any, batches: Iterable[Any]) -> NDArray[np.float64]:
    """Of each sample what it scored and what it could, by the code of the farm's metrics."""
    from workers.measure import sums

    found = []
    for batch in batches:
        made = session.run(None, _inputs(batch))[0]
        label = batch["label"]
        if case.metric == "cer":
            texts = sums.decoded(made.argmax(axis=2).astype(np.int64), 0)
            found.append(sums.edits(texts, [one[one >= 0].tolist() for one in label], None))
        else:
            found.append(sums.top(made, label, int(case.metric.removeprefix("top"))))
    return np.concatenate(found)


def _batches(case: Case, file: Path) -> Iterator[dict[str, NDArray[Any]]]:
    with np.load(file) as given:
        arrays = dict(given)
    count = len(next(iter(arrays.values())))
    for start in range(0, count - case.batch + 1, case.batch):
        yield {name: array[start : start + case.batch] for name, array in arrays.items()}


def _inputs(batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: array for name, array in batch.items() if name != "label"}


def _int8(file: Path, case: Case) -> dict[str, Any]:
    """What of a Q/DQ graph multiplies integers."""
    import onnx

    from workers.graphs.compute import compute_of

    shapes = {name: tuple(one["opt"]) for name, one in case.profile().items()}
    products = compute_of(onnx.load(str(file)), shapes).products
    macs = sum(one.macs or 0 for one in products)
    int8 = [one for one in products if one.type == "int8"]
    return {
        "int8_share": sum(one.macs or 0 for one in int8) / macs,
        "in_float": len(products) - len(int8),
        "products": len(products),
    }


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def main(what: str, folder: str) -> None:
    case = goal_cases.read(Path(folder))
    does = {"farm": _farm, "nncf": _nncf, "judge": _judge}
    print(json.dumps(does[what](case, Path(folder))))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""INT8 calibration of ResNet-50: seconds and peak memory by number of images, the farm beside its peers.

Each measurement has a process of its own (``bench.calibrators``), in the order of what they tell, all within
``FARM_BENCH_BUDGET_S`` seconds: what is forecast to need more time, or more memory than is free, is left
out, and told. ``python -m bench.calibration document`` writes the table of ``docs/why/calibration.md``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from bench.calibrators import FARM, FORWARD
from bench.processes import ROOT
from bench.table import Row, row, show

COUNTS = (32, 128, 512, 1024)
#: Peer → the method of the farm's that it compares with.
PEERS = {
    "ModelOpt max": "max",
    "ONNX Runtime MinMax": "max",
    "NNCF": "auto",
    "ModelOpt entropy": "entropy",
    "ONNX Runtime Entropy": "entropy",
}
#: What is measured in which order: the goals first, then what compares at the fewest images.
_FIRST = (FORWARD, "max", "auto")
_OTHERS = tuple(method for method in FARM if method not in _FIRST)
ORDER = (
    *((what, count) for count in COUNTS for what in _FIRST),
    *((what, count) for count in COUNTS[:2] for what in (*PEERS, *_OTHERS)),
    *((what, count) for count in COUNTS[2:] for what in (*PEERS, *_OTHERS)),
)
#: At 1,024 images. With fewer the placement of Q/DQ shows, which takes the same time for any number.
GOALS = dict.fromkeys(FARM, 2.0) | {"max": 1.5}
_BUDGET_S = float(os.environ.get("FARM_BENCH_BUDGET_S", "720"))
#: How much of the memory that is free may be forecast.
_OF_MEMORY = 0.7
_PAGE = ROOT / "docs" / "why" / "calibration.md"
_BEGIN, _END = "<!-- python -m bench.calibration document -->", "<!-- the end of what it writes -->"

Costs = dict[int, "Cost"]  #: by number of images


@dataclass(frozen=True, kw_only=True)
class Cost:
    seconds: float
    processor_s: float  #: of all cores; on a machine with other work it says more
    peak_mb: float
    whole_s: float  #: with the process's start and imports


@dataclass(frozen=True, kw_only=True)
class Measured:
    costs: dict[str, Costs] = field(default_factory=dict)  #: by what was measured
    left_out: dict[tuple[str, int], str] = field(default_factory=dict)  #: why


class LeftOut(Exception):
    """A measurement that isn't made, or ended without a figure: why."""


Measure = Callable[[str, int, float], Cost]
"""What, images, and the seconds that it may take → its cost, or ``LeftOut``."""


def costs() -> Iterator[Row]:
    """Times over those of the forward passes, and peaks at the most images over those at 128."""
    return rows(_all())


def _all() -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "resnet50.onnx"
        _child("write", 0, model, 600.0)
        return measured(lambda *asked: _measured(*asked, model), _BUDGET_S, _free_mb())


def measured(
    measure: Measure, budget_s: float, free_mb: float, now: Callable[[], float] = time.monotonic
) -> Measured:
    """Everything in its order, as far as time and memory go."""
    end, found = now() + budget_s, Measured()
    for what, count in ORDER:
        seen = found.costs.setdefault(what, {})
        try:
            _refuse(what, count, found, end - now(), free_mb * _OF_MEMORY)
            seen[count] = measure(what, count, end - now())
            print(f"  {what}, {count} images: {_told(seen[count])}", flush=True)
        except LeftOut as why:
            found.left_out[what, count] = str(why)
            print(f"  {what}, {count} images: left out, {why}", flush=True)
    return found


def _told(cost: Cost) -> str:
    return f"{cost.seconds:.1f} s, {cost.processor_s:.1f} s of processors, {cost.peak_mb:.0f} MB"


def _refuse(what: str, count: int, found: Measured, left_s: float, most_mb: float) -> None:
    """Raise ``LeftOut`` for what has no figure with fewer images, or would need too much."""
    if what == "NNCF" and find_spec("nncf") is None:
        raise LeftOut("NNCF isn't installed: pip install 'engine-farm[peers]'")
    if any(name == what and fewer < count for name, fewer in found.left_out):
        raise LeftOut("fewer images were")
    if left_s <= 0:
        raise LeftOut("the time is up")
    seen = found.costs[what]
    needs_s = forecast({n: one.whole_s for n, one in seen.items()}, count)
    if needs_s > left_s:
        raise LeftOut(f"it would take about {needs_s:.0f} s of the {left_s:.0f} s left")
    needs_mb = forecast({n: one.peak_mb for n, one in seen.items()}, count)
    if needs_mb > most_mb:
        raise LeftOut(f"it would need about {needs_mb / 1024:.1f} GB of memory")


def forecast(known: Mapping[int, float], count: int) -> float:
    """By the line through the last two; with one known, as if it all grew with the images."""
    if not known:
        return 0.0
    *before, last = sorted(known)
    if not before:
        return known[last] * count / last
    each = max(0.0, (known[last] - known[before[-1]]) / (last - before[-1]))
    return known[last] + each * (count - last)


def rows(found: Measured) -> Iterator[Row]:
    forward = found.costs.get(FORWARD, {})
    for method in FARM:
        by_count = found.costs.get(method, {})
        for count in sorted(by_count.keys() & forward.keys()):
            cost, plain = by_count[count], forward[count]
            name = f"{method}, {count} images, over the forward passes"
            most = GOALS[method] if count == COUNTS[-1] else None
            yield row(name, cost.seconds, plain.seconds, " s", digits=2, most=most)
            both = cost.processor_s, plain.processor_s
            yield row(f"{name}, of processors", *both, " s", digits=2)
        if {128, COUNTS[-1]} <= by_count.keys():
            flat = by_count[COUNTS[-1]].peak_mb, by_count[128].peak_mb
            name = f"{method}, peak, 1,024 images over 128"
            yield row(name, *flat, " MB", digits=2, most=1.1)
    for peer, method in PEERS.items():
        ours = found.costs.get(method, {})
        for count, theirs in found.costs.get(peer, {}).items():
            if count in ours:
                name = f"{method} beside {peer}, {count} images"
                yield row(name, ours[count].seconds, theirs.seconds, " s", digits=2, most=1)
                peaks = ours[count].peak_mb, theirs.peak_mb
                yield row(f"{name}, peak", *peaks, " MB", digits=2)


def table(found: Measured) -> str:
    """All figures in Markdown, and what was left out."""
    lines = [
        "| what | images | s | over the forward passes | of processors | peak, MB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    forward = found.costs.get(FORWARD, {})
    for what in (FORWARD, *FARM, *PEERS):
        for count, cost in sorted(found.costs.get(what, {}).items()):
            name = f"`{what}`" if what in FARM else what
            plain = forward.get(count)
            over = (
                (
                    f"{cost.seconds / plain.seconds:.2f}",
                    f"{cost.processor_s / plain.processor_s:.2f}",
                )
                if plain
                else ("–", "–")
            )
            cells = (name, f"{count:,}", f"{cost.seconds:.1f}", *over, f"{cost.peak_mb:,.0f}")
            lines.append(f"| {' | '.join(cells)} |")
    if found.left_out:
        lines += ["", "Left out:", ""]
        lines += [
            f"- {what}, {count:,} images: {why}" for (what, count), why in found.left_out.items()
        ]
    return "\n".join(lines)


def written(page: str, text: str) -> str:
    """The page with this text between its two marks."""
    before, _, rest = page.partition(_BEGIN)
    _, mark, after = rest.partition(_END)
    if not mark:
        raise ValueError(f"the page lacks {_BEGIN} or {_END}")
    return f"{before}{_BEGIN}\n\n{text}\n\n{_END}{after}"


def _measured(what: str, count: int, limit_s: float, model: Path) -> Cost:
    start = time.monotonic()
    found = json.loads(_child(what, count, model, limit_s).splitlines()[-1])
    return Cost(**found, whole_s=time.monotonic() - start)


def _child(what: str, count: int, model: Path, limit_s: float) -> str:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bench.calibrators", what, str(count), str(model)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=max(limit_s, 1.0),
        )
    except subprocess.TimeoutExpired:
        raise LeftOut(f"not done after {limit_s:.0f} s, when the time was up") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise LeftOut(f"it ended with {done.returncode}: {last[:200]}")
    return done.stdout


def _free_mb() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    [free] = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(free) / 1024


def document() -> None:
    """Measure, and write the page's table."""
    from bench.int8 import processor
    from workers.backends.ort.cpu import cpu_threads

    found = _all()
    show(list(rows(found)))
    where = f"Measured {datetime.now(UTC):%Y-%m-%d} on {cpu_threads()} cores, {processor()}."
    where = where.replace("; one thread", "")
    _PAGE.write_text(written(_PAGE.read_text(), f"{where}\n\n{table(found)}"))


if __name__ == "__main__":
    if sys.argv[1:] != ["document"]:
        sys.exit("python -m bench.calibration document, or python -m bench calibration")
    document()

"""Where a build's jobs are drawn: by stages from left to right, each after all that it takes from. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from farm.schemas.builds import JobView
from farm.stages import JobKind

WIDTH, HEIGHT = 200, 62  #: of a job
_ACROSS, _DOWN, _MARGIN = 264, 78, 6
#: More jobs than this can't be made out as a picture.
MOST = 200
_LONGEST = 27
_STAGES = {
    JobKind.EXPORT: 1,
    JobKind.CAST: 2,
    JobKind.CALIBRATE: 2,
    JobKind.BUILD: 3,
    JobKind.MEASURE: 4,
}


@dataclass(frozen=True, kw_only=True)
class Node:
    job: JobView
    x: int
    y: int

    @property
    def head(self) -> str:
        return _short(" ".join(filter(None, (self.job.kind, self.job.precision))))

    @property
    def place(self) -> str:
        job = self.job
        typed = "on its typed ONNX" if job.kind is JobKind.MEASURE else ""
        return _short(job.target or job.runtime or typed)

    @property
    def look(self) -> str:
        """The class by which it is drawn."""
        return "skipped" if self.job.never_ran else str(self.job.state)

    @property
    def said(self) -> str:
        """Its state, with its progress, or how the build came by it."""
        job = self.job
        if job.never_ran:
            return "not run"
        if job.state == "running" and job.progress is not None:
            return f"{job.state} {job.progress:.0%}"
        return f"{job.state} · {job.reuse}" if job.reuse != "ran" else job.state


@dataclass(frozen=True, kw_only=True)
class Drawing:
    nodes: Sequence[Node]
    paths: Sequence[str]  #: as SVG has them: of edges that no others imply
    width: int
    height: int
    box: tuple[int, int] = (WIDTH, HEIGHT)


def draw(jobs: Sequence[JobView], edges: Iterable[tuple[int, int]]) -> Drawing | None:
    """Lay out jobs and the edges between them; None if there are too many to be seen."""
    if not 0 < len(jobs) <= MOST:
        return None
    takes: dict[int, list[int]] = {job.id: [] for job in jobs}
    pairs = [(made, taker) for made, taker in edges if made in takes and taker in takes]
    for made, taker in pairs:
        takes[taker].append(made)
    above = _above(takes)
    columns: dict[int, list[JobView]] = {}
    for job, depth in zip(jobs, _depths(jobs, takes), strict=True):
        columns.setdefault(depth, []).append(job)
    nodes: dict[int, Node] = {}
    for column, depth in enumerate(sorted(columns)):
        ordered = sorted(columns[depth], key=lambda job: _middle(takes[job.id], nodes))
        for row, job in enumerate(ordered):
            x, y = _MARGIN + column * _ACROSS, _MARGIN + row * _DOWN
            nodes[job.id] = Node(job=job, x=x, y=y)
    return Drawing(
        nodes=list(nodes.values()),
        paths=[
            _path(nodes[made], nodes[taker])
            for made, taker in pairs
            # One that others lead to as well only crosses them.
            if not any(made in above[one] for one in takes[taker])
        ],
        width=max(one.x for one in nodes.values()) + WIDTH + _MARGIN,
        height=max(one.y for one in nodes.values()) + HEIGHT + _MARGIN,
    )


def _above(takes: Mapping[int, Sequence[int]]) -> dict[int, set[int]]:
    """Of each job, all that come before it."""
    found: dict[int, set[int]] = {}
    for job_id in takes:
        new, above = list(takes[job_id]), set[int]()
        while new:
            one = new.pop()
            if one not in above:
                above.add(one)
                new += takes[one]
        found[job_id] = above
    return found


def _depths(jobs: Sequence[JobView], takes: Mapping[int, Sequence[int]]) -> list[int]:
    """How far right each job stands: by its stage, and right of all that it takes from."""
    depths: dict[int, int] = {}
    stages = {job.id: _STAGES.get(job.kind, 0) for job in jobs}

    def depth(job_id: int, below: frozenset[int] = frozenset()) -> int:
        if job_id not in depths and job_id not in below:
            before = [depth(one, below | {job_id}) for one in takes[job_id]]
            depths[job_id] = max(stages[job_id], 1 + max(before, default=-1))
        return depths.get(job_id, 0)

    return [depth(job.id) for job in jobs]


def _middle(made: Sequence[int], nodes: Mapping[int, Node]) -> float:
    """Beside the nearest jobs that it takes from, so that few edges cross."""
    found = [nodes[one] for one in made if one in nodes]
    nearest = max((one.x for one in found), default=0)
    places = [one.y for one in found if one.x == nearest]
    return sum(places) / len(places) if places else 0.0


def _path(made: Node, taker: Node) -> str:
    x, y = made.x + WIDTH, made.y + HEIGHT // 2
    to_x, to_y = taker.x, taker.y + HEIGHT // 2
    bend = max((to_x - x) // 2, 24)
    return f"M{x} {y}C{x + bend} {y} {to_x - bend} {to_y} {to_x} {to_y}"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"

"""PyTorch beside a GPU engine, in a process of its own: its ways, and whatever becomes of the process."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from farm.reports.metrics import GpuWhileTimed, Metrics, Timed
from farm.reports.speed_ups import PYTORCH
from farm.specs.precision import Precision
from farm.stages import MeasureParams
from tests.sandboxed import result_of
from workers import demo
from workers.clocks.cuda import Query, Span
from workers.measure.gpu import PeersAsked
from workers.measure.nvml import Tenants
from workers.measure.pytorch import PyTorch
from workers.measure.timer import PACE
from workers.peers import beside
from workers.peers.beside import PeersBeside
from workers.peers.files import PeersAnswer
from workers.peers.process import Ways, answered

PARAMS = MeasureParams(precision="fp16", format="pt2")
IMAGES = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 5))
    path = tmp_path_factory.mktemp("peers") / "net.pt2"
    demo.save_program(net.eval(), torch.zeros(2, 3, 16, 16), path)
    return path


def timed(p50_ms: float, **more: object) -> Timed:
    query = Query(h2d_ms=0.0, compute_ms=p50_ms, d2h_ms=0.0, enqueue_ms=0.01)
    found = Span(queries=[query] * 200, seconds=1.0).timed(2)
    return found.model_copy(update=more)


# The process, as the measure stage sees it.


def ask(source: Path, folder: Path, script: str | None = None, phases=None, **more):
    """Ask a script in the process's place, which finds the request's path in ``sys.argv``, or the process."""
    if script is not None:
        header = "import json, os, sys, time; at = json.load(open(sys.argv[1]))['answer']\n"
        more["command"] = (sys.executable, "-c", header + script)
    asked = PeersAsked(
        precision=Precision.FP16,
        batch=2,
        arrays={"input": IMAGES},
        pace=PACE,
        tenants=Tenants(uuid="GPU-1", own=1),
    )
    phases = [] if phases is None else phases
    folder.mkdir(exist_ok=True)
    found = PeersBeside(source, PARAMS, folder, **more)(
        asked, lambda phase, _: phases.append(phase)
    )
    Metrics(**found.figures)
    return found.figures, phases


def wrote(answer: PeersAnswer) -> str:
    return f"open(at, 'w').write({answer.model_dump_json()!r})\n"


EAGER = PeersAnswer(peers={"eager": timed(2.0)}, doing="compiled")
WHOLE = PeersAnswer(peers={name: timed(1.0) for name in PYTORCH if name != "eager_typed"})


def test_what_the_process_found_is_taken_as_it_is(source, tmp_path):
    found, _ = ask(source, tmp_path, wrote(WHOLE))
    assert found == WHOLE.peers


def at_clock(mhz: float | None) -> dict[str, object]:
    seen = None if mhz is None else {"min": mhz, "median": mhz, "max": mhz}
    return {"gpu": GpuWhileTimed.model_validate({"sm_clock_mhz": seen})}


def asked_again(source, folder, sm_mhz, kept: PeersAnswer | bytes):
    """Ask with kept figures; the process would say ``WHOLE``."""
    file = folder / "kept.json"
    file.write_bytes(kept if isinstance(kept, bytes) else kept.model_dump_json().encode())
    header = "import json, sys; at = json.load(open(sys.argv[1]))['answer']\n"
    command = (sys.executable, "-c", header + wrote(WHOLE))
    peers = PeersBeside(source, PARAMS, folder, kept=file, command=command)
    arrays = {"input": IMAGES}
    asked = PeersAsked(
        precision=Precision.FP16,
        batch=2,
        arrays=arrays,
        pace=PACE,
        tenants=Tenants(uuid="GPU-1", own=1),
        sm_mhz=sm_mhz,
    )
    return peers, peers(asked, lambda *_: None)


KEPT = PeersAnswer(
    peers={"compiled_cuda_graph": timed(3.0, **at_clock(1980)), "eager": Timed(reason="refused")}
)


def test_figures_kept_from_another_engine_are_taken_with_their_age(source, tmp_path):
    peers, found = asked_again(source, tmp_path, 1970.0, KEPT)
    assert found.figures == KEPT.peers
    assert found.age_s >= 0
    assert peers.to_keep is None  # they are kept already


@pytest.mark.parametrize(
    ("sm_mhz", "kept"),
    [
        (1500.0, KEPT),  # another clock
        (None, KEPT),  # an unknown one
        (1980.0, PeersAnswer(peers={"compiled_cuda_graph": timed(3.0, **at_clock(None))})),
        (1980.0, PeersAnswer(peers=KEPT.peers, doing="eager_cuda_graph")),  # cut off
        (1980.0, PeersAnswer(peers={"eager": timed(3.0, **at_clock(1980))})),  # without the best
        (1980.0, b"no answer at all"),
    ],
)
def test_figures_that_do_not_hold_now_are_taken_again_and_kept(source, tmp_path, sm_mhz, kept):
    peers, found = asked_again(source, tmp_path, sm_mhz, kept)
    assert found.figures == WHOLE.peers
    assert found.age_s is None
    assert PeersAnswer.read(peers.to_keep).peers == WHOLE.peers


def test_figures_without_the_best_are_not_kept(source, tmp_path):
    command = (sys.executable, "-c", "pass")
    peers = PeersBeside(source, PARAMS, tmp_path, command=command)
    assert peers.to_keep is None


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("os.abort()", "died (Aborted)"),
        ("os.kill(os.getpid(), 9)", "was killed, most likely for lack of memory"),
        ("sys.exit(3)", "died (exit code 3)"),
        ("", "its answer can't be read"),  # it ended well, and yet in the middle
    ],
)
def test_a_process_that_dies_leaves_what_it_found_and_a_reason_for_the_rest(
    source, tmp_path, end, words
):
    found, _ = ask(source, tmp_path, wrote(EAGER) + end)
    assert found["eager"].p50_ms == 2.0
    for name in ("compiled", "compiled_cuda_graph", "eager_cuda_graph"):
        assert found[name].p50_ms is None
        assert words in found[name].reason
        assert "at: PyTorch compiled" in found[name].reason


@pytest.mark.parametrize(
    "garbage",
    [
        "open(at, 'w').write('no JSON')",
        'open(at, \'w\').write(\'{"peers": {"eager": {"latency_ms": 3}}}\')',
        "open(at, 'w').write('[]')",
        "open(at, 'wb').write(b'\\xff' * 3_000_000)",
        "pass",
        "open(at, 'w').write('{}')",
        'open(at, \'w\').write(\'{"peers": {"speed_up": {"reason": "mine"}}}\')',
    ],
)
def test_garbage_in_the_answer_is_a_reason(source, tmp_path, garbage):
    found, _ = ask(source, tmp_path, garbage)
    assert found.keys() <= PYTORCH.keys()
    assert {name: one.p50_ms for name, one in found.items()}.keys() >= {"eager", "compiled"}
    assert all("its answer can't be read" in one.reason for one in found.values())


def test_an_answer_that_an_earlier_attempt_left_is_not_taken(source, tmp_path):
    (tmp_path / "peers.json").write_text(WHOLE.model_dump_json())
    found, _ = ask(source, tmp_path, "os.abort()")
    assert all("died" in one.reason for one in found.values())


def test_a_process_that_hangs_is_ended_with_all_that_it_started(source, tmp_path, monkeypatch):
    child = "[sys.executable, '-c', 'import time; time.sleep(600)']"
    script = (
        f"import subprocess; one = subprocess.Popen({child})\n"
        f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{one.pid}}')\n"
        + wrote(EAGER)
        + "time.sleep(600)"
    )
    phases: list[str] = []
    # An hour has passed as soon as it is heard of.
    clock = SimpleNamespace(monotonic=lambda: 3600.0 if phases else 0.0)
    monkeypatch.setattr(beside, "time", clock)
    found, _ = ask(source, tmp_path, script, phases=phases)
    assert found["eager"].p50_ms == 2.0
    assert "took longer than 30 min" in found["compiled"].reason
    assert phases == ["time: PyTorch compiled"]
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        while is_running(pid):
            time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def test_a_process_that_takes_the_jobs_memory_is_ended_before_the_job_is(
    source, tmp_path, monkeypatch
):
    monkeypatch.setenv("FARM_JOB_MEMORY_BYTES", str(1 << 20))
    found, _ = ask(source, tmp_path, wrote(EAGER) + "time.sleep(600)")
    assert "would have exceeded the job's memory limit" in found["compiled"].reason


def test_a_process_that_cannot_be_started_is_a_reason(source, tmp_path):
    found, _ = ask(source, tmp_path, command=("/nowhere/python",))
    assert "can't be started" in found["eager"].reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
def test_the_process_loads_the_source_and_tells_why_pytorch_has_no_gpu(source, tmp_path):
    found, _ = ask(source, tmp_path)
    assert found.keys() == PYTORCH.keys()
    assert all("process" not in one.reason for one in found.values()), found
    assert "NVIDIA" in found["eager"].reason or "CUDA" in found["eager"].reason


def in_a_job(source, _link):
    """Ask the process as the measure stage does, inside of a job's sandbox."""
    found, _ = ask(Path(source), Path.cwd())
    reasons = {name: one.reason for name, one in found.items()}
    return {"reasons": reasons, "limit": os.environ["FARM_JOB_MEMORY_BYTES"]}


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
def test_the_process_runs_in_a_jobs_sandbox_and_keeps_below_the_jobs_memory(source, box):
    made = result_of(in_a_job, str(source), replace(box, reads=(source,)))
    assert made["reasons"].keys() == PYTORCH.keys()
    assert all("process" not in reason for reason in made["reasons"].values()), made
    assert made["limit"] == str(box.limits.memory_bytes)


def test_a_source_that_the_process_cannot_load_is_a_reason(tmp_path):
    broken = tmp_path / "broken.pt2"
    broken.write_bytes(b"no program")
    found, _ = ask(broken, tmp_path / "work")
    assert "died (exit code 1)" in found["eager"].reason


# The ways of PyTorch, on this machine's CPU, with times that are given.


class Clock:
    """Runs what is bound once, and says how long it took."""

    def __init__(self, slow: dict[tuple[bool, bool], float | Exception]) -> None:
        self._slow = slow
        self.ran: list[tuple[str, bool, bool]] = []
        self.made: list[torch.Tensor] = []

    def __call__(self, bind, precision, channels_last) -> Timed:
        images = torch.from_numpy(IMAGES)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        bound = bind({"input": images})
        is_graph = getattr(bound, "is_graph", False)
        self.ran.append((precision, channels_last, is_graph))
        [made] = bound.enqueue().values()
        self.made.append(made)
        took = self._slow.get((channels_last, is_graph), 5.0)
        if isinstance(took, Exception):
            raise took
        return timed(took)


class Graph:
    """A CUDA graph that only claims to be one."""

    is_graph = True

    def __init__(self, bound) -> None:
        self.enqueue = bound.enqueue


def capture(bind):
    return lambda inputs: Graph(bind(inputs))


def figures(source: Path, folder: Path, clock: Clock, precision: Precision) -> dict[str, Timed]:
    model = PyTorch(torch.export.load(source), "cpu")
    answer = folder / "answer.json"
    answered(Ways(model, precision, clock, capture).figures(), answer)
    read = PeersAnswer.read(answer)
    assert read is not None
    assert read.doing is None
    return dict(read.peers)


def test_pytorch_runs_every_way_in_the_asked_precision_and_takes_the_faster_layout(
    source, tmp_path
):
    clock = Clock({(True, False): 3.0, (False, False): 4.0, (True, True): 2.0, (False, True): 1.0})
    found = figures(source, tmp_path, clock, Precision.BF16)
    assert clock.ran == [
        ("fp32", False, False),
        ("bf16", False, False),
        ("bf16", True, False),
        ("bf16", True, True),
        ("bf16", False, False),
        ("bf16", False, True),
        ("bf16", False, True),
    ]
    assert {
        name: (one.precision, one.channels_last, one.p50_ms) for name, one in found.items()
    } == {
        "eager": ("fp32", False, 4.0),
        "eager_typed": ("bf16", False, 4.0),
        "compiled": ("bf16", True, 3.0),
        "compiled_cuda_graph": ("bf16", False, 1.0),
        "eager_cuda_graph": ("bf16", False, 1.0),
    }
    reference, *others = clock.made
    for made in others:
        assert made.dtype == torch.float32  # the source's own type
        assert not torch.equal(made, reference)  # it did compute in bf16
        torch.testing.assert_close(made, reference, atol=0.05, rtol=0.05)


def test_the_source_as_it_is_serves_where_it_has_the_precision(source, tmp_path):
    found = figures(source, tmp_path, Clock({}), Precision.FP32)
    assert "eager_typed" not in found
    assert found["eager"].precision == "fp32"


def test_a_way_that_fails_is_a_reason_and_the_next_is_tried(source, tmp_path):
    clock = Clock({(True, True): RuntimeError("not capturable"), (False, False): 1.0})
    found = figures(source, tmp_path, clock, Precision.FP32)
    assert found["compiled"].p50_ms == 1.0
    assert found["compiled_cuda_graph"].warnings == [
        "with images as NHWC it couldn't be timed: RuntimeError: not capturable"
    ]
    both = RuntimeError("not capturable")
    found = figures(source, tmp_path, Clock({(True, True): both, (False, True): both}), "fp32")
    assert found["compiled_cuda_graph"].reason == "RuntimeError: not capturable"
    assert found["compiled"].p50_ms == 5.0


def test_compiled_weights_are_frozen(source, monkeypatch):
    frozen = []
    from torch._inductor import freezing

    was = freezing.freeze
    monkeypatch.setattr(freezing, "freeze", lambda *given: frozen.append(1) or was(*given))
    bound = PyTorch(torch.export.load(source), "cpu").compiled(torch.float32)
    bound({"input": torch.from_numpy(IMAGES)}).enqueue()
    assert frozen == [1]


def test_a_net_without_images_is_tried_in_one_layout(tmp_path):
    program = torch.export.export(nn.Linear(4, 2).eval(), (torch.zeros(2, 4),))
    assert not PyTorch(program, "cpu").has_images
    half = torch.export.export(nn.Linear(4, 2).eval().half(), (torch.zeros(2, 4).half(),))
    assert PyTorch(half, "cpu").precision == "fp16"


def test_the_answer_says_what_is_being_done_while_it_is_done(tmp_path):
    path = tmp_path / "answer.json"

    def seen():
        return PeersAnswer.read(path)

    def take(name):
        assert seen().doing == name
        return {name: timed(1.0)}

    answered(iter([("eager", lambda: take("eager")), ("compiled", lambda: take("compiled"))]), path)
    assert (seen().doing, sorted(seen().peers)) == (None, ["compiled", "eager"])


def test_the_process_is_ended_first_when_memory_runs_out():
    from workers.peers.process import _die_first

    pid = os.fork()
    if pid == 0:
        _die_first()
        os._exit(Path("/proc/self/oom_score_adj").read_text().strip() != "1000")
    assert os.waitpid(pid, 0)[1] == 0

"""The figures that are made of the times that a GPU's events tell."""

import os
import sys
from types import SimpleNamespace

import pytest

from farm.reports.metrics import GpuWhileTimed, Range
from workers.clocks.cuda import Query, Span
from workers.measure import nvml
from workers.measure.nvml import Tenants


def queries(count: int, *, compute_ms: float = 2.0, enqueue_ms: float = 0.5) -> list[Query]:
    return [
        Query(h2d_ms=0.25, compute_ms=compute_ms, d2h_ms=0.125, enqueue_ms=enqueue_ms)
        for _ in range(count)
    ]


def test_latency_is_the_sum_of_the_parts_and_throughput_is_over_the_whole_span():
    # Transfers overlap with compute: the span is shorter than the latencies' sum.
    facts = Span(queries=queries(1000), seconds=2.0).timed(batch=8)
    assert facts.latency_ms == dict.fromkeys(("p50", "p90", "p95", "p99", "mean", "min"), 2.375)
    assert facts.queries_per_s == 500.0
    assert facts.samples_per_s == 4000.0
    assert facts.iterations == 1000
    assert facts.host_bound is False


def test_figures_are_the_hosts_if_enqueueing_takes_almost_as_long_as_computing():
    def is_host_bound(enqueue_ms):
        return Span(queries=queries(200, enqueue_ms=enqueue_ms), seconds=1.0).timed(8).host_bound

    assert is_host_bound(1.7) is True
    assert is_host_bound(1.6) is False


STEADY = GpuWhileTimed(sm_clock_mhz=Range(min=1980, median=1980, max=1980))
MOVED = GpuWhileTimed(sm_clock_mhz=Range(min=1410, median=1755, max=1980))
LIMITED = MOVED.model_copy(update={"slowed_by": ["its power limit"]})
SPREAD = queries(1000) + queries(1000, compute_ms=2.4)


def test_steady_figures_need_no_warning():
    assert Span(queries=queries(1000), seconds=2.0).warnings(STEADY) == []


@pytest.mark.parametrize(
    ("timed", "words"),
    [
        (queries(1000, enqueue_ms=1.9), "to enqueue"),
        (SPREAD, "varies by 9.1%"),
        (queries(99), "only 99"),
    ],
)
def test_figures_that_are_not_to_be_trusted_come_with_the_reason(timed, words):
    [warning] = Span(queries=timed, seconds=2.0).warnings(STEADY)
    assert words in warning


@pytest.mark.parametrize(
    ("seen", "words", "is_lock_advised"),
    [
        (STEADY, "though the SM clock was steady at 1980 MHz", False),
        (MOVED, "while the SM clock moved from 1410 to 1980 MHz: lock the GPU's clocks", True),
        (LIMITED, "moved from 1410 to 1980 MHz, limited by its power limit", False),
        (GpuWhileTimed(), "is unknown, since NVML reported none", False),
        (GpuWhileTimed(sm_clock_mhz=Range()), "is unknown", False),
    ],
)
def test_the_clocks_lock_is_advised_only_where_the_clocks_moved_freely(
    seen, words, is_lock_advised
):
    [warning] = Span(queries=SPREAD, seconds=2.0).warnings(seen)
    assert words in warning
    assert ("lock the GPU's clocks" in warning) == is_lock_advised


def test_a_host_bound_compute_time_varies_with_the_host_and_not_with_the_clocks():
    timed = queries(1000, enqueue_ms=2.0) + queries(1000, compute_ms=2.4, enqueue_ms=2.0)
    host, varies = Span(queries=timed, seconds=2.0).warnings(MOVED)
    assert "the GPU waits for the host" in host
    assert varies == "the compute time varies by 9.1%: it includes waiting for the host"


class Nvml(SimpleNamespace):
    """A GPU whose power limit holds its clocks down, and that has no thermometer."""

    NVMLError = type("NVMLError", (Exception,), {})
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    pids = (1, 2)

    def __init__(self):
        super().__init__(_energies=iter((1000, 3500)))

    def __getattr__(self, name):
        def temperature(*_):
            raise self.NVMLError("not supported")

        return {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
            "nvmlDeviceGetName": lambda _: "NVIDIA H200",
            "nvmlSystemGetDriverVersion": lambda: "580.1",
            "nvmlDeviceGetTotalEnergyConsumption": lambda _: next(self._energies),
            "nvmlDeviceGetClockInfo": lambda _, which: 1980 if which == 1 else 3201,
            "nvmlDeviceGetPowerUsage": lambda _: 650_000,
            "nvmlDeviceGetTemperature": temperature,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda _: 0x4,
            "nvmlDeviceGetComputeRunningProcesses": lambda _: [
                SimpleNamespace(pid=pid) for pid in self.pids
            ],
        }[name]


@pytest.fixture
def driver(monkeypatch):
    made = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.setattr(nvml, "_EVERY_S", 0.001)
    return made


def test_what_nvml_tells_while_it_is_timed_is_kept(driver):
    with nvml.watching(Tenants(uuid="GPU-1", others=2)) as seen:
        while not seen.slowed:
            pass
    facts = seen.report()
    assert facts.sm_clock_mhz == Range(min=1980, median=1980, max=1980)
    assert facts.power_w.median == 650.0
    assert facts.temperature_c is None
    assert facts.energy_j == 2.5
    assert facts.slowed_by == ["its power limit"]
    assert facts.other_processes == 2


def test_processes_that_come_while_it_is_timed_count_and_the_jobs_own_do_not(driver):
    with nvml.watching(Tenants(uuid="GPU-1", own=2)) as seen:
        while not seen.sm_mhz:
            pass
        assert seen.others == 0
        driver.pids = (1, 2, 3, 4)
        while seen.others < 2:
            pass
        driver.pids = (1, 2)
    assert seen.report().other_processes == 2


@pytest.mark.parametrize(
    ("before", "now", "beside", "own", "others"),
    [
        ((), (os.getpid(),), 0, 1, 0),
        ((7,), (7, os.getpid()), 0, 1, 1),
        ((), (4711,), 0, 1, 0),  # the same process, by the number that another namespace gives it
        ((), (), 0, 0, 0),  # in a container that lists nobody
        ((7, 8), (7, 8, os.getpid()), 1, 2, 1),  # beside the engine's process
    ],
)
def test_a_jobs_processes_are_told_from_those_of_others(driver, before, now, beside, own, others):
    driver.pids = before
    count = len(nvml.pids_on("GPU-1"))
    driver.pids = now
    assert Tenants.now("GPU-1", count, beside=beside) == Tenants(
        uuid="GPU-1", own=own, others=others
    )


def test_without_a_driver_nothing_is_known_and_nothing_fails():
    with nvml.watching(Tenants(uuid="GPU-1")) as seen:
        pass
    assert seen.report().sm_clock_mhz is None
    assert nvml.pids_on("GPU-1") == []

"""The figures that are made of the times that a GPU's events tell."""

import sys
from types import SimpleNamespace

import pytest

from farm.reports.metrics import Range
from workers.clocks.cuda import Query, Span
from workers.measure import nvml


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


def test_steady_figures_need_no_warning():
    assert Span(queries=queries(1000), seconds=2.0).warnings() == []


@pytest.mark.parametrize(
    ("timed", "words"),
    [
        (queries(1000, enqueue_ms=1.9), "to enqueue"),
        (queries(1000) + queries(1000, compute_ms=2.4), "varies by 9.1%"),
        (queries(99), "only 99"),
    ],
)
def test_figures_that_are_not_to_be_trusted_come_with_the_reason(timed, words):
    [warning] = Span(queries=timed, seconds=2.0).warnings()
    assert words in warning


class Nvml(SimpleNamespace):
    """A GPU whose power limit holds its clocks down, and that has no thermometer."""

    NVMLError = type("NVMLError", (Exception,), {})
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    energies = iter((1000, 3500))

    def __getattr__(self, name):
        def temperature(*_):
            raise self.NVMLError("not supported")

        return {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
            "nvmlDeviceGetName": lambda _: "NVIDIA H200",
            "nvmlSystemGetDriverVersion": lambda: "580.1",
            "nvmlDeviceGetTotalEnergyConsumption": lambda _: next(self.energies),
            "nvmlDeviceGetClockInfo": lambda _, which: 1980 if which == 1 else 3201,
            "nvmlDeviceGetPowerUsage": lambda _: 650_000,
            "nvmlDeviceGetTemperature": temperature,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda _: 0x4,
            "nvmlDeviceGetComputeRunningProcesses": lambda _: [1, 2],
        }[name]


def test_what_nvml_tells_while_it_is_timed_is_kept(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    monkeypatch.setattr(nvml, "_EVERY_S", 0.001)
    with nvml.watching("GPU-1", others=nvml.processes_on("GPU-1")) as seen:
        while not seen.slowed:
            pass
    facts = seen.report()
    assert facts.sm_clock_mhz == Range(min=1980, median=1980, max=1980)
    assert facts.power_w.median == 650.0
    assert facts.temperature_c is None
    assert facts.energy_j == 2.5
    assert facts.slowed_by == ["its power limit"]
    assert facts.other_processes == 2


def test_without_a_driver_nothing_is_known_and_nothing_fails():
    with nvml.watching("GPU-1") as seen:
        pass
    assert seen.report().sm_clock_mhz is None
    assert nvml.processes_on("GPU-1") == 0

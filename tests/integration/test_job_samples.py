"""What jobs use is sampled while they run: little of it is kept, however long that takes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from itertools import pairwise
from types import SimpleNamespace

import pytest
from sqlalchemy import delete, select

from farm.database.base import now
from farm.database.tables import BuildJob, Event, Job, JobInput, JobSampleRow
from farm.errors import NotFound
from farm.queue import samples
from workers.measure import nvml
from workers.runner import sampler as module
from workers.runner.child import Child
from workers.runner.sampler import Sample, Sampler, Series, merged
from workers.runner.watch import Watch

BURNT_S = 0.6
HELD_BYTES = 64 << 20


def works(_argument, _link):
    """Hold memory, and use a CPU here and in a process of its own."""
    held = bytearray(HELD_BYTES)
    script = f"import time\nwhile time.process_time() < {BURNT_S}: pass"
    other = subprocess.Popen([sys.executable, "-c", script])
    start = time.process_time()
    while time.process_time() - start < BURNT_S:
        pass
    return [other.wait(), len(held)]


def of_job(ledger, job_id):
    with ledger.db.read() as session:
        return samples.of_job(session, job_id)


def watch(ledger, claim, gpu=None) -> Watch:
    settings = SimpleNamespace(lease_ttl_s=30.0)
    flower = SimpleNamespace(tell=lambda *_, **__: None)
    here = SimpleNamespace(
        db=ledger.db, stopping=threading.Event(), settings=settings, gpu=gpu, flower=flower
    )
    return Watch(here, claim)


def follow(ledger, claim, gpu=None) -> None:
    with Child(works, None, timeout_s=600) as child:
        assert watch(ledger, claim, gpu).follow(child) is False
        assert child.result() == [0, HELD_BYTES]


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(module, "_FIRST_EVERY_S", 0.05)


def test_a_jobs_processors_and_memory_are_sampled_with_those_of_its_own_processes(ledger):
    ledger.submit()
    claim = ledger.claim_next()
    follow(ledger, claim)
    [found] = of_job(ledger, claim.job_id).attempts
    assert found.attempt == 1
    assert found.at_s == sorted(found.at_s)
    spans = [after - before for before, after in pairwise(found.at_s)]
    spent_s = sum(cpus * span for cpus, span in zip(found.cpus[1:], spans, strict=True))
    # Of both processes' time, all but what they used before the first sample and since the last.
    assert 0.2 * BURNT_S < spent_s < 2 * BURNT_S + 2.0
    assert max(found.memory_bytes) > HELD_BYTES
    assert found.gpu_share == found.gpu_power_w == []


def test_on_a_gpu_what_nvml_tells_of_it_is_sampled(ledger, monkeypatch):
    nvml_of = {
        "nvmlDeviceGetUtilizationRates": lambda _: SimpleNamespace(gpu=97),
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(used=5 << 30),
        "nvmlDeviceGetPowerUsage": lambda _: 250_500,
        "nvmlDeviceGetClockInfo": lambda _device, _kind: 1980,
        "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "NVML_CLOCK_SM": 1,
        "NVMLError": OSError,
    }
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**nvml_of))
    ledger.submit()
    claim = ledger.claim_next()
    follow(ledger, claim, gpu=SimpleNamespace(uuid="GPU-1"))
    [found] = of_job(ledger, claim.job_id).attempts
    assert set(found.gpu_share) == {0.97}
    assert set(found.gpu_memory_bytes) == {5 << 30}
    assert set(found.gpu_power_w) == {250.5}
    assert set(found.gpu_clock_mhz) == {1980}
    assert len(found.gpu_share) == len(found.at_s)


def test_a_gpu_that_tells_nothing_costs_a_job_nothing(ledger, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with nvml.asking("GPU-1") as ask:
        assert ask is None
    ledger.submit()
    claim = ledger.claim_next()
    follow(ledger, claim, gpu=SimpleNamespace(uuid="GPU-1"))
    [found] = of_job(ledger, claim.job_id).attempts
    assert found.gpu_share == []


@pytest.mark.parametrize("count", [1, 199, 200, 201, 1000, 100_000])
def test_at_most_200_samples_are_kept_and_they_cover_the_whole_time(count):
    series = Series(every_s=1.0)
    for number in range(1, count + 1):
        series.add(Sample(at_s=float(number), cpus=1.0, memory_bytes=number))
    assert len(series.samples) <= samples.MOST
    assert len(series.samples) >= min(count, samples.MOST // 2)
    assert series.samples[-1].at_s == count
    assert max(one.memory_bytes for one in series.samples) == count
    assert series.every_s == 2.0 ** (series.every_s.as_integer_ratio()[0].bit_length() - 1)


def test_two_samples_become_their_mean_and_of_memory_the_larger():
    one = Sample(at_s=1.0, cpus=1.0, memory_bytes=7, gpu_share=0.5, gpu_memory_bytes=None)
    two = Sample(at_s=2.0, cpus=2.0, memory_bytes=3, gpu_share=None, gpu_memory_bytes=9)
    assert merged(one, two) == Sample(
        at_s=2.0, cpus=1.5, memory_bytes=7, gpu_share=0.5, gpu_memory_bytes=9
    )


def test_samples_are_kept_at_the_end_and_meanwhile_rarely(monkeypatch):
    monkeypatch.setattr(module, "_KEEP_EVERY_S", float("inf"))
    with Child(works, None, timeout_s=600) as child, Sampler(child.pid, None) as sampler:
        for _ in child.events():
            sampler.look()
        assert sampler.to_keep(has_ended=False) is None
        assert len(sampler.to_keep(has_ended=True)["at_s"]) >= 1
        monkeypatch.setattr(module, "_KEEP_EVERY_S", -1.0)
        assert sampler.to_keep(has_ended=False) is not None
        sampler.kept()
        assert sampler.to_keep(has_ended=True) is None  # nothing is new


def test_an_attempts_samples_are_replaced_and_those_of_others_stay(ledger):
    ledger.submit()
    claim = ledger.claim_next()
    at = now()
    for attempt, values in ((1, [1.0]), (2, [1.0]), (2, [1.0, 2.0])):
        with ledger.db.write() as session:
            series = {"at_s": values, "cpus": values, "memory_bytes": [1] * len(values)}
            samples.keep(session, claim.job_id, attempt, began_at=at, series=series)
    found = of_job(ledger, claim.job_id)
    assert [(one.attempt, one.cpus) for one in found.attempts] == [(1, [1.0]), (2, [1.0, 2.0])]


def test_a_job_without_samples_is_told_from_one_that_is_not_there(ledger):
    ledger.submit()
    [job] = ledger.queued()
    assert of_job(ledger, job.id).attempts == []
    with pytest.raises(NotFound, match="there is no job 999"):
        of_job(ledger, 999)


def test_samples_go_with_their_job(ledger):
    ledger.submit()
    claim = ledger.claim_next()
    with ledger.db.write() as session:
        series = {"at_s": [1.0], "cpus": [1.0], "memory_bytes": [1]}
        samples.keep(session, claim.job_id, 1, began_at=now(), series=series)
        session.execute(delete(JobInput).where(JobInput.needs_id == claim.job_id))
        for of_job in (BuildJob, Event):
            session.execute(delete(of_job).where(of_job.job_id == claim.job_id))
        session.execute(delete(Job).where(Job.id == claim.job_id))
    with ledger.db.read() as session:
        assert session.scalars(select(JobSampleRow)).all() == []

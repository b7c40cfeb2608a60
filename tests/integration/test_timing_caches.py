"""The fleet's timing caches: handed to a build, added to by compare-and-set, and never in its way."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sqlalchemy import select

from farm.builds import logs, views
from farm.daemon import gc
from farm.database.base import now
from farm.database.tables import Job, TimingCache
from farm.fleet import timing_caches
from farm.fleet.timing_caches import Revision, Timed
from farm.machine.gpus import Gpu
from farm.settings import Settings
from farm.specs.options import BuilderOptions
from farm.specs.roles import Role
from farm.specs.runtime import Target
from farm.stages import BuildParams, JobKind
from farm.store.local import LocalStore
from workers.runner import task
from workers.runner import timing_caches as fleet_caches
from workers.runner.app import Context
from workers.runner.made import Made
from workers.stages.base import StageRequest, run_request

H200 = Gpu(uuid="GPU-1", name="NVIDIA H200", compute_capability="sm_90", memory_bytes=1)


def chain(path: Path, *widths: int) -> Path:
    """A graph of matrix products of these widths."""
    nodes, tensors = [], []
    for n, (rows, columns) in enumerate(pairwise(widths)):
        tensors.append(numpy_helper.from_array(np.ones((rows, columns), np.float32), f"w{n}"))
        nodes.append(helper.make_node("MatMul", [f"h{n}", f"w{n}"], [f"h{n + 1}"], name=f"/{n}"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("h0", TensorProto.FLOAT, ["n", widths[0]])],
        [helper.make_tensor_value_info(f"h{len(nodes)}", TensorProto.FLOAT, ["n", widths[-1]])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


class Worker:
    """A worker with classic TensorRT and an H200, as far as its builds are concerned."""

    def __init__(self, ledger, folder):
        self.ledger, self.folder, self.builds = ledger, folder, 0
        self.context = SimpleNamespace(
            db=ledger.db,
            store=LocalStore(folder / "store"),
            gpu=H200,
            worker="gpu0@here",
            stopping=threading.Event(),
            sandbox=lambda *_, **__: None,
        )
        ledger.worker("gpu0@here", queues=("tensorrt.h200", "tensorrt.sm_90"))
        ledger.submit(targets=["tensorrt:h200"], precisions=["fp32"])
        while (claim := ledger.claim_next()).kind != "build":
            ledger.succeed(claim)
        self.claim = claim

    def start(self, *widths, **options):
        """Begin a build; what it returns ends it, and returns its facts."""
        self.builds += 1
        workdir = self.folder / f"build-{self.builds}"
        workdir.mkdir()
        params = BuildParams(
            target=Target(runtime="tensorrt", gpu="h200"),
            compute_capability="sm_90",
            precision="fp32",
            options=BuilderOptions(**options),
        ).model_dump(mode="json")
        claim = SimpleNamespace(**{**vars(self.claim), "params": params})
        part = fleet_caches.Cache(self.context, claim)
        typed = chain(workdir / "typed.onnx", *widths)
        cached = {role: self.context.store.place(one) for role, one in part.blobs.items()}
        inputs = {"typed": typed, **cached}
        request = StageRequest(kind=JobKind.BUILD, params=params, inputs=inputs, workdir=workdir)

        def end():
            said = run_request(request, lambda *_: None)
            files = {role: Path(path) for role, path in said["outputs"].items()}
            made = part.made(Made(outputs=files, facts=said["facts"]))
            assert Role.TIMING_CACHE not in made.outputs
            part.kept()
            return made.facts.get("timing_cache") or made.facts

        return end

    def build(self, *widths, **options):
        return self.start(*widths, **options)()

    def listed(self):
        with self.context.db.read() as session:
            return timing_caches.views(session)


@pytest.fixture
def worker(ledger, classic, tmp_path):
    return Worker(ledger, tmp_path)


def test_a_build_starts_with_what_the_fleet_has_timed_and_adds_to_it(worker):
    first = worker.build(4, 8, 16)
    assert first["digest"] is None
    assert (first["entries_before"], first["misses"], first["hit"]) == (0, 2, False)
    [cache] = worker.listed()
    second = worker.build(4, 8, 32)
    assert second["digest"] == cache.digest
    assert (second["entries_before"], second["misses"], second["entries_after"]) == (2, 1, 3)
    third = worker.build(4, 8, 16)
    assert (third["misses"], third["hit"]) == (0, True)
    [cache] = worker.listed()
    assert (cache.gpu, cache.compute_capability) == ("NVIDIA H200", "sm_90")
    assert (cache.entries, cache.builds, cache.hits, cache.revision) == (3, 3, 1, 2)
    assert cache.hit_rate == pytest.approx(1 / 3, abs=1e-4)


def test_builds_that_end_at_the_same_time_lose_nothing_of_what_they_have_timed(worker):
    # Both start with an empty cache; who comes second combines, in a process of its own.
    one, other = worker.start(4, 8, 16), worker.start(4, 32)
    one()
    other()
    [cache] = worker.listed()
    assert (cache.entries, cache.builds, cache.revision) == (3, 2, 2)
    assert worker.build(4, 32)["hit"]
    assert worker.build(4, 8, 16)["hit"]


def test_a_worker_that_shuts_down_combines_no_caches(worker):
    one, other = worker.start(4, 8), worker.start(4, 32)
    one()
    worker.context.stopping.set()
    assert other()["misses"] == 1
    assert worker.listed()[0].entries == 1


def test_a_broken_cache_costs_a_build_the_time_and_is_replaced(worker, tmp_path, capfd):
    worker.build(4, 8)
    broken = tmp_path / "broken"
    broken.write_bytes(b"not a timing cache")
    stored = worker.context.store.take(broken)
    [cache] = worker.listed()
    with worker.context.db.write() as session:
        row = session.scalars(select(TimingCache)).one()
        current = Revision(number=row.revision, digest=row.digest)
        timed = Timed(**{name: getattr(row, name) for name in Timed.__dataclass_fields__})
        assert timing_caches.replace(
            session, timed, instead_of=current, digest=stored.digest, size=18, entries=None
        )
    facts = worker.build(4, 8)
    assert (facts["taken"], facts["hit"], facts["misses"]) == (False, False, 1)
    assert "rejects the fleet's timing cache" in capfd.readouterr().out
    assert worker.listed()[0].digest == cache.digest
    assert worker.build(4, 8)["hit"]


def test_a_cache_that_was_deleted_behind_the_farms_back_is_made_anew(worker):
    worker.build(4, 8)
    path = worker.context.store.place(worker.listed()[0].digest)
    path.unlink()
    facts = worker.build(4, 8)
    assert (facts["digest"], facts["misses"]) == (None, 1)
    assert worker.build(4, 8)["hit"]


def test_timings_of_another_gpu_are_not_mixed_in(worker, classic, monkeypatch, ledger):
    end = worker.start(4, 8)
    worker.build(4, 16)
    # The same name, and yet other hardware: TensorRT's own check tells.
    monkeypatch.setattr(classic, "GPU", "another stepping")
    assert end()["misses"] == 1
    [cache] = worker.listed()
    assert (cache.entries, cache.builds) == (1, 1)
    with ledger.db.read() as session:
        [build] = [view.id for view in views.builds(session, limit=5)]
        assert "doesn't go with the fleet's cache" in logs.log(session, build, worker.claim.job_id)


def test_a_store_that_is_full_fails_no_build(worker, monkeypatch):
    from farm.errors import StorageFull

    def full(_path):
        raise StorageFull

    monkeypatch.setattr(worker.context.store, "take", full)
    assert worker.build(4, 8)["misses"] == 1
    assert worker.listed() == []


def test_a_build_that_wants_no_timing_cache_gets_none_and_gives_none(worker):
    worker.build(4, 8)
    assert "timing_cache" not in worker.build(4, 8, 64, timing_cache=False)
    assert worker.listed()[0].builds == 1


def test_a_worker_without_a_gpu_and_other_runtimes_have_none(worker):
    worker.context.gpu = None
    assert fleet_caches.offer(worker.context, worker.claim) is None


def test_only_one_of_many_at_once_sets_a_revision(ledger):
    timed = Timed(gpu="g", compute_capability="sm_90", tensorrt="11", cuda="13")
    won = []

    def try_to_set(number):
        with ledger.db.write() as session:
            if timing_caches.replace(
                session,
                timed,
                instead_of=Revision(),
                digest=f"sha256:{number:064x}",
                size=1,
                entries=1,
            ):
                won.append(number)

    threads = [threading.Thread(target=try_to_set, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with ledger.db.read() as session:
        [cache] = timing_caches.views(session)
    assert len(won) == 1
    assert cache.digest == f"sha256:{won[0]:064x}"


def test_gc_keeps_the_current_caches_and_takes_those_they_replaced(worker):
    worker.build(4, 8)
    [old] = worker.listed()
    worker.build(4, 16)
    [new] = worker.listed()
    report = gc.collect(worker.context.db, worker.context.store, older_than_s=0)
    assert [blob.digest for blob in report.removed] == [old.digest]
    assert worker.context.store.has(new.digest)
    assert worker.build(4, 16)["hit"]


def test_a_cache_that_cannot_tell_its_entries_is_compared_by_its_bytes(
    worker, classic, monkeypatch
):
    monkeypatch.delattr(classic.ITimingCache, "queryKeys")  # as before TensorRT 10.8
    first = worker.build(4, 8)
    assert (first["entries_after"], first["misses"], first["hit"]) == (None, None, False)
    assert worker.build(4, 8)["hit"]
    assert not worker.build(4, 16)["hit"]


def test_what_is_listed_says_when_it_was_used(worker):
    worker.build(4, 8)
    [cache] = worker.listed()
    assert (now() - cache.updated_at).total_seconds() < 600
    assert json.loads(cache.model_dump_json())["builds"] == 1


def test_a_worker_gives_its_job_the_cache_and_takes_it_out_of_what_the_job_made(worker, tmp_path):
    worker.build(4, 16)
    typed = worker.context.store.take(chain(tmp_path / "typed.onnx", 4, 8, 16))
    rung = []
    context = Context(
        settings=Settings(home=tmp_path / "home"),
        db=worker.ledger.db,
        store=worker.context.store,
        doorbell=SimpleNamespace(ring=rung.extend),
        worker="gpu0@here",
        gpu=H200,
    )
    claim = replace(worker.claim, inputs={"typed": typed.digest}, toolchain={})
    task._work(context, claim)
    assert [bell.title.split()[0] for bell in rung] == ["measure"]
    with worker.ledger.db.read() as session:
        job = session.get_one(Job, claim.job_id)
        assert job.state == "succeeded"
        assert set(job.outputs) == {"engine", "layers"}
        used = job.facts["timing_cache"]
        assert job.facts["peak_memory_bytes"] > 50 * 2**20  # of a process with ONNX in it
    assert (used["revision"], used["entries_before"], used["misses"]) == (1, 1, 2)
    [cache] = worker.listed()
    assert (cache.entries, cache.revision) == (3, 2)

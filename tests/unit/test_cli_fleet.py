"""What a farm has, on the command line: workers, plugins, timing caches, targets, its store."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

from farm.cli import exits
from farm.testing import documents
from farm.testing.stub_farm import StubFarm
from tests.unit.conftest import Run


def test_workers_are_listed(run: Run, stub: StubFarm) -> None:
    assert "farm worker" in run("workers").stdout
    stub.workers = [
        {
            "name": "host-cpu",
            "host": "host",
            "online": True,
            "gpu": None,
            "gpu_uuid": None,
            "tags": ["cpu"],
            "queues": ["cpu"],
            "runtimes": {"onnxruntime": "1.31.0"},
            "toolchain": {},
            "job": 2,
            "job_title": "build digits:int8@sm_89",
            "started_at": documents.NOW,
            "last_seen_at": documents.NOW,
        }
    ]
    assert re.search(
        r"host-cpu +online +cpu +2 build digits:int8@sm_89 +.* ago +CPU\n", run("workers").stdout
    )
    assert "onnxruntime 1.31.0" in run("workers", "--wide").stdout


def test_a_plugin_library_is_added_with_its_signature(
    run: Run, stub: StubFarm, tmp_path: Path
) -> None:
    library, signature = tmp_path / "libfoo.so", tmp_path / "libfoo.so.sig"
    library.write_bytes(b"\x7fELF...")
    signature.write_bytes(bytes(64))
    shown = run("plugins", "add", str(library), "--signature", str(signature)).stdout
    [added] = stub.plugins
    assert (added["name"], base64.b64decode(added["signature"])) == ("libfoo.so", bytes(64))
    assert added["digest"] in stub.blobs
    assert f"--option plugins={added['digest']}" in shown
    assert re.search(r"libfoo\.so +sha256:[0-9a-f]{64} +7 B +K{43}=", run("plugins", "list").stdout)


def test_timing_caches_are_listed_with_their_worth(run: Run, stub: StubFarm) -> None:
    assert "the first tensorrt build" in run("timing-caches").stdout
    stub.timing_caches = [
        {
            "gpu": "NVIDIA H200",
            "compute_capability": "sm_90",
            "tensorrt": "11.4.0.106",
            "cuda": "13",
            "digest": "sha256:" + "a" * 64,
            "bytes": 4096,
            "revision": 3,
            "entries": None,
            "builds": 4,
            "hits": 1,
            "hit_rate": 0.25,
            "updated_at": documents.NOW,
        }
    ]
    assert re.search(
        r"NVIDIA H200 +4 +25\.0 % +4\.1 kB +.* ago +– +tensorrt 11\.4\.0\.106, cuda 13, sm_90",
        run("timing-caches", "--wide").stdout,
    )


def test_targets_are_listed_with_why_and_by_product(run: Run, stub: StubFarm) -> None:
    stub.targets = [
        {
            "target": f"tensorrt-rtx:{tag}",
            "runtime": "tensorrt-rtx",
            "gpu": tag,
            "compute_capability": tag,
            "products": products,
            "status": "buildable",
            "why": "1 worker online",
            "precisions": ["fp16", "int8"],
        }
        for tag, products in (("sm_89", ["rtx-4090"]), ("sm_120", ["rtx-5090"]))
    ]
    assert len(run("targets").stdout.splitlines()) == 3
    shown = run("targets", "--gpu", "rtx-5090").stdout
    assert "tensorrt-rtx:sm_120  buildable" in shown
    assert "sm_89" not in shown
    assert run("targets", "--gpu", "rtx-9999").exit_code == exits.USAGE


def test_gc_says_what_it_would_free_and_how(run: Run, stub: StubFarm) -> None:
    result = run("gc", "--dry-run", "--older-than", "7d")
    assert result.exit_code == exits.OK, result.output
    assert "would remove 1 blob (52.4 MB) and 2 interrupted uploads (10 B)" in result.stdout
    assert "kept 14 blobs (734.0 MB)" in result.stdout
    assert "farm gc --older-than 7d" in result.stdout
    assert stub.collected == [{"dry_run": True, "older_than_s": 7 * 86400}]


def test_gc_refuses_a_duration_that_it_cannot_read(run: Run, stub: StubFarm) -> None:
    result = run("gc", "--older-than", "a week")
    assert result.exit_code == exits.USAGE
    assert "use a number and s, m, h or d: 24h" in result.output
    assert stub.collected == []


def test_gc_as_json_is_the_report(run: Run) -> None:
    result = run("gc", "--json")
    assert json.loads(result.stdout)["removed_total"] == 1

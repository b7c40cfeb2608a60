"""The API is what its OpenAPI document says, whatever schemathesis thinks of to send."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import delete, select, update

from farm.database.session import Database
from farm.database.tables import Artifact, EngineRow, Job
from farm.trust import credentials
from tests.contract.live_api import LiveApi, live_api
from tests.ledger import Ledger

HERE = Path(__file__).parent
SEED = 20


@pytest.fixture
def api(tmp_path):
    with live_api(tmp_path / "api") as live:
        yield live


def filled(api: LiveApi) -> dict[str, str]:
    """What there is, by the names of parameters: a build that has succeeded, and its engine."""
    digest = api.upload(b"a model")
    sent = {
        "model": "digits",
        "source": {"digest": digest, "format": "onnx"},
        "precisions": ["fp16"],
        "targets": ["tensorrt-rtx:sm_89"],
    }
    build = api.http.post("/v1/builds", json=sent).json()
    database = Database(api.settings.database)
    Ledger(database).run_all()
    engine = api.http.get("/v1/models/digits/engines").json()["items"][0]
    content = api.upload(b"0123456789")
    with database.write() as session:
        session.execute(update(EngineRow).values(digest=content))
        for job in session.scalars(select(Job)):
            job.outputs = dict.fromkeys(job.outputs or (), content)
        session.flush()
        # What the jobs are said to have made has no bytes.
        there = [digest, content]
        session.execute(delete(Artifact).where(Artifact.digest.not_in(there)))
    database.dispose()
    return {
        "build_id": build["id"],
        "engine_id": engine["id"],
        "model": "digits",
        "gpu": "rtx-4090",
        "digest": digest,
        "key_id": api.http.post("/v1/keys", json={"name": "b", "scopes": ["read"]}).json()["id"],
        "own_key_id": credentials.id_of(api.key),
    }


def run(api: LiveApi, folder: Path, *options: str) -> None:
    """Let schemathesis try all calls, with all its phases and checks."""
    ran = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            f"--config-file={HERE / 'schemathesis.toml'}",
            "run",
            f"{api.url}/openapi.json",
            "--mode=all",
            "--phases=examples,coverage,fuzzing,stateful",
            "--continue-on-failure",
            "--warnings=off",
            "--no-color",
            f"--seed={SEED}",
            "--generation-database=none",
            "--request-timeout=120",
            f"--header=Authorization: Bearer {api.key}",
            *options,
        ],
        cwd=folder,
        env=os.environ
        | {
            "SCHEMATHESIS_HOOKS": "tests.contract.schemathesis_hooks",
            "PYTHONPATH": str(HERE.parents[1]),
            "FARM_UNDER_TEST": json.dumps(filled(api)),
        },
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr[-5000:]
    # Not none of them, should the document not have been found.
    assert re.search(r"Operations: +(\d\d+) selected / \1 total", ran.stdout), ran.stdout


def test_the_api_is_what_its_document_says(api, tmp_path):
    run(api, tmp_path, "--max-examples=3")


@pytest.mark.heavy
def test_the_api_is_what_its_document_says_however_long_it_is_asked(api, tmp_path):
    run(api, tmp_path, "--max-examples=40")

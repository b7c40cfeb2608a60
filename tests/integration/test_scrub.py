"""Bytes are what they claim: damage is found before it is built on or served, and can be healed."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from farm.daemon import scrub
from farm.database.tables import Artifact
from farm.errors import BlobDamaged, NotFound
from farm.registry import match
from farm.stages import JobKind
from farm.store import artifacts
from farm.store.local import LocalStore
from workers.stages.base import StageRequest, run_request


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


@pytest.fixture
def put(ledger, store, tmp_path):
    def put_(content):
        file = tmp_path / "new"
        file.write_bytes(content)
        stored = store.take(file)
        with ledger.db.write() as session:
            artifacts.remember(session, stored.digest, size=stored.bytes)
        return stored.digest

    return put_


def flip(store, digest):
    """One bit, as a disk does: neither the size nor the time changes."""
    place = store.place(digest)
    place.chmod(0o644)
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 1
    place.write_bytes(content)


def known(ledger):
    with ledger.db.read() as session:
        return set(session.scalars(select(Artifact.digest).where(Artifact.lost_at.is_(None))))


def test_an_input_is_hashed_before_a_stage_reads_it(store, put, tmp_path):
    digest = put(b"no model, but what it claims to be")
    flip(store, digest)
    request = StageRequest(
        kind=JobKind.EXPORT,
        params={"format": "onnx"},
        inputs={"source": store.place(digest)},
        workdir=tmp_path,
        digests={"source": digest},
    )
    phases = []
    with pytest.raises(BlobDamaged, match=f"source {digest} is damaged"):
        run_request(request, lambda phase, _: phases.append(phase))
    assert phases == ["verify inputs"]


def test_a_scrub_takes_damage_out_of_reach_and_uploads_heal_it(ledger, store, put):
    right, wrong, short = put(b"right"), put(b"wrong in the middle"), put(b"cut off")
    lost = put(b"lost")
    flip(store, wrong)
    store.place(short).chmod(0o644)
    store.place(short).write_bytes(b"cut")
    store.place(lost).unlink()
    before = known(ledger)
    report = scrub.scrub(ledger.db, store)
    assert sorted(report.damaged) == sorted([wrong, short])
    assert lost in report.missing
    assert report.checked == 3
    assert before - known(ledger) == {wrong, short}
    assert not store.has(wrong)
    assert (store.root / "damaged" / wrong.removeprefix("sha256:")).is_file()
    assert put(b"wrong in the middle") == wrong
    assert store.is_right(wrong)
    assert store.is_right(right)
    assert scrub.scrub(ledger.db, store).damaged == []


def test_the_right_bytes_heal_a_wrong_blob_that_nobody_has_noticed(store, put):
    digest = put(b"some bytes of a model")
    flip(store, digest)
    assert not store.is_right(digest)
    put(b"some bytes of a model")
    assert store.is_right(digest)


def test_a_damaged_engine_is_no_match_and_a_retry_builds_it_again(ledger, store, put):
    build = ledger.submit()
    made = {}
    while queued := ledger.queued():
        claim = ledger.claim(queued[0])
        made[claim.kind] = put(f"made by {claim.kind}".encode())
        ledger.succeed(claim, digest=made[claim.kind])
    with ledger.db.read() as session:
        assert match.best_match(session, "digits", "sm_89").engine.digest == made["build"]
    flip(store, made["build"])
    assert scrub.scrub(ledger.db, store).damaged == [made["build"]]
    with ledger.db.read() as session, pytest.raises(BlobDamaged, match="lost the bytes"):
        match.best_match(session, "digits", "sm_89")
    again = ledger.submit()
    assert again != build
    claims = []
    while queued := ledger.queued():
        claims.append(ledger.claim(queued[0]))
        ledger.succeed(claims[-1], digest=put(f"made by {claims[-1].kind} again".encode()))
    assert "build" in {claim.kind for claim in claims}
    assert "export" not in {claim.kind for claim in claims}, "what is right isn't made again"
    with ledger.db.read() as session:
        assert match.best_match(session, "digits", "sm_89").engine.digest != made["build"]


def test_a_damaged_upload_must_be_uploaded_again(ledger, store, put):
    source = put(b"a model")
    flip(store, source)
    scrub.scrub(ledger.db, store)
    with pytest.raises(NotFound):
        ledger.submit(source={"digest": source, "format": "onnx"})
    put(b"a model")
    ledger.submit(source={"digest": source, "format": "onnx"})


def test_a_child_is_not_believed_that_an_input_is_damaged(ledger, store, put):
    digest = put(b"right")
    with ledger.db.write() as session:
        assert scrub.check(session, store, [digest]) == []
    assert store.has(digest)
    assert digest in known(ledger)

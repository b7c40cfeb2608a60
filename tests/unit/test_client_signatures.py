"""Signed pulls: which key is believed and why, and everything that is refused."""

from __future__ import annotations

import base64
import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from farm.client import Backoff, Farm, Verdict, verify_file
from farm.client.pins import Pins, alone, replaced
from farm.client.trust import vouched
from farm.errors import (
    DigestMismatch,
    FarmError,
    InvalidRequest,
    SignatureRefused,
    SigningKeyUnknown,
)
from farm.schemas.signing import SigningKeys, SigningKeyView
from farm.signing import bundles, signers, statements
from farm.signing.signers import FileSigner
from farm.testing import documents
from farm.testing.documents import rtx_plan
from farm.testing.signing import signed_bundle
from farm.testing.stub_farm import StubFarm

NAME = "digits-v1-int8-sm_89.engine"
ELSEWHERE = "http://farm.example"
OTHER = {"id": "01m7y8mbznssegkr", "precision": "fp16"}


@pytest.fixture
def signer(tmp_path: Path) -> FileSigner:
    return signers.make(tmp_path / "signing.pem")


@pytest.fixture
def other(tmp_path: Path) -> FileSigner:
    return signers.make(tmp_path / "other.pem")


@pytest.fixture
def stub(stub: StubFarm, signer: FileSigner, monkeypatch: Any, tmp_path: Path) -> StubFarm:
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    stub.add(rtx_plan())
    stub.signers = [signer]
    return stub


@pytest.fixture
def farm(stub: StubFarm) -> Farm:
    return Farm(stub.url, backoff=Backoff(first_s=0))


def elsewhere(stub: StubFarm, **options: Any) -> Farm:
    """The same farm as on another machine."""

    class Route(httpx2.BaseTransport):
        def __init__(self) -> None:
            self._client = httpx2.Client(base_url=stub.url)

        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            path = request.url.raw_path.decode()
            return self._client.request(request.method, path, content=request.read())

    return Farm(ELSEWHERE, transport=Route(), backoff=Backoff(first_s=0), **options)


def engines(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*"))


# Pulls


def test_a_pull_keeps_the_verified_signatures_beside_the_engine(
    farm: Farm, signer: FileSigner, tmp_path: Path
) -> None:
    pulled = farm.pull("digits", "sm_89", tmp_path / "e")
    assert pulled.signed_by == signer.key.id
    assert engines(tmp_path / "e") == [NAME, f"{NAME}.json", f"{NAME}.sig", f"{NAME}.sigstore"]
    found = verify_file(pulled.path)
    assert (found.verdict, found.key, found.farm) == (Verdict.VERIFIED, signer.key.id, farm.url)
    assert found.engine is not None
    assert found.engine.id == pulled.engine.id


def test_a_farm_without_a_key_is_pulled_from_and_its_engines_are_unsigned(
    farm: Farm, stub: StubFarm, tmp_path: Path
) -> None:
    stub.signers = []
    pulled = farm.pull("digits", "sm_89", tmp_path / "e")
    assert pulled.signed_by is None
    assert engines(tmp_path / "e") == [NAME, f"{NAME}.json"]
    assert verify_file(pulled.path).verdict is Verdict.UNSIGNED


def test_the_signatures_of_an_engine_that_is_replaced_by_an_unsigned_one_go(
    farm: Farm, stub: StubFarm, tmp_path: Path
) -> None:
    farm.pull("digits", "sm_89", tmp_path / "e")
    farm.trust_signing_key(None)
    stub.signers = []
    farm.pull("digits", "sm_89", tmp_path / "e")
    assert engines(tmp_path / "e") == [NAME, f"{NAME}.json"]


def refused(farm: Farm, folder: Path, why: str) -> SignatureRefused:
    """A pull is refused, and leaves nothing."""
    with pytest.raises(SignatureRefused, match=why) as caught:
        farm.pull("digits", "sm_89", folder)
    assert engines(folder) == []
    return caught.value


def test_the_signature_of_another_engine_is_refused(
    farm: Farm, stub: StubFarm, signer: FileSigner, tmp_path: Path
) -> None:
    data = rtx_plan(seed=8)
    row = documents.engine(data, **OTHER)
    stub.bundles["engine"] = signed_bundle(stub.manifest(row), "engine", signer)
    refused(farm, tmp_path / "e", "is of another engine than 01m7y8mbznssegkq: its id is")


def test_an_engine_whose_bytes_are_not_the_signed_ones_is_refused(
    farm: Farm, stub: StubFarm, signer: FileSigner, tmp_path: Path
) -> None:
    """The farm's database and store were changed together: only the signature tells."""
    [row, _] = stub.engines["01m7y8mbznssegkq"]
    stub.bundles["engine"] = signed_bundle(stub.manifest(dict(row)), "engine", signer)
    stub.add(rtx_plan(seed=9))
    refused(farm, tmp_path / "e", "its digest is sha256:")


@pytest.mark.parametrize("field", ["provenance", "load", "files"])
def test_a_manifest_that_isnt_the_signed_one_is_refused(
    farm: Farm, stub: StubFarm, monkeypatch: Any, tmp_path: Path, field: str, signer: FileSigner
) -> None:
    [row, _] = stub.engines["01m7y8mbznssegkq"]
    manifest = stub.manifest(row)
    stub.bundles["engine"] = signed_bundle(manifest, "engine", signer)
    name = next(iter(manifest["files"]))
    evil = {
        "provenance": {"build": {"job": 3}},
        "load": "import os; os.remove('/')",
        "files": {name: row["digest"], "layers": "sha256:" + "b" * 64},
    }
    changed = {**manifest, field: evil[field]}
    monkeypatch.setattr(StubFarm, "manifest", lambda *_: changed)
    refused(farm, tmp_path / "e", f"it differs in {field}")


def test_a_manifest_with_other_figures_is_refused(
    farm: Farm, stub: StubFarm, monkeypatch: Any, tmp_path: Path, signer: FileSigner
) -> None:
    [row, _] = stub.engines["01m7y8mbznssegkq"]
    manifest = stub.manifest(row)
    stub.bundles["engine"] = signed_bundle(manifest, "engine", signer)
    better = row | {"accuracy": row["accuracy"] | {"top1_agreement": 1.0}}
    monkeypatch.setattr(StubFarm, "manifest", lambda *_: {**manifest, "engine": better})
    refused(farm, tmp_path / "e", "it differs in accuracy")


def test_a_yank_changes_nothing_that_is_signed(
    farm: Farm, stub: StubFarm, signer: FileSigner, tmp_path: Path
) -> None:
    [row, _] = stub.engines["01m7y8mbznssegkq"]
    before = {name: value for name, value in row.items() if name != "yanked"}
    stub.bundles["engine"] = signed_bundle(stub.manifest(before), "engine", signer)
    row["yanked"] = "slow at batch 1"
    assert farm.pull_engine(row["id"], tmp_path).signed_by == signer.key.id


def test_a_changed_signature_is_refused(
    farm: Farm, stub: StubFarm, signer: FileSigner, tmp_path: Path
) -> None:
    [row, _] = stub.engines["01m7y8mbznssegkq"]
    bundle = json.loads(signed_bundle(stub.manifest(row), "engine", signer))
    [signature] = bundle["dsseEnvelope"]["signatures"]
    raw = bytearray(base64.b64decode(signature["sig"]))
    raw[-1] ^= 1
    signature["sig"] = base64.b64encode(raw).decode()
    stub.bundles["engine"] = json.dumps(bundle).encode()
    refused(farm, tmp_path / "e", "isn't by a known key")


def test_a_model_signature_of_another_file_is_refused(
    farm: Farm, stub: StubFarm, signer: FileSigner, tmp_path: Path
) -> None:
    statement = statements.of_file(NAME, "sha256:" + "b" * 64)
    stub.bundles["model-signing"] = bundles.sealed(statement, signer)
    refused(farm, tmp_path / "e", "is of the file sha256:bbbb")


def test_an_engines_statement_isnt_taken_for_a_model_signature_nor_the_reverse(
    farm: Farm, stub: StubFarm, signer: FileSigner, tmp_path: Path
) -> None:
    [row, _] = stub.engines["01m7y8mbznssegkq"]
    manifest = stub.manifest(row)
    stub.bundles["model-signing"] = signed_bundle(manifest, "engine", signer)
    refused(farm, tmp_path / "e", "isn't of a single file")
    stub.bundles["engine"] = signed_bundle(manifest, "model-signing", signer)
    refused(farm, tmp_path / "e", "isn't of an engine")


# Which key is believed


def test_a_farm_on_this_machine_is_believed_on_first_contact_and_known_from_then_on(
    farm: Farm, stub: StubFarm, other: FileSigner, tmp_path: Path
) -> None:
    farm.pull("digits", "sm_89", tmp_path / "a")
    stub.signers = [other]
    again = Farm(stub.url, backoff=Backoff(first_s=0))
    told = refused(again, tmp_path / "e", "none of its keys that are known here")
    assert f"farm signing trust {other.key.fingerprint}" in str(told.hint)


def test_a_known_farm_that_stops_signing_is_refused(
    farm: Farm, stub: StubFarm, tmp_path: Path
) -> None:
    farm.pull("digits", "sm_89", tmp_path / "a")
    stub.signers = []
    refused(Farm(stub.url), tmp_path / "e", "isn't signed")


def test_a_key_that_the_known_one_answers_for_is_followed(
    farm: Farm, stub: StubFarm, signer: FileSigner, other: FileSigner, tmp_path: Path
) -> None:
    farm.pull("digits", "sm_89", tmp_path / "a")
    stub.signers = [other, signer]
    again = Farm(stub.url, backoff=Backoff(first_s=0))
    assert again.pull("digits", "sm_89", tmp_path / "a").signed_by == other.key.id
    stub.signers = [other]  # what was learned is kept
    assert Farm(stub.url).pull("digits", "sm_89", tmp_path / "a").signed_by == other.key.id


def test_another_farm_isnt_believed_by_itself_and_the_error_says_what_to_do(
    stub: StubFarm, signer: FileSigner, tmp_path: Path
) -> None:
    with pytest.raises(SigningKeyUnknown) as caught:
        elsewhere(stub).pull("digits", "sm_89", tmp_path / "e")
    assert signer.key.fingerprint in caught.value.detail
    for way in ("--signing-key", "FARM_PINNED_KEY", "--accept-new-key"):
        assert way in str(caught.value.hint)
    assert engines(tmp_path / "e") == []


def test_a_new_farm_is_accepted_deliberately_and_then_known(
    stub: StubFarm, signer: FileSigner, other: FileSigner, tmp_path: Path
) -> None:
    accepting = elsewhere(stub, accept_new_key=True)
    assert accepting.pull("digits", "sm_89", tmp_path / "a").signed_by == signer.key.id
    assert elsewhere(stub).pull("digits", "sm_89", tmp_path / "a").signed_by == signer.key.id
    stub.signers = [other]  # accepting is for farms that are new
    refused(elsewhere(stub, accept_new_key=True), tmp_path / "e", "none of its keys")


def test_somebody_who_is_asked_may_confirm_or_refuse(
    stub: StubFarm, signer: FileSigner, tmp_path: Path
) -> None:
    asked = []

    def no(url: str, key: Any) -> bool:
        asked.append((url, key))
        return False

    with pytest.raises(SigningKeyUnknown):
        elsewhere(stub, confirm_key=no).pull("digits", "sm_89", tmp_path)
    assert asked == [(ELSEWHERE, signer.key)]
    elsewhere(stub, confirm_key=lambda *_: True).pull("digits", "sm_89", tmp_path)


@pytest.mark.parametrize("form", ["file", "fingerprint", "variable"])
def test_the_given_key_is_the_farms_and_no_other(
    stub: StubFarm,
    other: FileSigner,
    signer: FileSigner,
    form: str,
    monkeypatch: Any,
    tmp_path: Path,
) -> None:
    def given(key: Any) -> Farm:
        if form == "fingerprint":
            return elsewhere(stub, signing_key=key.fingerprint)
        (tmp_path / "public.pem").write_text(key.pem)
        if form == "file":
            return elsewhere(stub, signing_key=tmp_path / "public.pem")
        monkeypatch.setenv("FARM_PINNED_KEY", str(tmp_path / "public.pem"))
        return elsewhere(stub)

    assert given(signer.key).pull("digits", "sm_89", tmp_path / "a").signed_by == signer.key.id
    refused(given(other.key), tmp_path / "e", "there is no signing key|none of its keys")
    assert not (tmp_path / "home" / "known-farms.json").exists()


def test_an_unsigned_farm_isnt_the_one_whose_key_is_given(
    stub: StubFarm, signer: FileSigner, tmp_path: Path
) -> None:
    stub.signers = []
    refused(elsewhere(stub, signing_key=signer.key.fingerprint), tmp_path / "e", "isn't signed")


def test_a_key_that_is_neither_a_file_nor_a_fingerprint_is_told_so(
    stub: StubFarm, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match="neither a fingerprint nor a file"):
        elsewhere(stub, signing_key="nonsense").pull("digits", "sm_89", tmp_path)


def test_a_damaged_list_of_known_farms_isnt_taken_for_an_empty_one(
    farm: Farm, tmp_path: Path
) -> None:
    farm.pull("digits", "sm_89", tmp_path / "a")
    known = tmp_path / "home" / "known-farms.json"
    known.write_text(known.read_text()[:-10])
    with pytest.raises(FarmError, match=r"known-farms\.json"):
        Farm(farm.url).pull("digits", "sm_89", tmp_path / "a")


def test_what_another_process_learns_of_a_farm_meanwhile_is_not_forgotten(
    signer: FileSigner, tmp_path: Path
) -> None:
    pins = Pins(tmp_path / "known-farms.json")
    other = threading.Thread(target=pins.pin, args=("http://b", [signer.key]))
    with alone(pins.file):
        other.start()
        replaced(pins.file, {"http://a": [signer.key.pem]})
    other.join()
    assert sorted(pins.all()) == ["http://a", "http://b"]


def test_a_key_that_is_trusted_by_hand_replaces_what_was_known(
    farm: Farm, stub: StubFarm, other: FileSigner, tmp_path: Path
) -> None:
    farm.pull("digits", "sm_89", tmp_path / "a")
    stub.signers = [other]
    assert farm.trust_signing_key(other.key.fingerprint) == [other.key]
    assert Farm(stub.url).pull("digits", "sm_89", tmp_path / "a").signed_by == other.key.id


def offered(key: Any, **vouchers: bytes) -> SigningKeyView:
    return SigningKeyView(
        id=key.id,
        public_key=key.pem,
        current=True,
        created_at=datetime.now(UTC),
        vouchers={by: bundle.decode() for by, bundle in vouchers.items()},
    )


def test_a_key_is_believed_for_a_known_keys_word_alone(
    signer: FileSigner, other: FileSigner, tmp_path: Path
) -> None:
    third = signers.make(tmp_path / "third.pem")
    words = {
        "its own": bundles.sealed(statements.of_key(other.key), other),
        "a stranger's": bundles.sealed(statements.of_key(other.key), third),
        "the known key's, of another": bundles.sealed(statements.of_key(third.key), signer),
        "an engine's": bundles.sealed(
            statements.of_engine("e", "sha256:" + "b" * 64, {}, {}), signer
        ),
        "nonsense": b"{}",
    }
    for said, bundle in words.items():
        forged = offered(other.key, **{signer.key.id: bundle})
        assert vouched([forged], [signer.key]) == [signer.key], said
    true = offered(
        other.key, **{signer.key.id: bundles.sealed(statements.of_key(other.key), signer)}
    )
    assert vouched([true], [signer.key]) == [signer.key, other.key]
    revoked = true.model_copy(update={"revoked_at": datetime.now(UTC)})
    assert vouched([revoked], [signer.key]) == [signer.key]


def test_a_key_that_a_farm_shows_under_another_ones_id_is_refused(
    stub: StubFarm, signer: FileSigner, other: FileSigner, monkeypatch: Any, tmp_path: Path
) -> None:
    forged = offered(other.key).model_copy(update={"id": signer.key.id})
    shown = SigningKeys(items=[forged]).model_dump_json().encode()
    monkeypatch.setattr("farm.testing.stub_farm.shown_keys", lambda _signers: shown)
    given = elsewhere(stub, signing_key=signer.key.fingerprint)
    refused(given, tmp_path / "e", "shows another key")


# Files


@pytest.fixture
def engine(farm: Farm, tmp_path: Path) -> Path:
    return farm.pull("digits", "sm_89", tmp_path / "e").path


def test_a_changed_file_is_refused(engine: Path) -> None:
    engine.write_bytes(rtx_plan(seed=3))
    found = verify_file(engine)
    assert found.verdict is Verdict.REFUSED
    assert "was signed" in found.why


def test_a_changed_manifest_beside_the_file_is_refused(engine: Path) -> None:
    manifest = engine.with_name(f"{NAME}.json")
    document = json.loads(manifest.read_text())
    document["load"] = "import os"
    manifest.write_text(json.dumps(document))
    found = verify_file(engine)
    assert (found.verdict, "it differs in load" in found.why) == (Verdict.REFUSED, True)
    manifest.write_text("{}")
    assert verify_file(engine).verdict is Verdict.REFUSED


def test_a_file_is_verified_by_its_model_signature_alone(engine: Path) -> None:
    engine.with_name(f"{NAME}.sigstore").unlink()
    found = verify_file(engine)
    assert (found.verdict, found.engine) == (Verdict.VERIFIED, None)
    engine.write_bytes(b"other")
    assert verify_file(engine).verdict is Verdict.REFUSED


def test_a_moved_file_is_verified_by_a_bundle_that_is_named(engine: Path, tmp_path: Path) -> None:
    moved = engine.rename(tmp_path / "model.plan")
    assert verify_file(moved).verdict is Verdict.UNSIGNED
    bundle = engine.with_name(f"{NAME}.sigstore")
    assert verify_file(moved, bundle=bundle).verdict is Verdict.VERIFIED


def test_without_a_known_farm_the_key_has_to_be_named(
    engine: Path, signer: FileSigner, other: FileSigner, tmp_path: Path
) -> None:
    nowhere = tmp_path / "nowhere"
    assert verify_file(engine, home=nowhere).verdict is Verdict.UNKNOWN_KEY
    assert verify_file(engine, key=signer.key.fingerprint, home=nowhere).verdict is Verdict.VERIFIED
    assert verify_file(engine, key=other.key.fingerprint, home=nowhere).verdict is Verdict.REFUSED
    (tmp_path / "other.pub").write_text(other.key.pem)
    assert verify_file(engine, key=tmp_path / "other.pub").verdict is Verdict.REFUSED


def test_a_huge_bundle_is_refused(engine: Path) -> None:
    engine.with_name(f"{NAME}.sigstore").write_bytes(b" " * (bundles.MAX_BUNDLE_BYTES + 2))
    found = verify_file(engine)
    assert (found.verdict, "at most" in found.why) == (Verdict.REFUSED, True)


# Signed engines in the place of others


@pytest.mark.parametrize(
    ("answered", "asked", "told"),
    [
        ({"model": "cats"}, {}, "whose model is cats, not digits"),
        ({"version": 1}, {"version": 2}, "whose version is 1, not 2"),
        ({"precision": "fp16"}, {"precision": "int8"}, "whose precision is fp16, not int8"),
        ({"runtime": "tensorrt"}, {"runtime": "tensorrt-rtx"}, "whose runtime is tensorrt, not"),
    ],
)
def test_an_engine_that_the_farm_signed_isnt_taken_for_another(
    farm: Farm,
    stub: StubFarm,
    monkeypatch: Any,
    tmp_path: Path,
    answered: Any,
    asked: Any,
    told: str,
) -> None:
    row = stub.add(rtx_plan(), **OTHER | answered)
    say = {"engine": row, "why": "the best"}
    monkeypatch.setattr("farm.testing.stub_farm._Handler._match", lambda self, *_: self._json(say))
    with pytest.raises(DigestMismatch, match=told):
        farm.pull("digits", "sm_89", tmp_path / "e", **asked)
    assert engines(tmp_path / "e") == []


def test_another_engine_than_the_one_named_is_refused(
    farm: Farm, stub: StubFarm, tmp_path: Path
) -> None:
    stub.engines["01m7y8mbznssegkz"] = next(iter(stub.engines.values()))
    with pytest.raises(DigestMismatch, match="not 01m7y8mbznssegkz; nothing was kept"):
        farm.pull_engine("01m7y8mbznssegkz", tmp_path / "e")
    assert engines(tmp_path / "e") == []


def test_a_models_name_is_the_same_in_any_case(farm: Farm, tmp_path: Path) -> None:
    assert farm.pull("Digits", "sm_89", tmp_path / "e").engine.model == "digits"

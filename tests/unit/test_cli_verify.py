"""``farm verify`` and ``farm signing``: what they say, and their exit codes."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from farm.cli import app, exits
from farm.formats.kinds import FileKind, kind_of
from farm.signing import signers
from farm.signing.signers import FileSigner
from farm.testing import documents
from farm.testing.documents import rtx_plan
from farm.testing.signing import signed_bundle
from farm.testing.stub_farm import StubFarm

Run = Callable[..., Result]
NAME = "digits-v1-int8-sm_89.engine"


@pytest.fixture
def signer(tmp_path: Path) -> FileSigner:
    return signers.make(tmp_path / "signing.pem")


@pytest.fixture
def engine(
    stub: StubFarm, run: Run, signer: FileSigner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A pulled one."""
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    stub.add(rtx_plan())
    stub.signers = [signer]
    pulled = run("pull", "digits", "--gpu", "sm_89", "-o", tmp_path / "e")
    assert pulled.exit_code == exits.OK, pulled.output
    assert f"verified: signed by {signer.key.fingerprint}" in pulled.stdout
    return tmp_path / "e" / NAME


def test_a_pulled_engine_is_verified_without_a_farm(
    engine: Path, stub: StubFarm, signer: FileSigner
) -> None:
    asked = len(stub.seen)
    result = CliRunner().invoke(app, ["verify", str(engine)])
    assert result.exit_code == exits.OK, result.output
    assert "it is a TensorRT-RTX engine of 1.7.1.116 for sm_89" in result.stdout
    assert "engine 01m7y8mbznssegkq: digits@1, int8" in result.stdout
    assert f"verified: signed by {signer.key.fingerprint}, known of {stub.url}" in result.stdout
    assert len(stub.seen) == asked


def test_json_has_the_verdict_the_engine_and_what_it_was_made_from(
    run: Run, engine: Path, signer: FileSigner
) -> None:
    result = run("verify", engine, "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == exits.OK
    assert document["verdict"] == "verified"
    assert document["key"] == signer.key.id
    assert document["bundle"] == f"{engine}.sigstore"
    assert document["engine"]["precision"] == "int8"
    assert document["materials"] == {"source": "sha256:" + "a" * 64}


def test_a_tampered_engine_exits_with_1(run: Run, engine: Path) -> None:
    engine.write_bytes(rtx_plan(seed=5))
    result = run("verify", engine)
    assert result.exit_code == 1
    assert "refused: " in result.stdout
    assert "don't use it" in result.stderr


def test_a_key_that_isnt_known_exits_with_2(
    run: Run, engine: Path, signer: FileSigner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "empty"))
    result = run("verify", engine)
    assert result.exit_code == 2
    assert "--key" in result.stderr
    assert run("verify", engine, "--key", signer.key.fingerprint).exit_code == exits.OK


def test_a_file_without_a_signature_exits_with_3_and_is_told_what_it_is(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "a.engine").write_bytes(rtx_plan())
    result = run("verify", tmp_path / "a.engine", "--json")
    assert result.exit_code == 3
    document = json.loads(result.stdout)
    assert document["verdict"] == "unsigned"
    assert document["kind"].startswith("a TensorRT-RTX engine")


def test_a_file_that_isnt_there_is_a_usage_error(run: Run, tmp_path: Path) -> None:
    result = run("verify", tmp_path / "none.engine")
    assert result.exit_code == exits.USAGE
    assert "there is no file" in result.stderr


def test_pull_refuses_a_changed_key_and_trust_believes_it(
    run: Run, engine: Path, stub: StubFarm, tmp_path: Path
) -> None:
    other = signers.make(tmp_path / "other.pem")
    stub.signers = [other]
    result = run("pull", "digits", "--gpu", "sm_89", "-o", tmp_path / "new")
    assert result.exit_code == exits.FAILED
    assert "pretending to be this farm" in result.stderr
    assert not list((tmp_path / "new").iterdir())
    trusted = run("signing", "trust", other.key.fingerprint, "--json")
    assert json.loads(trusted.stdout) == {"farm": stub.url, "keys": [other.key.fingerprint]}
    assert run("pull", "digits", "--gpu", "sm_89", "-o", tmp_path / "new").exit_code == exits.OK


def _other_bytes(stub: StubFarm, _signer: FileSigner) -> None:
    row, data = stub.engines["01m7y8mbznssegkq"]
    stub.engines[row["id"]] = (row, data[::-1])


def _other_engines_signature(stub: StubFarm, signer: FileSigner) -> None:
    row = documents.engine(rtx_plan(), id="01m7y8mbznssegkr")
    stub.bundles["engine"] = signed_bundle(stub.manifest(row), "engine", signer)


def _other_figures(stub: StubFarm, signer: FileSigner) -> None:
    row, _ = stub.engines["01m7y8mbznssegkq"]
    better = row | {"accuracy": row["accuracy"] | {"top1_agreement": 1.0}}
    stub.bundles["engine"] = signed_bundle(stub.manifest(better), "engine", signer)


def _one_more_signature(stub: StubFarm, signer: FileSigner) -> None:
    row, _ = stub.engines["01m7y8mbznssegkq"]
    bundle = json.loads(signed_bundle(stub.manifest(row), "engine", signer))
    bundle["dsseEnvelope"]["signatures"] *= 2
    stub.bundles["engine"] = json.dumps(bundle).encode()


@pytest.mark.parametrize(
    "tamper", [_other_bytes, _other_engines_signature, _other_figures, _one_more_signature]
)
def test_pull_exits_with_1_and_keeps_nothing_of_what_was_tampered_with(
    run: Run, engine: Path, stub: StubFarm, signer: FileSigner, tmp_path: Path, tamper: Any
) -> None:
    tamper(stub, signer)
    result = run("pull", "digits", "--gpu", "sm_89", "-o", tmp_path / "new")
    assert result.exit_code == 1, result.output
    assert not list((tmp_path / "new").iterdir())


def test_a_forgotten_farm_is_met_anew(
    run: Run, engine: Path, stub: StubFarm, tmp_path: Path
) -> None:
    stub.signers = [signers.make(tmp_path / "other.pem")]
    assert run("signing", "forget").exit_code == exits.OK
    assert run("pull", "digits", "--gpu", "sm_89", "-o", tmp_path / "new").exit_code == exits.OK


def test_show_lists_fingerprints_and_prints_the_pem(
    run: Run, engine: Path, signer: FileSigner
) -> None:
    assert signer.key.fingerprint in run("signing", "show").stdout
    assert run("signing", "show", "--pem").stdout == signer.key.pem
    [shown] = json.loads(run("signing", "show", "--json").stdout)
    assert (shown["id"], shown["current"]) == (signer.key.id, True)


def test_a_farm_without_a_key_says_so(run: Run, stub: StubFarm) -> None:
    assert "its engines are unsigned" in run("signing", "show").output
    assert run("signing", "show", "--pem").exit_code == exits.NOT_FOUND


def test_pull_of_an_unsigned_farm_says_so(run: Run, stub: StubFarm, tmp_path: Path) -> None:
    stub.add(rtx_plan())
    result = run("pull", "digits", "--gpu", "sm_89", "-o", tmp_path)
    assert "unsigned: the farm has no signing key" in result.stdout


@pytest.fixture
def elsewhere(stub: StubFarm, signer: FileSigner, tmp_path: Path, monkeypatch: Any) -> StubFarm:
    """A signing farm, as if it were on another machine."""
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("farm.client.http.reaches_this_machine", lambda _url: False)
    stub.add(rtx_plan())
    stub.signers = [signer]
    return stub


PULL = ("pull", "digits", "--gpu", "sm_89", "-o")


def test_off_a_terminal_a_farm_elsewhere_has_to_be_named_or_accepted(
    run: Run, elsewhere: StubFarm, signer: FileSigner, tmp_path: Path
) -> None:
    result = run(*PULL, tmp_path / "e")
    assert result.exit_code == exits.USAGE
    assert f"--signing-key {signer.key.fingerprint}" in result.stderr
    assert "--accept-new-key" in result.stderr
    assert not list((tmp_path / "e").glob("*"))
    named = run(*PULL, tmp_path / "e", "--signing-key", signer.key.fingerprint)
    assert named.exit_code == exits.OK, named.output
    assert run(*PULL, tmp_path / "e").exit_code == exits.USAGE  # naming isn't remembered
    assert run(*PULL, tmp_path / "e", "--accept-new-key").exit_code == exits.OK
    assert run(*PULL, tmp_path / "e").exit_code == exits.OK


@pytest.mark.parametrize(("said", "code"), [("y", exits.OK), ("n", exits.USAGE)])
def test_on_a_terminal_it_asks_whether_the_fingerprint_is_the_operators(
    stub: StubFarm,
    elsewhere: StubFarm,
    signer: FileSigner,
    tmp_path: Path,
    monkeypatch: Any,
    said: str,
    code: int,
) -> None:
    monkeypatch.setattr("farm.cli.options.can_ask", lambda: True)
    monkeypatch.setenv("FARM_URL", stub.url)
    words = [*PULL, str(tmp_path / "e")]
    result = CliRunner().invoke(app, words, input=f"{said}\n")
    assert result.exit_code == code, result.output
    assert signer.key.fingerprint in result.stderr
    assert "Does its operator see the same" in result.stderr


def zipped(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return path


def test_kinds_of_files_are_told_apart_without_loading_them(tmp_path: Path) -> None:
    made = {
        FileKind.TENSORRT_RTX: rtx_plan(),
        FileKind.TENSORRT: b"ftrt" + bytes(60),
        FileKind.SAFETENSORS: (2).to_bytes(8, "little") + b"{}",
        FileKind.ARRAYS: b"\x93NUMPY\x01\x00",
        FileKind.UNKNOWN: b"\x80\x02}q\x00.",
    }
    for kind, content in made.items():
        (tmp_path / kind.name).write_bytes(content)
        assert kind_of(tmp_path / kind.name) is kind
    script = zipped(tmp_path / "a.pt", "a/data.pkl", "a/constants.pkl", "a/code/a.py")
    assert kind_of(script) is FileKind.TORCHSCRIPT
    assert kind_of(zipped(tmp_path / "b.pt2", "b/archive_format")) is FileKind.PT2
    package = zipped(tmp_path / "c.pt2", "c/archive_format", "c/data/aotinductor/model/c.so")
    assert kind_of(package) is FileKind.AOTINDUCTOR
    assert kind_of(zipped(tmp_path / "data.npz", "image.npy", "label.npy")) is FileKind.ARRAYS
    assert kind_of(zipped(tmp_path / "d.zip", "d.txt")) is FileKind.UNKNOWN
    (tmp_path / "empty").write_bytes(b"")
    assert kind_of(tmp_path / "empty") is FileKind.UNKNOWN

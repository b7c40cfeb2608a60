"""Signing: a bundle has one reading alone; Model Signing's own tool verifies ours, and we verify its."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from farm.errors import InvalidRequest, SignatureRefused, SigningFailed
from farm.signing import bundles, keys, signers, statements
from farm.signing.bundles import MEDIA_TYPE, PAYLOAD_TYPE
from farm.signing.signers import CommandSigner, FileSigner

ENGINE = b"a plan"
DIGEST = f"sha256:{hashlib.sha256(ENGINE).hexdigest()}"
LAYERS = f"sha256:{'a' * 64}"


@pytest.fixture
def signer(tmp_path: Path) -> FileSigner:
    return signers.make(tmp_path / "signing.pem")


@pytest.fixture
def bundle(signer: FileSigner) -> bytes:
    statement = statements.of_engine("e.engine", DIGEST, {"layers": LAYERS}, {"load": "pass"})
    return bundles.sealed(statement, signer)


Change = Callable[[dict[str, Any]], object]


def changed(bundle: bytes, change: Change) -> bytes:
    document = json.loads(bundle)
    change(document)
    return json.dumps(document).encode()


def resigned(signer: FileSigner, payload: bytes) -> bytes:
    """A bundle of any payload, signed by this key."""
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"sig": base64.b64encode(signer.sign(bundles.pae(payload))).decode()}],
    }
    material = {"publicKey": {"hint": signer.key.hint}}
    document = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": material,
        "dsseEnvelope": envelope,
    }
    return json.dumps(document).encode()


def key_file(path: Path, curve: ec.EllipticCurve, password: bytes | None = None) -> Path:
    locked = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    path.write_bytes(
        ec.generate_private_key(curve).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked
        )
    )
    path.chmod(0o600)
    return path


# Bundles


def test_a_bundle_opens_with_the_key_that_signed_it(signer: FileSigner, bundle: bytes) -> None:
    opened = bundles.opened(bundle, [signer.key])
    assert opened.key == signer.key
    assert opened.statement.type == "https://engine-farm/engine/v1"
    assert opened.statement.digests() == {"e.engine": DIGEST, "layers": LAYERS}
    assert opened.statement.predicate == {"load": "pass"}


def test_a_bundle_says_what_sigstores_format_asks_for(signer: FileSigner, bundle: bytes) -> None:
    document = json.loads(bundle)
    assert document["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert document["verificationMaterial"]["publicKey"]["hint"] == signer.key.hint
    [signature] = document["dsseEnvelope"]["signatures"]
    assert signature["keyid"] == signer.key.id
    payload = base64.b64decode(document["dsseEnvelope"]["payload"])
    assert json.loads(payload)["_type"] == "https://in-toto.io/Statement/v1"


def _other_payload(document: dict[str, Any]) -> None:
    envelope = document["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"]).replace(b"pass", b"evil")
    envelope["payload"] = base64.b64encode(payload).decode()


def _other_signature(document: dict[str, Any]) -> None:
    [signature] = document["dsseEnvelope"]["signatures"]
    raw = bytearray(base64.b64decode(signature["sig"]))
    raw[-1] ^= 1
    signature["sig"] = base64.b64encode(raw).decode()


def _one_more_signature(document: dict[str, Any]) -> None:
    document["dsseEnvelope"]["signatures"].append({"sig": "QUJD", "keyid": "f" * 64})


def _spaced(document: dict[str, Any]) -> None:
    [signature] = document["dsseEnvelope"]["signatures"]
    signature["sig"] = signature["sig"][:8] + "\n" + signature["sig"][8:]


def _unpadded(document: dict[str, Any]) -> None:
    payload = document["dsseEnvelope"]["payload"]
    document["dsseEnvelope"]["payload"] = payload.rstrip("=") + "===="


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_other_payload, "isn't by a known key"),
        (_other_signature, "isn't by a known key"),
        (_one_more_signature, "exactly one signature"),
        (lambda d: d["dsseEnvelope"].update(signatures=[]), "exactly one signature"),
        (lambda d: d["dsseEnvelope"].update(payloadType="text/plain"), "payloadType"),
        (lambda d: d.update(mediaType="application/json"), "mediaType"),
        (lambda d: d.pop("dsseEnvelope"), "no dsseEnvelope"),
        (lambda d: d["dsseEnvelope"].update(payload=7), "payload isn't a string"),
        (lambda d: d["verificationMaterial"]["publicKey"].update(hint="0" * 64), "known key"),
        (lambda d: d["dsseEnvelope"]["signatures"][0].update(keyid="0" * 64), "known key"),
        (_spaced, "base64"),
        (_unpadded, "base64"),
    ],
)
def test_a_changed_bundle_is_refused(
    signer: FileSigner, bundle: bytes, change: Change, why: str
) -> None:
    with pytest.raises(SignatureRefused, match=why):
        bundles.opened(changed(bundle, change), [signer.key])


def test_base64_has_one_spelling(signer: FileSigner, bundle: bytes) -> None:
    """The last character before the padding has bits that decoders ignore."""
    payload = json.loads(bundle)["dsseEnvelope"]["payload"].encode()
    statement = statements.of_engine("e.engine", DIGEST, {}, {"pad": ""})
    for pad in range(3):
        statement = statements.of_engine("e.engine", DIGEST, {}, {"pad": "x" * pad})
        bundle = bundles.sealed(statement, signer)
        payload = json.loads(bundle)["dsseEnvelope"]["payload"].encode()
        if payload.endswith(b"="):
            break
    last = payload.rstrip(b"=")[-1:]
    other = bytes([last[0] + 1])
    spelled = payload.rstrip(b"=")[:-1] + other + b"=" * payload.count(b"=")
    assert base64.b64decode(spelled) == base64.b64decode(payload)
    with pytest.raises(SignatureRefused, match="canonical"):
        bundles.opened(bundle.replace(payload, spelled), [signer.key])


def test_names_that_appear_twice_are_refused_in_the_bundle_and_in_its_statement(
    signer: FileSigner, bundle: bytes
) -> None:
    twice = bundle.replace(b'{"mediaType"', b'{"mediaType":"text/plain","mediaType"', 1)
    with pytest.raises(SignatureRefused, match="appears twice"):
        bundles.opened(twice, [signer.key])
    payload = base64.b64decode(json.loads(bundle)["dsseEnvelope"]["payload"])
    inside = payload.replace(b'{"_type"', b'{"_type":"x","_type"', 1)
    with pytest.raises(SignatureRefused, match="appears twice"):
        bundles.opened(resigned(signer, inside), [signer.key])


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ({"_type": "https://in-toto.io/Statement/v0.1"}, "in-toto statement"),
        ({"subject": []}, "no subject"),
        ({"subject": [{"name": "a", "digest": {"sha512": "ab"}}]}, "no sha256"),
        ({"subject": [{"name": "a", "digest": {"sha256": "A" * 64}}]}, "no sha256"),
        ({"subject": [{"name": "a", "digest": {"sha256": "a" * 64}}] * 2}, "the same name"),
        ({"predicate": None}, "no predicate"),
    ],
)
def test_a_signed_statement_of_another_shape_is_refused(
    signer: FileSigner, bundle: bytes, statement: dict[str, Any], why: str
) -> None:
    payload = json.loads(base64.b64decode(json.loads(bundle)["dsseEnvelope"]["payload"]))
    with pytest.raises(SignatureRefused, match=why):
        bundles.opened(resigned(signer, json.dumps(payload | statement).encode()), [signer.key])


def test_a_huge_bundle_is_refused_before_it_is_parsed(signer: FileSigner) -> None:
    with pytest.raises(SignatureRefused, match=r"at most \d+ are accepted"):
        bundles.opened(b" " * (bundles.MAX_BUNDLE_BYTES + 1), [signer.key])


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"a": NaN}'])
def test_what_is_no_bundle_is_refused(signer: FileSigner, content: bytes) -> None:
    with pytest.raises(SignatureRefused):
        bundles.opened(content, [signer.key])


def test_another_farms_key_opens_nothing(bundle: bytes, tmp_path: Path) -> None:
    other = signers.make(tmp_path / "other.pem")
    with pytest.raises(SignatureRefused, match="isn't by a known key"):
        bundles.opened(bundle, [other.key])


# Keys


def test_a_key_is_made_private_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "signing.pem"
    made = signers.make(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert FileSigner.read(path).key == made.key
    info = serialization.load_pem_public_key(made.key.pem.encode()).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert made.key.id == hashlib.sha256(info).hexdigest()


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "signing.pem"
    signers.make(path)
    path.chmod(0o644)
    with pytest.raises(SigningFailed, match="other users"):
        FileSigner.read(path)


def test_an_encrypted_key_needs_its_password(tmp_path: Path) -> None:
    path = tmp_path / "signing.pem"
    made = signers.make(path, b"secret")
    assert b"ENCRYPTED" in path.read_bytes()
    assert FileSigner.read(path, b"secret").key == made.key
    for wrong in (None, b"another"):
        with pytest.raises(SigningFailed) as caught:
            FileSigner.read(path, wrong)
        assert "FARM_SIGNING_PASSWORD_FILE" in str(caught.value.hint)


@pytest.mark.parametrize("curve", [ec.SECP256K1(), ec.SECP224R1()])
def test_a_key_on_another_curve_is_refused(tmp_path: Path, curve: ec.EllipticCurve) -> None:
    with pytest.raises(SigningFailed, match="P-256, P-384 or P-521"):
        FileSigner.read(key_file(tmp_path / "k.pem", curve))


def test_an_ed25519_key_is_refused() -> None:
    public = ed25519.Ed25519PrivateKey.generate().public_key()
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with pytest.raises(InvalidRequest, match="P-256"):
        keys.read(pem)


def test_a_private_key_isnt_taken_for_a_public_one(tmp_path: Path) -> None:
    path = tmp_path / "signing.pem"
    signers.make(path)
    with pytest.raises(InvalidRequest, match="private key"):
        keys.read(path.read_bytes())


def test_a_key_answers_for_another_one(signer: FileSigner, tmp_path: Path) -> None:
    other = signers.make(tmp_path / "other.pem").key
    voucher = bundles.sealed(statements.of_key(other), signer)
    assert statements.key_in(bundles.opened(voucher, [signer.key])) == other


def test_an_engines_statement_answers_for_no_key(signer: FileSigner, bundle: bytes) -> None:
    with pytest.raises(SignatureRefused, match="isn't about a signing key"):
        statements.key_in(bundles.opened(bundle, [signer.key]))


# A key service


SIGN = """
import base64, pathlib, sys
from farm.signing.signers import FileSigner
made = FileSigner.read(pathlib.Path(sys.argv[1])).sign(sys.stdin.buffer.read())
sys.stdout.buffer.write(base64.b64encode(made) + b"\\n" if sys.argv[2] == "base64" else made)
"""


@pytest.mark.parametrize("form", ["base64", "der"])
def test_a_command_signs_and_prints_base64_or_der(
    signer: FileSigner, tmp_path: Path, form: str
) -> None:
    command = shlex.join([sys.executable, "-c", SIGN, str(tmp_path / "signing.pem"), form])
    service = CommandSigner(key=signer.key, command=command)
    statement = statements.of_file("e.engine", DIGEST)
    assert bundles.opened(bundles.sealed(statement, service), [signer.key]).statement == statement


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("false", "exited with 1"),
        ("/no/such/command", "didn't run"),
        ("true", "printed no signature"),
        ("cat", "printed no signature"),
        ("echo QUJD", "printed no signature"),
    ],
)
def test_a_command_that_doesnt_sign_is_reported(signer: FileSigner, command: str, why: str) -> None:
    with pytest.raises(SigningFailed, match=why):
        CommandSigner(key=signer.key, command=command).sign(b"content")


# OpenSSF Model Signing, by its own package


@pytest.fixture
def model_signing() -> Any:
    return importlib.import_module("model_signing")


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_model_signing_verifies_our_signature_of_a_file(
    model_signing: Any, tmp_path: Path, curve: ec.EllipticCurve
) -> None:
    signer = FileSigner.read(key_file(tmp_path / "k.pem", curve))
    path = tmp_path / "renamed by somebody.engine"
    path.write_bytes(ENGINE)
    (tmp_path / "e.sig").write_bytes(bundles.sealed(statements.of_file("e", DIGEST), signer))
    (tmp_path / "public.pem").write_text(signer.key.pem)
    verifying = model_signing.verifying.Config().use_elliptic_key_verifier(
        public_key=tmp_path / "public.pem"
    )
    verifying.verify(path, tmp_path / "e.sig")
    path.write_bytes(b"A plan")
    with pytest.raises(ValueError, match="mismatch"):
        verifying.verify(path, tmp_path / "e.sig")


def test_model_signings_command_line_verifies_ours(
    model_signing: Any, signer: FileSigner, tmp_path: Path
) -> None:
    (tmp_path / "e.engine").write_bytes(ENGINE)
    (tmp_path / "e.sig").write_bytes(bundles.sealed(statements.of_file("e", DIGEST), signer))
    (tmp_path / "public.pem").write_text(signer.key.pem)
    words = "verify key e.engine --signature e.sig --public_key public.pem".split()
    done = subprocess.run(
        [sys.executable, "-m", "model_signing", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_we_verify_what_model_signing_signs(
    model_signing: Any, tmp_path: Path, curve: ec.EllipticCurve
) -> None:
    private = key_file(tmp_path / "k.pem", curve)
    (tmp_path / "e.engine").write_bytes(ENGINE)
    signing = model_signing.signing.Config().use_elliptic_key_signer(private_key=private)
    signing.sign(tmp_path / "e.engine", tmp_path / "e.sig")
    opened = bundles.opened((tmp_path / "e.sig").read_bytes(), [FileSigner.read(private).key])
    assert statements.file_in(opened.statement) == DIGEST


def test_a_model_signing_statement_of_a_folder_isnt_taken_for_a_files(
    model_signing: Any, signer: FileSigner, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a").write_bytes(ENGINE)
    signing = model_signing.signing.Config().use_elliptic_key_signer(
        private_key=tmp_path / "signing.pem"
    )
    signing.sign(folder, tmp_path / "model.sig")
    opened = bundles.opened((tmp_path / "model.sig").read_bytes(), [signer.key])
    with pytest.raises(SignatureRefused, match="isn't of a single file"):
        statements.file_in(opened.statement)


VECTORS = Path(__file__).resolve().parents[1] / "data/model-signing"  # of its releases; Apache-2.0


def test_we_verify_model_signings_published_signatures() -> None:
    key = keys.read((VECTORS / "public.pem").read_bytes())
    file = bundles.opened((VECTORS / "file-v1.0.0.sig").read_bytes(), [key]).statement
    signed = "sha256:bc9a717db6064a32cbe9eae6fc40651dd6d36ef1757183f590eff2b1765d7ebc"
    assert statements.file_in(file) == signed
    folder = bundles.opened((VECTORS / "folder-v1.1.0.sig").read_bytes(), [key]).statement
    names = [one["name"] for one in folder.predicate["resources"]]
    assert names == ["signme-1", "signme-2"]


def test_a_published_signature_with_another_payload_is_refused() -> None:
    key = keys.read((VECTORS / "public.pem").read_bytes())
    mixed = json.loads((VECTORS / "file-v1.0.0.sig").read_text())
    folder = json.loads((VECTORS / "folder-v1.1.0.sig").read_text())
    mixed["dsseEnvelope"]["payload"] = folder["dsseEnvelope"]["payload"]
    with pytest.raises(SignatureRefused, match="isn't by a known key"):
        bundles.opened(json.dumps(mixed).encode(), [key])

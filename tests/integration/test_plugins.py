"""Plugin libraries: only what an operator has signed runs, and every step of its way looks again."""

from __future__ import annotations

import _ctypes
import base64
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from farm.daemon import gc
from farm.database.tables import Plugin
from farm.errors import EngineBuildFailed, InvalidRequest, NotFound, PluginRefused
from farm.schemas.plugins import PluginRequest
from farm.settings import Settings
from farm.signing import ed25519
from farm.specs.options import BuilderOptions
from farm.specs.runtime import Runtime
from farm.store import artifacts
from farm.store.local import LocalStore
from farm.trust import plugins
from workers.backends.trt import build, library
from workers.runner import plugins as loading

LIBRARY = b"\x7fELF, with creators in it"


class Operator:
    """Somebody with a key."""

    def __init__(self):
        self._key = Ed25519PrivateKey.generate()
        self.key = base64.b64encode(self._key.public_key().public_bytes_raw()).decode()

    def sign(self, content):
        return base64.b64encode(self._key.sign(content)).decode()


@pytest.fixture
def operator():
    return Operator()


class Farm:
    """A farm that trusts one key."""

    def __init__(self, ledger, folder, operator):
        self.ledger, self.folder, self.operator = ledger, folder, operator
        self.store = LocalStore(folder / "store")
        self.keys = [operator.key]
        self.most_bytes = 1024

    def put(self, content):
        file = self.folder / "upload"
        file.write_bytes(content)
        stored = self.store.take(file)
        with self.ledger.db.write() as session:
            artifacts.remember(session, stored.digest, size=stored.bytes)
        return stored.digest

    def add(self, content=LIBRARY, *, signature=None):
        request = PluginRequest(
            digest=self.put(content),
            name="libfoo.so",
            signature=signature or self.operator.sign(content),
        )
        library = self.store.place(request.digest)
        key = plugins.verified(library, request.signature, self.keys, most_bytes=self.most_bytes)
        with self.ledger.db.write() as session:
            return plugins.add(session, request, key)

    def require(self, *digests):
        with self.ledger.db.read() as session:
            plugins.require(session, digests, self.keys)

    def worker_loads(self, *digests):
        """What a worker hands to the build of a job that names these libraries."""
        settings = SimpleNamespace(plugin_keys=self.keys)
        context = SimpleNamespace(db=self.ledger.db, store=self.store, settings=settings)
        claim = SimpleNamespace(params={"options": {"plugins": list(digests)}})
        workdir = self.folder / "job"
        workdir.mkdir()
        return loading.Libraries(context, claim).place(workdir)


@pytest.fixture
def farm(ledger, tmp_path, operator):
    return Farm(ledger, tmp_path, operator)


def test_a_library_that_an_operator_has_signed_is_handed_to_the_builds_that_name_it(farm):
    added = farm.add()
    assert (added.name, added.bytes, added.key) == ("libfoo.so", len(LIBRARY), farm.operator.key)
    farm.require(added.digest)
    loaded = farm.worker_loads(added.digest)
    assert list(loaded) == ["plugin-0"]
    assert loaded["plugin-0"].name == "libfoo.so"
    assert loaded["plugin-0"].read_bytes() == LIBRARY
    assert farm.folder / "job" in loaded["plugin-0"].parents


def test_a_library_that_no_trusted_key_has_signed_is_refused(farm):
    with pytest.raises(PluginRefused, match="isn't signed by any of the farm's keys") as caught:
        farm.add(signature=Operator().sign(LIBRARY))
    assert "farm plugins add" in caught.value.hint
    with pytest.raises(PluginRefused, match="isn't signed"):
        farm.add(LIBRARY + b"!", signature=farm.operator.sign(LIBRARY))
    with pytest.raises(InvalidRequest, match="has 3 bytes instead of 64"):
        farm.add(signature=base64.b64encode(b"abc").decode())
    with pytest.raises(PluginRefused, match="isn't a shared library"):
        farm.add(b"#!/bin/sh")
    with farm.ledger.db.read() as session:
        assert plugins.views(session) == []


def test_a_farm_without_keys_takes_no_plugins(farm):
    farm.keys = []
    with pytest.raises(PluginRefused, match="accepts no plugins") as caught:
        farm.add()
    assert "FARM_PLUGIN_KEYS" in caught.value.hint


def test_a_library_that_is_too_large_is_refused_whoever_signed_it(farm):
    large = LIBRARY + bytes(farm.most_bytes)
    with pytest.raises(PluginRefused, match="the limit is 1024") as caught:
        farm.add(large)
    assert "FARM_MAX_PLUGIN_BYTES" in caught.value.hint


def test_a_library_that_was_not_uploaded_is_named(farm):
    request = PluginRequest(digest="sha256:" + "9" * 64, name="a.so", signature="x")
    with farm.ledger.db.write() as session, pytest.raises(NotFound, match="sha256:999"):
        plugins.add(session, request, farm.operator.key)


def test_a_key_that_is_not_trusted_any_more_takes_its_libraries_with_it(farm):
    added = farm.add()
    farm.keys = [Operator().key]
    with pytest.raises(PluginRefused, match="isn't allow-listed"):
        farm.require(added.digest)
    with pytest.raises(EngineBuildFailed, match=r"libfoo\.so isn't loaded: .* isn't signed"):
        farm.worker_loads(added.digest)


def test_a_worker_loads_nothing_that_was_changed_in_the_store(farm):
    added = farm.add()
    path = farm.store.place(added.digest)
    path.chmod(0o644)
    path.write_bytes(LIBRARY + b", and something else")
    with pytest.raises(EngineBuildFailed, match="the store has other bytes"):
        farm.worker_loads(added.digest)


def test_a_worker_loads_nothing_whose_signature_was_changed_in_the_database(farm):
    added = farm.add()
    with farm.ledger.db.write() as session:
        row = session.get_one(Plugin, added.digest)
        row.signature = Operator().sign(LIBRARY)
    with pytest.raises(EngineBuildFailed, match="isn't signed"):
        farm.worker_loads(added.digest)


def test_a_worker_loads_nothing_that_was_never_added(farm):
    with pytest.raises(EngineBuildFailed, match="is no longer allow-listed"):
        farm.worker_loads(farm.put(LIBRARY))


def test_a_build_that_names_an_unknown_library_is_refused_when_it_is_submitted(farm):
    options = {"plugins": [farm.put(LIBRARY)]}
    with pytest.raises(PluginRefused, match="isn't allow-listed") as caught:
        farm.ledger.submit(targets=["tensorrt:h200"], options=options)
    assert "farm plugins add LIBRARY" in caught.value.hint


def test_other_libraries_are_another_engine(farm):
    one, other = (farm.add(LIBRARY + bytes([n])).digest for n in (1, 2))
    keys = {
        farm.ledger.view(
            farm.ledger.submit(
                targets=["tensorrt:h200"], options=options, plugin_keys=tuple(farm.keys)
            )
        )
        .jobs[2]
        .key
        for options in ({}, {"plugins": [one]}, {"plugins": [other]}, {"plugins": [other, one]})
    }
    assert len(keys) == 4


def test_gc_keeps_what_is_allow_listed(farm):
    added = farm.add()
    assert gc.collect(farm.ledger.db, farm.store, older_than_s=0).removed == []
    assert farm.store.has(added.digest)


def test_libraries_are_loaded_before_the_model_is_read_in_their_order(classic, tmp_path):
    libraries = [tmp_path / name for name in ("b.so", "a.so")]
    for one in libraries:
        one.write_bytes(LIBRARY)
    missing = tmp_path / "missing.onnx"
    with pytest.raises(EngineBuildFailed, match="can't read"):
        build.build_plan(
            Runtime.TENSORRT,
            missing,
            (),
            "sm_90",
            BuilderOptions(),
            lambda *_: None,
            plugins=libraries,
        )
    assert list(map(str, libraries)) == classic.PLUGINS
    with pytest.raises(EngineBuildFailed, match=r"b\.so can't be loaded"):
        library.load_plugins(classic, library.collecting_log(classic), libraries)


def test_a_library_without_creators_is_refused():
    # For real: TensorRT-RTX has the same registry.
    runtime = library.load_runtime(Runtime.TENSORRT_RTX)
    log = library.collecting_log(runtime)
    with pytest.raises(EngineBuildFailed, match=r"_ctypes.* can't be loaded") as caught:
        library.load_plugins(runtime, log, [Path(_ctypes.__file__)])
    assert "getCreators" in caught.value.hint


def test_keys_are_checked_when_the_settings_are_read(operator, tmp_path):
    settings = Settings(home=tmp_path, plugin_keys=f"{operator.key}, {Operator().key}")
    assert settings.plugin_keys[0] == operator.key
    assert settings.environment()["FARM_PLUGIN_KEYS"].count(",") == 1
    with pytest.raises(ValueError, match="instead of 32"):
        Settings(home=tmp_path, plugin_keys="YWJj")


def test_a_signature_by_the_second_key_counts_too(operator):
    signed = operator.sign(b"x")
    assert ed25519.signer(b"x", signed, [Operator().key, operator.key]) == operator.key
    assert ed25519.signer(b"y", signed, [operator.key]) is None

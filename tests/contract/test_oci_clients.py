"""skopeo, oras and containerd against a served API: login, pull by platform, push, copies of equal digest."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import oras.client
import pytest

from farm.client import Farm
from farm.database.session import Database
from farm.errors import NotFound
from farm.registry.oci import manifests
from farm.settings import Settings
from farm.signing import signers
from farm.store.local import LocalStore
from tests.contract.files import run_with_files
from tests.contract.live_api import LiveApi, live_api
from tests.contract.registry import digest_of
from tests.sandboxed import wait_for

SOURCE = b"an ONNX model"
PAGE = (Path(__file__).parents[2] / "docs/how-to/oci.md").read_text()
RUN = re.search(r"<!-- run on a farm with .*? -->\s+```sh\n(.*?)```", PAGE, re.DOTALL)[1]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveApi]:
    """Version 1 of digits, for two GPUs, signed."""
    home = tmp_path_factory.mktemp("api")
    signers.make(Settings(home=home).signing_key_file)
    with live_api(home) as live:
        asked = {
            "model": "digits",
            "source": {"digest": live.upload(SOURCE), "format": "onnx"},
            "precisions": ["fp16"],
            "targets": ["tensorrt-rtx:sm_89", "tensorrt-rtx:sm_120"],
        }
        assert live.http.post("/v1/builds", json=asked).status_code == 202
        db = Database(live.settings.database)
        run_with_files(db, LocalStore(live.settings.store_dir))
        db.dispose()
        yield live


class Skopeo:
    def __init__(self, api: LiveApi, home: Path) -> None:
        self.host = f"127.0.0.1:{api.port}"
        self._auth = home / "auth.json"

    def __call__(self, *words: str | Path, ok: bool = True) -> str:
        command = ["skopeo", "--insecure-policy", *map(str, words)]
        environment = os.environ | {"REGISTRY_AUTH_FILE": str(self._auth)}
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
        assert (ran.returncode == 0) is ok, ran.stderr
        return ran.stdout if ok else ran.stderr

    def login(self, key: str, *, ok: bool = True) -> str:
        return self("login", "--tls-verify=false", "-u", "me", "-p", key, self.host, ok=ok)

    def ref(self, name: str) -> str:
        return f"docker://{self.host}/{name}"

    def copy(self, source: object, target: object, *more: str) -> None:
        plain = ("--src-tls-verify=false", "--dest-tls-verify=false")
        self("copy", "-q", *plain, *more, str(source), str(target))

    def inspect(self, name: str, *more: str) -> dict:
        return json.loads(self("inspect", "--tls-verify=false", "--raw", *more, self.ref(name)))


@pytest.fixture
def skopeo(api: LiveApi, tmp_path: Path) -> Skopeo:
    if shutil.which("skopeo") is None:
        assert not os.environ.get("CI"), "CI installs skopeo: scripts/services install"
        pytest.skip("skopeo isn't installed")
    made = Skopeo(api, tmp_path)
    made.login(api.key)
    return made


@pytest.fixture
def oras_client(api: LiveApi, tmp_path: Path) -> oras.client.OrasClient:
    host = f"127.0.0.1:{api.port}"
    # Its default backend takes every challenge for that of a token server.
    client = oras.client.OrasClient(hostname=host, insecure=True, auth_backend="basic")
    config = str(tmp_path / "config.json")  # not that of whoever runs the tests
    client.login(username="me", password=api.key, hostname=host, config_path=config)
    return client


def platform(gpu: str) -> tuple[str, ...]:
    return ("--override-os=linux", "--override-arch=amd64", f"--override-variant={gpu}")


def layers(folder: Path) -> dict[str, bytes]:
    """What lies in a `dir:` copy, by digest."""
    named = [file for file in folder.iterdir() if len(file.name) == 64]
    return {f"sha256:{file.name}": file.read_bytes() for file in named}


# skopeo


def test_skopeo_logs_in_with_a_key_and_not_without(skopeo: Skopeo, api: LiveApi) -> None:
    assert "invalid username/password" in skopeo.login(f"{api.key}x", ok=False)
    assert "Login Succeeded" in skopeo.login(api.key)


@pytest.mark.parametrize("gpu", ["sm_89", "sm_120"])
def test_skopeo_pulls_a_gpus_engine_by_its_platform(
    skopeo: Skopeo, api: LiveApi, tmp_path: Path, gpu: str
) -> None:
    skopeo.copy(skopeo.ref("digits:v1"), f"dir:{tmp_path / 'engine'}", *platform(gpu))
    engine = api.http.get(f"/v1/models/digits/engines/{gpu}").json()["engine"]
    found = layers(tmp_path / "engine")
    assert {digest: digest_of(content) for digest, content in found.items()} == {
        digest: digest for digest in found
    }
    assert found[engine["digest"]] == api.http.get(f"/v1/engines/{engine['id']}/content").content
    manifest = json.loads((tmp_path / "engine" / "manifest.json").read_bytes())
    assert manifest["annotations"]["farm.engine.gpu"] == gpu
    assert json.loads(found[manifest["config"]["digest"]])["engine"]["id"] == engine["id"]


def test_skopeo_lists_tags(skopeo: Skopeo) -> None:
    said = json.loads(skopeo("list-tags", "--tls-verify=false", skopeo.ref("digits")))
    assert said["Tags"] == ["v1", "v1-source"]


def test_skopeo_copies_a_version_whole_to_a_layout_and_to_another_repository(
    skopeo: Skopeo, api: LiveApi, tmp_path: Path
) -> None:
    whole = ("--all", "--preserve-digests")
    skopeo.copy(skopeo.ref("digits:v1"), f"oci:{tmp_path / 'layout'}:v1", *whole)
    skopeo.copy(f"oci:{tmp_path / 'layout'}:v1", skopeo.ref("mirror/digits:v1"), *whole)
    assert skopeo.inspect("mirror/digits:v1") == skopeo.inspect("digits:v1")
    blobs = tmp_path / "layout" / "blobs" / "sha256"
    assert (blobs / digest_of(SOURCE).removeprefix("sha256:")).read_bytes() == SOURCE
    content = api.http.get(f"/v2/mirror/digits/blobs/{digest_of(SOURCE)}").content
    assert content == SOURCE


def test_skopeo_may_not_move_a_version(skopeo: Skopeo, api: LiveApi, tmp_path: Path) -> None:
    before = api.http.get("/v2/digits/manifests/v1").content
    skopeo.copy(skopeo.ref("digits:v1-source"), f"dir:{tmp_path / 'source'}")
    refused = skopeo(
        "copy", "--dest-tls-verify=false", f"dir:{tmp_path / 'source'}", skopeo.ref("digits:v2"),
        ok=False,
    )  # fmt: skip
    assert "v2 is a tag of the farm's in digits" in refused
    assert api.http.get("/v2/digits/manifests/v1").content == before


# oras


def test_oras_pulls_a_source_under_its_name(
    oras_client: oras.client.OrasClient, api: LiveApi, tmp_path: Path
) -> None:
    target = f"127.0.0.1:{api.port}/digits:v1-source"
    [file] = oras_client.pull(target=target, outdir=str(tmp_path))
    assert Path(file).name == "digits-v1.onnx"
    assert Path(file).read_bytes() == SOURCE


def test_oras_pulls_an_engine_by_its_digest(
    oras_client: oras.client.OrasClient, api: LiveApi, tmp_path: Path
) -> None:
    index = api.http.get("/v2/digits/manifests/v1").json()
    entry = index["manifests"][0]
    assert entry["annotations"][manifests.ARTIFACT_TYPE] == manifests.ENGINE
    target = f"127.0.0.1:{api.port}/digits@{entry['digest']}"
    [file] = oras_client.pull(target=target, outdir=str(tmp_path))
    said = entry["annotations"]
    assert Path(file).name == f"digits-v1-fp16-{said['farm.engine.gpu']}.engine"
    assert Path(file).read_bytes() == (
        api.http.get(f"/v1/engines/{said['farm.engine.id']}/content").content
    )


def test_what_oras_pushes_is_pulled_and_can_be_submitted(
    oras_client: oras.client.OrasClient, api: LiveApi, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pushed.onnx").write_bytes(b"a model from a registry")
    target = f"127.0.0.1:{api.port}/sources/pushed:first"
    answer = oras_client.push(target=target, files=["pushed.onnx:application/octet-stream"])
    assert answer.status_code == 201
    [file] = oras_client.pull(target=target, outdir=str(tmp_path / "back"))
    assert Path(file).read_bytes() == b"a model from a registry"
    assert oras_client.get_tags(f"127.0.0.1:{api.port}/sources/pushed") == ["first"]
    asked = {
        "model": "pushed",
        "source": {"digest": digest_of(b"a model from a registry"), "format": "onnx"},
        "precisions": ["fp16"],
        "targets": ["tensorrt-rtx:sm_89"],
    }
    assert api.http.post("/v1/builds", json=asked).status_code == 202


# Another farm


@pytest.fixture
def second(tmp_path: Path) -> Iterator[LiveApi]:
    with live_api(tmp_path / "second") as live:
        yield live


def test_a_second_farm_mirrors_a_version_under_the_same_digests(
    api: LiveApi, second: LiveApi, tmp_path: Path
) -> None:
    # Ports come again: not with the keys of who had them.
    home = tmp_path / "client"
    with (
        Farm(api.url, key=api.key, home=home) as origin,
        Farm(second.url, key=second.key, home=home) as here,
    ):
        made = here.mirror(origin.http, "digits")
        again = here.mirror(origin.http, "digits@1")
    assert (made.repository, made.tag) == ("mirror/digits", "v1")
    # Engines, source, accuracies and signatures.
    assert (made.manifests, made.blobs > 0) == (2 + 1 + 2 + 2, True)
    assert (again.digest, again.blobs, again.bytes) == (made.digest, 0, 0)
    assert second.http.get("/v2/mirror/digits/tags/list").json()["tags"] == ["latest", "v1"]
    index = second.http.get("/v2/mirror/digits/manifests/v1")
    assert index.content == api.http.get("/v2/digits/manifests/v1").content
    for entry in index.json()["manifests"]:
        for farm, name in ((api, "digits"), (second, "mirror/digits")):
            manifest = farm.http.get(f"/v2/{name}/manifests/{entry['digest']}")
            assert digest_of(manifest.content) == entry["digest"]
            for one in [manifest.json()["config"], *manifest.json()["layers"]]:
                blob = farm.http.get(f"/v2/{name}/blobs/{one['digest']}").content
                assert digest_of(blob) == one["digest"]
        referring = [
            [one["digest"] for one in farm.http.get(path).json()["manifests"]]
            for farm, path in (
                (api, f"/v2/digits/referrers/{entry['digest']}"),
                (second, f"/v2/mirror/digits/referrers/{entry['digest']}"),
            )
        ]
        assert referring[0] == referring[1]


def test_a_mirror_of_what_isnt_there_says_so(api: LiveApi, second: LiveApi) -> None:
    with Farm(api.url, key=api.key) as origin, Farm(second.url, key=second.key) as here:
        with pytest.raises(NotFound, match="digits has no version 9"):
            here.mirror(origin.http, "digits@9")
        with pytest.raises(NotFound, match="no repository 'nothing'"):
            here.mirror(origin.http, "nothing")


def test_farm_mirror_copies_and_registers_with_both_farms_keys(
    api: LiveApi, second: LiveApi, tmp_path: Path
) -> None:
    keys = {"FARM_KEY": second.key, "FARM_FROM_KEY": api.key, "FARM_URL": second.url}
    keys["FARM_HOME"] = str(tmp_path / "client")
    command = [
        sys.executable,
        "-m",
        "farm",
        "mirror",
        api.url,
        "digits",
        "--to",
        "a/copy",
        "--json",
    ]
    ran = subprocess.run(
        command, env=os.environ | keys, capture_output=True, text=True, timeout=180
    )
    assert ran.returncode == 0, ran.stderr
    made = json.loads(ran.stdout)
    assert (made["repository"], made["tag"]) == ("a/copy", "v1")
    assert second.http.get("/v2/a/copy/manifests/v1").status_code == 200
    assert (made["registered"]["model"], made["registered"]["version"]) == ("digits", 1)
    for gpu in ("sm_89", "sm_120"):
        [mine, theirs] = [
            one.http.get(f"/v1/models/digits/engines/{gpu}").json()["engine"]
            for one in (second, api)
        ]
        assert mine["digest"] == theirs["digest"]
        content = second.http.get(f"/v1/engines/{mine['id']}/content").content
        assert digest_of(content) == mine["digest"]


def test_the_page_pulls_copies_and_mirrors(
    skopeo: Skopeo, api: LiveApi, second: LiveApi, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    farm = tmp_path / "bin" / "farm"
    farm.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m farm "$@"\n')
    farm.chmod(0o755)
    given = {
        "farm": skopeo.host,
        "key": api.key,
        "FARM_KEY": second.key,
        "FARM_URL": second.url,
        "FARM_HOME": str(tmp_path / "client"),
        "REGISTRY_AUTH_FILE": str(tmp_path / "auth.json"),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = ["bash", "-euo", "pipefail", "-c", RUN]
    ran = subprocess.run(
        command, env=os.environ | given, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    manifest = json.loads((tmp_path / "engine" / "manifest.json").read_bytes())
    assert manifest["annotations"]["farm.engine.gpu"] == "sm_89"
    copied = api.http.get("/v2/copies/digits/manifests/v1").content
    assert copied == api.http.get("/v2/digits/manifests/v1").content
    assert copied == second.http.get("/v2/mirror/digits/manifests/v1").content
    [mine, theirs] = [
        one.http.get("/v1/models/digits/engines/sm_89").json()["engine"] for one in (second, api)
    ]
    assert mine["digest"] == theirs["digest"]
    assert manifests.ACCURACY in ran.stdout.splitlines()
    assert "digits@1 has 2 of its engines here, 2 of them new" in ran.stdout


# containerd


class Ctr:
    def __init__(self, api: LiveApi, socket: Path) -> None:
        self.host = f"127.0.0.1:{api.port}"
        self._socket = socket

    def __call__(self, *words: str, ok: bool = True) -> bytes:
        command = ["ctr", "--address", str(self._socket), *words]
        ran = subprocess.run(command, capture_output=True, timeout=180)
        assert (ran.returncode == 0) is ok, ran.stderr
        return ran.stdout if ok else ran.stderr

    def is_ready(self) -> bool:
        command = ["ctr", "--address", str(self._socket), "--connect-timeout", "1s", "version"]
        return subprocess.run(command, capture_output=True, timeout=180).returncode == 0

    def fetch(self, name: str, key: str, *more: str, ok: bool = True) -> bytes:
        words = ("content", "fetch", "--plain-http", "--user", f"me:{key}", *more)
        return self(*words, f"{self.host}/{name}", ok=ok)


@pytest.fixture
def ctr(api: LiveApi, tmp_path: Path) -> Iterator[Ctr]:
    """containerd's client, beside a daemon of its own that holds content and nothing else."""
    if os.geteuid():
        pytest.skip("containerd runs as root")
    if shutil.which("containerd") is None:
        assert not os.environ.get("CI"), "CI installs containerd: scripts/services install"
        pytest.skip("containerd isn't installed")
    # Its socket's path may have 107 bytes.
    with tempfile.TemporaryDirectory() as state:
        config = tmp_path / "config.toml"
        folders = f'root = "{tmp_path / "root"}"\nstate = "{state}"\n'
        socket = Path(state, "socket")
        config.write_text(
            f'version = 2\n{folders}disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{socket}"\n'
        )
        daemon = subprocess.Popen(["containerd", "--config", config], stderr=subprocess.DEVNULL)
        try:
            made = Ctr(api, socket)
            wait_for(made.is_ready)
            yield made
        finally:
            daemon.terminate()
            daemon.wait()


def test_containerd_fetches_a_version_with_its_engines(ctr: Ctr, api: LiveApi) -> None:
    assert b"401" in ctr.fetch("digits:v1", f"{api.key}x", ok=False)
    ctr.fetch("digits:v1", api.key, "--all-platforms")
    for gpu in ("sm_89", "sm_120"):
        engine = api.http.get(f"/v1/models/digits/engines/{gpu}").json()["engine"]
        content = api.http.get(f"/v1/engines/{engine['id']}/content").content
        assert ctr("content", "get", engine["digest"]) == content

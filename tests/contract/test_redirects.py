"""Downloads that a bucket or nginx sends, rather than the API."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from farm.client.content import Content, bring
from farm.client.http import Http
from farm.client.retries import Backoff
from farm.errors import DigestMismatch, FarmError, Unavailable
from farm.local.up import free_port
from tests import faults, s3
from tests.contract.live_api import LiveApi, live_api
from tests.contract.rigs import digest_of
from tests.e2e.live import wait_until
from tests.faults import Faults

MIB = 1 << 20
CONTENT = os.urandom(6 * MIB)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.S3]:
    with s3.running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def proxy(server: s3.S3) -> Iterator[faults.Proxy]:
    with faults.before(server.address) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def live(
    tmp_path_factory: pytest.TempPathFactory, server: s3.S3, proxy: faults.Proxy
) -> Iterator[LiveApi]:
    """An API that reaches the bucket by one address, and its clients by another."""
    more = {
        **server.environment,
        "FARM_STORE": f"s3://{s3.BUCKET}/redirects",
        "FARM_REDIRECT_PULLS": "true",
        "FARM_STORE_ENDPOINT": proxy.address,
    }
    with live_api(tmp_path_factory.mktemp("live"), more) as live:
        assert live.upload(CONTENT) == digest_of(CONTENT)
        yield live


def pulled(live: LiveApi, path: Path) -> bool:
    http = Http(
        *(live.url,),
        timeout_s=30,
        backoff=Backoff(first_s=0.01, longest_s=0.05),
        key=live.key,
    )
    digest = digest_of(CONTENT)
    wanted = Content(path=f"/v1/blobs/{digest}", what="it", digest=digest, bytes=len(CONTENT))
    return bring(http, wanted, path)


@pytest.fixture(autouse=True)
def no_faults(request: pytest.FixtureRequest) -> None:
    if "proxy" in request.fixturenames:
        request.getfixturevalue("proxy").faults = Faults()


def test_a_pull_goes_to_the_bucket_and_takes_no_key_there(live, proxy, tmp_path):
    answer = live.http.get(f"/v1/blobs/{digest_of(CONTENT)}")
    assert answer.status_code == 307
    assert answer.headers["Location"].startswith(proxy.address)
    assert "no-store" in answer.headers["Cache-Control"]
    assert httpx2.get(answer.headers["Location"]).content == CONTENT
    before = proxy.connections
    assert pulled(live, tmp_path / "it")
    assert (tmp_path / "it").read_bytes() == CONTENT
    assert proxy.connections > before


def test_a_pull_from_the_bucket_that_is_cut_at_every_mib_ends_right(live, proxy, tmp_path):
    proxy.faults = Faults(cut_answers=lambda _: MIB)
    assert pulled(live, tmp_path / "it")
    assert (tmp_path / "it").read_bytes() == CONTENT


def test_other_bytes_from_the_bucket_are_refused(live, proxy, tmp_path):
    proxy.faults = Faults(corrupt_answers={2 * MIB})
    with pytest.raises(DigestMismatch):
        pulled(live, tmp_path / "it")
    assert not (tmp_path / "it").exists()


def test_a_bucket_that_is_away_is_told_without_its_link(live, proxy, tmp_path):
    proxy.faults = Faults(refuses=True)
    with pytest.raises(Unavailable) as told:
        pulled(live, tmp_path / "it")
    assert "X-Amz-Signature" not in str(told.value.detail)
    assert not (tmp_path / "it").exists()


def test_a_head_is_answered_by_the_api(live):
    digest = digest_of(CONTENT)
    answer = live.http.head(f"/v1/blobs/{digest}")
    assert (answer.status_code, int(answer.headers["Content-Length"])) == (200, len(CONTENT))


def test_a_farm_by_https_sends_nobody_to_http():
    from farm.client import linked

    timeout = httpx2.Timeout(5)
    with (
        pytest.raises(FarmError, match="sends this client to http"),
        linked.stream("https://farm", httpx2.URL("http://bucket/x?secret"), {}, timeout),
    ):
        pass


# nginx


NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port};
    client_max_body_size 0;
    location / {{ proxy_pass {api}; proxy_set_header Host $host; proxy_request_buffering off; }}
    location /stored/ {{ internal; alias {store}/; }}
  }}
}}
"""


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveApi, str]]:
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        if os.environ.get("CI"):
            pytest.fail("nginx isn't installed: scripts/services install")
        pytest.skip("nginx isn't installed")
    folder = tmp_path_factory.mktemp("nginx")
    with live_api(folder / "home", {"FARM_ACCEL_REDIRECT": "/stored/"}) as live:
        port = free_port()
        store = live.settings.store_dir
        # nginx needn't be the API's user: here it is.
        config = NGINX.format(folder=folder, port=port, api=live.url, store=store)
        (folder / "nginx.conf").write_text("user root;" * (os.geteuid() == 0) + config)
        process = subprocess.Popen([nginx, "-p", folder, "-c", folder / "nginx.conf"])
        try:
            wait_until("nginx answers", lambda: _answers(port))
            yield live, f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(120)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_nginx_sends_the_file_and_its_ranges(behind):
    live, url = behind
    digest = live.upload(CONTENT)
    direct = live.http.get(f"/v1/blobs/{digest}")
    name = digest.removeprefix("sha256:")
    assert direct.headers["X-Accel-Redirect"] == f"/stored/sha256/{name[:2]}/{name}"
    assert direct.content == b""
    headers = {"Authorization": f"Bearer {live.key}"}
    whole = httpx2.get(f"{url}/v1/blobs/{digest}", headers=headers)
    assert whole.content == CONTENT
    assert "X-Accel-Redirect" not in whole.headers
    part = httpx2.get(f"{url}/v1/blobs/{digest}", headers=headers | {"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, CONTENT[100:200])
    assert httpx2.get(f"{url}/stored/sha256/{name[:2]}/{name}", headers=headers).status_code == 404


def test_a_pull_through_nginx_that_is_cut_at_every_mib_ends_right(behind, tmp_path):
    live, url = behind
    digest = live.upload(CONTENT)
    with faults.before(url) as proxy:
        proxy.faults = Faults(cut_answers=lambda _: MIB)
        http = Http(proxy.address, timeout_s=30, backoff=Backoff(first_s=0.01), key=live.key)
        wanted = Content(path=f"/v1/blobs/{digest}", what="it", digest=digest, bytes=len(CONTENT))
        assert bring(http, wanted, tmp_path / "it")
        assert proxy.cuts >= 5
    assert (tmp_path / "it").read_bytes() == CONTENT

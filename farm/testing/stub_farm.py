"""A farm over HTTP with nothing behind it: answers from memory, failures on demand.

It knows one model (`digits`), one build of it (`documents.BUILD`), and the engines that a test adds.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from farm.registry import loading
from farm.schemas.engines import EngineView
from farm.schemas.storage import GC_EXAMPLE
from farm.signing.bundles import MEDIA_TYPE
from farm.signing.signers import Signer
from farm.specs.names import folded
from farm.testing.documents import (
    BENCH,
    BUILD,
    EVENTS,
    INFERENCE,
    LAYERS,
    NOW,
    OUTPUTS,
    build,
    digest_of,
    engine,
)
from farm.testing.signing import shown_keys, signed_bundle

_ASKED = ("precision", "runtime", "version")  #: what engines are asked for by, beside the GPU


@dataclass
class StubFarm:
    """What the stub holds, how it should fail, and what it was asked."""

    model: str = "digits"
    blobs: set[str] = field(default_factory=set)
    builds: dict[str, dict[str, Any]] = field(default_factory=lambda: {BUILD: build()})
    coming: list[dict[str, Any]] = field(default_factory=list)  #: builds for the next submissions
    events: list[dict[str, Any]] = field(default_factory=lambda: list(EVENTS))
    engines: dict[str, tuple[dict[str, Any], bytes]] = field(default_factory=dict)
    #: Path → answers to give before the real one: a status with a problem.
    problems: dict[str, list[tuple[int, dict[str, Any] | None]]] = field(default_factory=dict)
    cut_after: list[int] = field(default_factory=list)  #: bytes or events before the line drops
    ranges: bool = True
    load: bool = True  #: whether manifests say how to run the engine
    quantization: dict[str, Any] = field(default_factory=dict)  #: of any engine; empty for none
    #: Its signing keys, of which it uses the first; none to sign nothing.
    signers: list[Signer] = field(default_factory=list)
    #: Signature formats → bundles to send instead of the real ones.
    bundles: dict[str, bytes] = field(default_factory=dict)
    bench: dict[str, Any] = field(default_factory=lambda: dict(BENCH))  #: of any GPU
    benched: list[dict[str, Any]] = field(default_factory=list)  #: the requests for more of it
    inference: dict[str, Any] = field(default_factory=lambda: dict(INFERENCE))
    inferred: list[dict[str, Any]] = field(default_factory=list)  #: the requests for it
    targets: list[dict[str, Any]] = field(default_factory=list)
    workers: list[dict[str, Any]] = field(default_factory=list)
    queues: list[dict[str, Any]] = field(default_factory=list)
    running: list[dict[str, Any]] = field(default_factory=list)
    plugins: list[dict[str, Any]] = field(default_factory=list)
    timing_caches: list[dict[str, Any]] = field(default_factory=list)
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    submitted: list[dict[str, Any]] = field(default_factory=list)
    collected: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    def add(self, data: bytes, *, sent: bytes | None = None, **changes: Any) -> dict[str, Any]:
        """Register an engine; ``sent`` are the bytes actually sent."""
        row = engine(data, **changes)
        self.engines[row["id"]] = (row, data if sent is None else sent)
        return row

    def manifest(self, row: dict[str, Any]) -> dict[str, Any]:
        """What is beside an engine; of an earlier farm, if it doesn't say how to run it."""
        engine = EngineView.model_validate(row)
        manifest: dict[str, Any] = {"engine": row, "provenance": {"build": {"job": 2}}}
        manifest["files"] = {engine.file_name(): engine.digest}
        if self.load:
            manifest["load"] = loading.text(engine)
        return manifest

    def asked(self, method: str, path: str) -> list[dict[str, str]]:
        """The headers of the requests to a path."""
        return [headers for verb, where, headers in self.seen if (verb, where) == (method, path)]


@contextmanager
def running() -> Iterator[StubFarm]:
    """A stub farm on its own port."""
    farm = StubFarm()
    handler = type("Handler", (_Handler,), {"farm": farm})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    farm.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield farm
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    farm: StubFarm
    protocol_version = "HTTP/1.1"
    # An answer is sent in two pieces, of which the second would wait 40 ms for the first's receipt.
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self._route()

    def do_DELETE(self) -> None:
        self._route()

    def _route(self) -> None:
        path = urlsplit(self.path).path
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.farm.seen.append((self.command, self.path, headers))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.farm.problems.get(path):
            self._problem(*self.farm.problems[path].pop(0))
            return
        parts = path.strip("/").split("/")[1:]
        answer = getattr(self, f"_{self.command.lower()}_{parts[0].replace('-', '_')}", None)
        if answer is None:
            self._missing("no such call")
        else:
            answer(parts[1:], body)

    def _head_blobs(self, parts: list[str], _body: bytes) -> None:
        self._empty(200 if parts[0] in self.farm.blobs else 404)

    def _post_blobs(self, _parts: list[str], body: bytes) -> None:
        announced = self.headers["Repr-Digest"].removeprefix("sha-256=:").rstrip(":")
        digest = digest_of(body)
        assert base64.b64decode(announced).hex() == digest.removeprefix("sha256:")
        self.farm.blobs.add(digest)
        self._json({"digest": digest, "bytes": len(body)}, 201)

    def _post_builds(self, parts: list[str], body: bytes) -> None:
        if not parts:
            self.farm.submitted.append(json.loads(body))
            self._submitted()
        elif parts[1] == "cancel":
            self.farm.builds[parts[0]]["state"] = "cancelled"
            self._json(self.farm.builds[parts[0]])
        else:
            self.farm.builds[parts[0]]["state"] = "queued"
            self._json(self.farm.builds[parts[0]])

    def _submitted(self) -> None:
        made = self.farm.coming.pop(0) if self.farm.coming else self.farm.builds[BUILD]
        self.farm.builds[made["id"]] = made
        self._json(made, 202)

    def _post_models(self, parts: list[str], body: bytes) -> None:
        if [folded(parts[0]), *parts[1:]] != [folded(self.farm.model), "bench"]:
            self._missing(f"there is no model {parts[0]!r}", f"the models are {self.farm.model}")
            return
        self.farm.benched.append(json.loads(body))
        self._submitted()

    def _post_infer(self, _parts: list[str], body: bytes) -> None:
        self.farm.inferred.append(json.loads(body))
        self._json(self.farm.inference | {"engine": BUILD, "why": "built for cpu"}, 202)

    def _get_infer(self, parts: list[str], _body: bytes) -> None:
        if len(parts) == 2:
            self._bytes(OUTPUTS, "application/octet-stream")
        else:
            self._json(self.farm.inference)

    def _delete_infer(self, _parts: list[str], _body: bytes) -> None:
        self._json(self.farm.inference | {"state": "cancelled"})

    def _post_plugins(self, _parts: list[str], body: bytes) -> None:
        asked = json.loads(body)
        self.farm.plugins.append(
            {
                "digest": asked["digest"],
                "name": asked["name"],
                "bytes": 7,
                "key": "K" * 43 + "=",
                "created_at": NOW,
                "signature": asked["signature"],
            }
        )
        self._json(self.farm.plugins[-1], 201)

    def _get_plugins(self, _parts: list[str], _body: bytes) -> None:
        self._json(self.farm.plugins)

    def _post_gc(self, _parts: list[str], body: bytes) -> None:
        self.farm.collected.append(json.loads(body))
        self._json(
            GC_EXAMPLE | {"dry_run": json.loads(body)["dry_run"], "uploads": 2, "uploads_bytes": 10}
        )

    def _get_builds(self, parts: list[str], _body: bytes) -> None:
        if not parts:
            self._json({"items": list(self.farm.builds.values()), "cursor": None})
        elif parts[0] not in self.farm.builds:
            self._missing(f"there is no build {parts[0]!r}", "`farm builds` lists them")
        elif len(parts) == 1:
            self._json(self.farm.builds[parts[0]])
        elif parts[1] == "events":
            self._events()
        elif parts[1] == "logs":
            self._bytes(b"=== build digits\ntactic 7\n", "text/plain")
        else:
            reason = {
                "job": 2,
                "title": "build digits:int8@sm_89",
                "reuse": "ran",
                "why": "differs from job 1: method entropy → max",
                "nearest": 1,
                "differs": ["method entropy → max"],
            }
            self._json({"build": parts[0], "jobs": [reason]})

    def _events(self) -> None:
        last = int(self.headers.get("Last-Event-ID", 0))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        cut = self.farm.cut_after.pop(0) if self.farm.cut_after else None
        self._chunk(b": ping\n\n")
        for count, one in enumerate(e for e in self.farm.events if e["id"] > last):
            text = f"event: {one['kind']}\nid: {one['id']}\ndata: {json.dumps(one)}\n\n"
            if count == cut:
                self._chunk(text[: len(text) // 2].encode())  # cut off within an event
                self._drop()
                return
            self._chunk(text.encode())
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _get_models(self, parts: list[str], _body: bytes) -> None:
        rows = [row for row, _ in self.farm.engines.values()]
        if not parts:
            item = {
                "name": self.farm.model,
                "versions": [1],
                "engines": len(rows),
                "created_at": NOW,
            }
            self._json({"items": [item], "cursor": None})
        elif folded(parts[0]) != folded(self.farm.model):
            self._missing(f"there is no model {parts[0]!r}", f"the models are {self.farm.model}")
        elif len(parts) == 1:
            version = {
                "version": 1,
                "source_digest": "sha256:" + "a" * 64,
                "source_format": "pt2",
                "engines": len(rows),
                "created_at": NOW,
            }
            self._json(
                {"name": self.farm.model, "created_at": NOW, "versions": [version], "engines": rows}
            )
        elif parts[1:] == ["bench"]:
            self._json(self.farm.bench)
        elif len(parts) == 2:
            self._json({"items": self._asked(rows), "cursor": None})
        else:
            self._match(parts[2], rows)

    def _asked(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The engines that the query is for, by precision, runtime and version."""
        query = parse_qs(urlsplit(self.path).query)
        asked = [(name, query[name][0]) for name in _ASKED if name in query]
        return [row for row in rows if all(str(row[name]) == value for name, value in asked)]

    def _match(self, gpu: str, rows: list[dict[str, Any]]) -> None:
        wanted = {"rtx-4090": "sm_89"}.get(gpu, gpu)
        found = [row for row in self._asked(rows) if row["gpu"] == wanted]
        if "version=" not in self.path:
            newest = max((row["version"] for row in rows), default=None)
            found = [row for row in found if row["version"] == newest]
        if "doubtful=" not in self.path:
            found = [row for row in found if row.get("state") != "doubtful"]
        found = [row for row in found if not row.get("yanked")]
        if found:
            self._json({"engine": found[0], "why": f"built for {wanted}; int8 is the only one"})
        else:
            self._missing(f"digits has no engine for {gpu}; there is int8@sm_89")

    def _get_engines(self, parts: list[str], _body: bytes) -> None:
        if parts[0] not in self.farm.engines:
            self._missing(f"there is no engine {parts[0]!r}", "`farm engines MODEL` lists them")
            return
        row, data = self.farm.engines[parts[0]]
        if len(parts) == 1:
            self._json(row)
        elif parts[1] == "manifest":
            self._json(self.farm.manifest(row))
        elif parts[1] == "signature":
            self._signature(row)
        elif parts[1] == "layers":
            self._json(LAYERS)
        elif parts[1:] == ["quantization"] and self.farm.quantization:
            self._json(self.farm.quantization)
        elif parts[1:] == ["quantization", "picture.svg"] and self.farm.quantization:
            text = f"<svg>{urlsplit(self.path).query}</svg>"
            self._bytes(text.encode(), "image/svg+xml")
        elif parts[1] == "quantization":
            self._missing(f"nothing is known of a calibration of engine {parts[0]!r}")
        else:
            self._content(row, data)

    def _signature(self, row: dict[str, Any]) -> None:
        if not self.farm.signers:
            self._problem(404, {"code": "unsigned", "detail": "this farm has no signing key"})
            return
        [wanted] = parse_qs(urlsplit(self.path).query)["format"]
        signed = signed_bundle(self.farm.manifest(row), wanted, self.farm.signers[0])
        self._bytes(self.farm.bundles.get(wanted, signed), MEDIA_TYPE)

    def _get_signing_keys(self, _parts: list[str], _body: bytes) -> None:
        self._bytes(shown_keys(self.farm.signers), "application/json")

    def _content(self, row: dict[str, Any], data: bytes) -> None:
        start, etag = 0, f'"{row["digest"]}"'
        wanted = self.headers.get("Range")
        if wanted and self.farm.ranges and self.headers.get("If-Range", etag) == etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        cut = self.farm.cut_after.pop(0) if self.farm.cut_after else None
        if cut is None:
            self.wfile.write(data[start:])
        else:
            self.wfile.write(data[start : start + cut])
            self._drop()

    def _get_now(self, _parts: list[str], _body: bytes) -> None:
        farm = self.farm
        self._json({"workers": farm.workers, "queues": farm.queues, "running": farm.running})

    def _get_workers(self, _parts: list[str], _body: bytes) -> None:
        self._json(self.farm.workers)

    def _get_timing_caches(self, _parts: list[str], _body: bytes) -> None:
        self._json(self.farm.timing_caches)

    def _get_targets(self, _parts: list[str], _body: bytes) -> None:
        self._json(self.farm.targets)

    def _drop(self) -> None:
        self.wfile.flush()
        self.close_connection = True

    def _missing(self, detail: str, hint: str | None = None) -> None:
        self._problem(404, {"code": "not-found", "detail": detail, "hint": hint})

    def _problem(self, status: int, body: dict[str, Any] | None) -> None:
        if body is None:
            self._empty(status)
            return
        whole = {"title": "", "status": status} | body
        self._bytes(json.dumps(whole).encode(), "application/problem+json", status)

    def _json(self, value: Any, status: int = 200) -> None:
        self._bytes(json.dumps(value).encode(), "application/json", status)

    def _bytes(self, data: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _empty(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

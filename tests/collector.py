"""A collector of traces: takes OTLP over HTTP, as OpenTelemetry's own does."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Status


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A span that was exported."""

    service: str
    instance: str
    name: str
    kind: int
    trace: str
    id: str
    parent: str
    began: int
    ended: int
    error: bool
    attributes: dict[str, object]
    links: tuple[tuple[str, str], ...]


@dataclass(kw_only=True)
class Collector:
    url: str
    spans: list[Seen] = field(default_factory=list)
    #: The headers of the requests.
    headers: list[dict[str, str]] = field(default_factory=list)

    def trace(self, trace: str) -> list[Seen]:
        return sorted((one for one in self.spans if one.trace == trace), key=lambda one: one.began)


def _value(value) -> object:
    kind = value.WhichOneof("value")
    return None if kind is None else getattr(value, kind)


def seen(request: ExportTraceServiceRequest) -> Iterator[Seen]:
    for of_resource in request.resource_spans:
        resource = {one.key: _value(one.value) for one in of_resource.resource.attributes}
        for span in (span for scope in of_resource.scope_spans for span in scope.spans):
            yield Seen(
                service=str(resource["service.name"]),
                instance=str(resource.get("service.instance.id", "")),
                name=span.name,
                kind=span.kind,
                trace=span.trace_id.hex(),
                id=span.span_id.hex(),
                parent=span.parent_span_id.hex(),
                began=span.start_time_unix_nano,
                ended=span.end_time_unix_nano,
                error=span.status.code == Status.STATUS_CODE_ERROR,
                attributes={one.key: _value(one.value) for one in span.attributes},
                links=tuple((one.trace_id.hex(), one.span_id.hex()) for one in span.links),
            )


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector at a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces", self.path
            assert self.headers["Content-Type"] == "application/x-protobuf"
            collector.headers.append(dict(self.headers))
            collector.spans += seen(ExportTraceServiceRequest.FromString(body))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collector = Collector(url=f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""The OpenAPI document, and the page that shows it from locally served files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import fastapi_offline
from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, HTMLResponse, Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from farm.api import access
from farm.errors import NotFound
from farm.schemas.problems import Problem
from farm.settings import Settings
from farm.specs.scopes import Scope

router = APIRouter(prefix="/docs", include_in_schema=False)

_SCHEMAS = "#/components/schemas/"
#: The schemas of calls that read or write their bodies without FastAPI.
_REQUESTS: dict[str, type[BaseModel]] = {}
_ANSWERS: dict[str, type[BaseModel]] = {Problem.__name__: Problem}

#: Any call may answer these: wrong host, cross-site, too many requests from one client, overloaded.
_OF_ALL = (403, 421, 429, 503)
_SCHEME = "key"
_BEARER = {
    "type": "http",
    "scheme": "bearer",
    "description": "A key from `farm keys create`; `farm up` writes one to the file `key` in its home. "
    "Or a token of the issuer in `FARM_OIDC`.",
}
_OF_BODIES = (400, 408, 413, 415)
NAMES = {
    400: "Bad request",
    401: "A key is required",
    403: "The key lacks the scope, or the request is cross-site",
    404: "Not found",
    408: "The body arrived too slowly",
    409: "Conflict",
    413: "Too large",
    415: "Unsupported content type",
    416: "Range not satisfiable",
    421: "Host name not accepted",
    422: "Invalid request",
    429: "This client has reached its share: try again after Retry-After",
    503: "Unavailable: try again after Retry-After",
    507: "Storage full",
}


def json_body(shape: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI's request body for a call that parses JSON of this shape itself (`extent.parsed`)."""
    _REQUESTS[shape.__name__] = shape
    schema = {"$ref": f"{_SCHEMAS}{shape.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def event_stream(shape: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI's response for server-sent events whose data have this shape."""
    _ANSWERS[shape.__name__] = shape
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": f"{_SCHEMAS}{shape.__name__}"},
    }
    text = {"type": "string"}
    event = {"type": "object", "properties": {"id": text, "event": text, "data": data}}
    content = {"text/event-stream": {"itemSchema": event}}
    return {"description": "server-sent events", "content": content}


def problem_response(status: int) -> dict[str, Any]:
    """OpenAPI's response for an error of this status."""
    content = {"application/problem+json": {"schema": {"$ref": f"{_SCHEMAS}Problem"}}}
    found: dict[str, Any] = {"description": NAMES[status], "content": content}
    if status == 401:
        challenge = {"schema": {"type": "string"}, "description": "`Bearer`"}
        found["headers"] = {"WWW-Authenticate": challenge}
    if status in (429, 503):
        seconds = {"schema": {"type": "integer"}, "description": "seconds to wait"}
        found["headers"] = {"Retry-After": seconds}
    return found


def install(app: FastAPI) -> None:
    """Generate the application's OpenAPI document once and keep it."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    @cache
    def content() -> bytes:
        return json.dumps(document(), ensure_ascii=False, separators=(",", ":")).encode()

    # Not FastAPI's own route, which serialises the document on the event loop for every request.
    async def answer(_request: Request) -> Response:
        return Response(content(), media_type="application/json")

    app.openapi = document  # type: ignore[method-assign]
    app.state.document = content
    app.add_route("/openapi.json", answer, include_in_schema=False)


def prepare(app: FastAPI) -> None:
    """Generate the document now, not while requests are waiting."""
    app.state.document()


def _document(app: FastAPI) -> dict[str, Any]:
    made = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        license_info=app.license_info,
        routes=app.routes,
    )
    settings: Settings = app.state.services.settings
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            if not access.is_open(path, settings):
                _lock(operation, access.needed(method.upper(), path))
            _complete(method, operation)
    made["components"]["securitySchemes"] = {_SCHEME: _BEARER}
    schemas = made["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    _merge(schemas, _schemas(_ANSWERS, "serialization"))
    _merge(schemas, _schemas(_REQUESTS, "validation"))
    made["components"]["schemas"] = dict(sorted(schemas.items()))
    return made


def _complete(method: str, operation: dict[str, Any]) -> None:
    """Add the door's responses, and replace FastAPI's documented errors with problem documents."""
    responses = operation["responses"]
    for parameter in operation.get("parameters", ()):
        parameter["schema"] = _without_null(parameter["schema"])
    statuses = set(_OF_ALL)
    if {"build_id", "engine_id"} & {one["name"] for one in operation.get("parameters", ())}:
        statuses.add(409)  # the id may be ambiguous
    if method in ("post", "put", "patch", "delete"):
        statuses |= set(_OF_BODIES)
    if operation.get("parameters") or "requestBody" in operation:
        statuses.add(422)
        responses.pop("422", None)
    for status in statuses:
        responses.setdefault(str(status), problem_response(status))
    operation["responses"] = dict(sorted(responses.items()))


def _lock(operation: dict[str, Any], scope: Scope) -> None:
    """Document which scope an operation requires."""
    operation["security"] = [{_SCHEME: [scope]}]
    operation["responses"].setdefault("401", problem_response(401))
    said = operation.get("description", "")
    operation["description"] = f"{said}\n\nScope: `{scope}`.".strip()


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter's schema: an optional one can be omitted, but not sent as null."""
    kinds = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    return {**kinds[0], **{name: value for name, value in schema.items() if name != "anyOf"}}


def _schemas(
    shapes: Mapping[str, type[BaseModel]], mode: Literal["validation", "serialization"]
) -> dict[str, Any]:
    found: dict[str, Any] = models_json_schema(
        [(shape, mode) for shape in shapes.values()], ref_template=f"{_SCHEMAS}{{model}}"
    )[1]["$defs"]
    return found


def _merge(schemas: dict[str, Any], asked: dict[str, Any]) -> None:
    """Add the request schemas; one that differs from a response schema of the same name gets another name."""
    renamed = {name: f"{name}-Input" for name, one in asked.items() if _differs(schemas, name, one)}
    for name, one in asked.items():
        schemas[renamed.get(name, name)] = _with_references(one, renamed)


def _differs(schemas: dict[str, Any], name: str, one: dict[str, Any]) -> bool:
    return name in schemas and schemas[name] != one


def _with_references(schema: Any, renamed: dict[str, str]) -> Any:
    if isinstance(schema, list):
        return [_with_references(one, renamed) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _with_references(one, renamed) for name, one in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str):
        name = reference.removeprefix(_SCHEMAS)
        found["$ref"] = f"{_SCHEMAS}{renamed.get(name, name)}"
    return found


_FILES = Path(fastapi_offline.__file__).parent / "static"
#: The files that the page needs, by name, with their media types.
_SERVED = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Engine farm</title>
<link rel="icon" href="/docs/favicon.png">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
#: A file, so that the page needs no inline script.
_START = """SwaggerUIBundle({
  url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, layout: "BaseLayout",
  presets: [SwaggerUIBundle.presets.apis], validatorUrl: null
});
"""


@router.get("")
async def page() -> Response:
    return HTMLResponse(_PAGE)


@router.get("/start.js")
async def start() -> Response:
    return Response(_START, media_type="text/javascript")


@router.get("/{name}")
async def file(name: str) -> Response:
    if name not in _SERVED:
        raise NotFound("no such file", hint="the documentation is at /docs")
    return FileResponse(_FILES / name, media_type=_SERVED[name])

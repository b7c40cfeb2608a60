"""The page's scripts and styles."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, Response

from farm.api.web.render import STATIC
from farm.errors import NotFound

router = APIRouter(include_in_schema=False)

#: Their URLs have a digest of the content.
_FOR_EVER = {"Cache-Control": "public, max-age=31536000, immutable"}


@router.get("/static/{name}")
def static(name: str) -> Response:
    file = _files().get(name)
    if file is None:
        raise NotFound("there is no such file")
    return FileResponse(file, headers=_FOR_EVER)


@cache
def _files() -> dict[str, Path]:
    return {one.name: one for one in STATIC.rglob("*") if one.suffix in (".js", ".css", ".svg")}

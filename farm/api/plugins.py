"""Plugin libraries: allow-list and list them."""

from __future__ import annotations

from fastapi import APIRouter

from farm.api.documents import json_body
from farm.api.extent import parsed
from farm.api.services import Body, By, Farm, problems
from farm.schemas.plugins import PluginRequest, PluginView
from farm.trust import audit, plugins

router = APIRouter(prefix="/v1/plugins", tags=["fleet"])


@router.post(
    "",
    status_code=201,
    summary="Allow a plugin library",
    responses=problems(404),
    openapi_extra=json_body(PluginRequest),
)
def add(body: Body, farm: Farm, by: By) -> PluginView:
    """Allow-list an uploaded library signed with one of `FARM_PLUGIN_KEYS`. Idempotent."""
    request = parsed(PluginRequest, body)
    with farm.db.read() as session:
        plugins.find_uploaded(session, request.digest)
    with (
        farm.one_of(farm.verifying, "another library is being verified"),
        farm.store.local(request.digest) as library,
    ):
        key = plugins.verified(
            library,
            request.signature,
            farm.settings.plugin_keys,
            most_bytes=farm.settings.max_plugin_bytes,
        )
    with farm.db.write() as session:
        view = plugins.add(session, request, key)
        audit.record(session, by, "plugin.add", view.digest, name=view.name, key=key)
        return view


@router.get("", summary="List plugin libraries")
def list_plugins(farm: Farm) -> list[PluginView]:
    """The libraries that builds may use in `options.plugins`."""
    with farm.db.read() as session:
        return plugins.views(session)

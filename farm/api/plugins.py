"""Plugin libraries: signed, allow-listed, listed."""

from __future__ import annotations

from fastapi import APIRouter

from farm import plugins
from farm.api.services import Farm, problems
from farm.schemas import PluginRequest, PluginView

router = APIRouter(prefix="/v1/plugins", tags=["fleet"])


@router.post("", status_code=201, summary="Allow a plugin library", responses=problems(404, 422))
def add(request: PluginRequest, farm: Farm) -> PluginView:
    """Allow-list an uploaded library that one of `FARM_PLUGIN_KEYS` has signed. Idempotent."""
    with farm.db.write() as session:
        return plugins.add(session, farm.store, request, farm.settings.plugin_keys)


@router.get("", summary="List plugin libraries")
def list_plugins(farm: Farm) -> list[PluginView]:
    """What builds may name in `options.plugins`."""
    with farm.db.read() as session:
        return plugins.views(session)

"""What a machine that joins a farm proves before it starts, and says that it will do."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from kombu.exceptions import OperationalError

from farm import __version__
from farm.database.migrate import newest_schema, require_schema
from farm.database.session import Database
from farm.errors import BrokerUnavailable, FarmError, SandboxMissing
from farm.local import home as homes
from farm.local import joined
from farm.local.joined import Joined
from farm.machine.gpus import Gpu
from farm.queue.celery_app import create_celery
from farm.settings import Settings
from workers.runner import forks, heartbeat, stores, toolchain, trial
from workers.runner.names import queues
from workers.sandbox import Mode
from workers.sandbox.features import missing

_BROKER_S = 5
_SHOWN_TOOLS = ("torch", "onnxruntime", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One of the things that a worker needs."""

    what: str
    where: str  #: without passwords
    said: str = "ok"
    problem: FarmError | None = None


def prove(settings: Settings, workers: Mapping[str, Gpu | None], *, as_document: bool) -> bool:
    """Try all that the workers need, and print that and what they will do; whether all of it works.

    Parameters:
        workers: their names, each with its GPU.
    """
    farm = joined.read(settings.home)
    assert farm is not None  # `farm worker --join` has written it
    checks = _checks(settings, workers)
    if as_document:
        print(json.dumps(_document(farm, settings, checks, workers)), flush=True)
    else:
        _show(farm, settings, checks, workers)
    failed = [one.problem for one in checks if one.problem is not None]
    for err in failed:
        print(f"error: {err.detail}", file=sys.stderr)
        if err.hint:
            print(f"hint: {err.hint}", file=sys.stderr)
    if failed:
        print(
            f"Nothing was started. The settings are in {joined.file_in(settings.home)}: once they work, run "
            "the same again, which needs no token. If they are wrong, have the API hand out others "
            "(FARM_JOIN_BROKER_URL, FARM_JOIN_DATABASE_URL, FARM_JOIN_STORE_URL), and join by a new token.",
            file=sys.stderr,
        )
    return not failed


def _checks(settings: Settings, workers: Mapping[str, Gpu | None]) -> list[Check]:
    attempts: Sequence[tuple[str, str, Callable[[], str]]] = (
        ("broker", bare(settings.broker), lambda: _broker(settings)),
        ("database", bare(settings.database), lambda: _database(settings)),
        ("store", settings.store or str(settings.store_dir), lambda: _store(settings)),
        ("names", ", ".join(workers), lambda: _names(settings, workers)),
        ("sandbox", settings.sandbox, lambda: _sandbox(settings)),
    )
    return [_tried(what, where, attempt) for what, where, attempt in attempts]


def _tried(what: str, where: str, attempt: Callable[[], str]) -> Check:
    try:
        return Check(what=what, where=where, said=attempt())
    except FarmError as err:
        return Check(what=what, where=where, said="failed", problem=err)


def bare(url: str) -> str:
    """A URL without the user and the password in it."""
    found = urlsplit(url)
    return found._replace(netloc=found.netloc.rpartition("@")[2], query="").geturl()


def _broker(settings: Settings) -> str:
    app = create_celery(settings)
    connection = app.connection_for_write()
    try:
        with connection:
            connection.ensure_connection(max_retries=1, interval_start=0.2, timeout=_BROKER_S)
            connection.default_channel  # noqa: B018 - it asks the broker
    except (OperationalError, OSError, *connection.connection_errors) as err:
        raise BrokerUnavailable(
            f"the broker at {bare(settings.broker)} can't be used from here: {err}",
            hint="is there a way to it from this machine, and is its password right? The API hands out "
            "FARM_JOIN_BROKER_URL, else its own",
        ) from err
    return "ok"


def _database(settings: Settings) -> str:
    db = Database(settings.database)
    try:
        require_schema(db)
    finally:
        db.dispose()
    return f"ok, schema {newest_schema()}"


def _store(settings: Settings) -> str:
    stores.proven(settings)
    return "ok, read and written"


def _names(settings: Settings, workers: Mapping[str, Gpu | None]) -> str:
    db = Database(settings.database)
    try:
        holder = homes.holder(settings.home)
        for name in workers:
            heartbeat.require_name(db, name, holder=holder, ttl_s=settings.worker_ttl_s)
    finally:
        db.dispose()
    return "ok, nobody else's"


def _sandbox(settings: Settings) -> str:
    mode = Mode(settings.sandbox)
    if mode is Mode.OFF:
        return "off: jobs aren't isolated"
    forks.preload([])
    lacking = missing(trial.tried(settings, is_gpu=False))
    if lacking and mode is Mode.REQUIRED:
        raise SandboxMissing(f"this machine can't isolate jobs: {'; '.join(lacking)}")
    return f"missing: {'; '.join(lacking)}" if lacking else "ok, all of it is enforced"


def _queues(gpu: Gpu | None) -> list[str]:
    return list(queues(gpu, toolchain.runtimes()))


def _versions(farm: Joined) -> dict[str, str]:
    there = toolchain.installed()
    found = {"engine-farm": __version__, "the farm": farm.version}
    return found | {name: there[name] for name in _SHOWN_TOOLS if name in there}


def _show(
    farm: Joined, settings: Settings, checks: Sequence[Check], workers: Mapping[str, Gpu | None]
) -> None:
    lines = [f"This machine works for {farm.farm} as {farm.name}, by the key {farm.key_id}:"]
    lines += [f"  {one.what:<9} {one.where}: {one.said}" for one in checks]
    for name, gpu in workers.items():
        what = f"{settings.cpu_slots} jobs at once" if gpu is None else f"{gpu.name}, {gpu.uuid}"
        lines.append(f"  {'worker':<9} {name}: {what}; reads {', '.join(_queues(gpu))}")
    versions = ", ".join(f"{name} {version}" for name, version in _versions(farm).items())
    lines.append(f"  {'versions':<9} {versions}")
    lines.append(f"  {'settings':<9} {joined.file_in(settings.home)}: farm worker starts by them")
    print("\n".join(lines), flush=True)


def _document(
    farm: Joined, settings: Settings, checks: Sequence[Check], workers: Mapping[str, Gpu | None]
) -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "farm": farm.farm,
        "name": farm.name,
        "key_id": farm.key_id,
        "settings": str(joined.file_in(settings.home)),
        "checks": [
            {
                "what": one.what,
                "where": one.where,
                "said": one.said,
                "problem": one.problem and {"detail": one.problem.detail, "hint": one.problem.hint},
            }
            for one in checks
        ],
        "workers": [
            {
                "name": name,
                "gpu": gpu and gpu.name,
                "uuid": gpu and gpu.uuid,
                "queues": _queues(gpu),
            }
            for name, gpu in workers.items()
        ],
        "versions": _versions(farm),
    }

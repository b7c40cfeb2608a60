"""``farm worker --join``: a machine that has nothing of the farm's but a token becomes a worker."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from farm.errors import InvalidRequest

if TYPE_CHECKING:
    from farm.local.joined import Joined

VARIABLE = "FARM_JOIN_TOKEN"

Join = Annotated[
    str | None,
    typer.Option(
        "--join",
        metavar="URL",
        help="Join the farm whose API is there, by a token: farm tokens create --worker.",
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token",
        envvar=VARIABLE,
        metavar="TOKEN",
        help="The join token. Better in FARM_JOIN_TOKEN or a file: a shell's history keeps arguments.",
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        help="A file with the join token; - is the standard input.",
        exists=True,
        dir_okay=False,
        allow_dash=True,
    ),
]


def token_of(token: str | None, file: Path | None) -> str | None:
    """The join token that was given, which is then no longer among this process's arguments and variables.

    Raises:
        InvalidRequest
    """
    from farm.processes import hide_argument
    from farm.trust import credentials

    if token is not None:
        hide_argument(token)
    os.environ.pop(VARIABLE, None)
    if file is not None:
        try:
            token = sys.stdin.read() if str(file) == "-" else file.read_text()
        except (OSError, UnicodeDecodeError) as err:
            raise InvalidRequest(f"{file} can't be read: {err}", hint="see --token-file") from err
    token = (token or "").strip() or None
    if token is not None and credentials.join_id_of(token) is None:
        raise InvalidRequest(
            "this isn't a join token",
            hint="it is one word, join_…: farm tokens create --worker prints it",
        )
    return token


def joined_by(url: str, token: str | None, name: str | None, home: Path) -> Joined:
    """Join the farm at this address, or find that this home has done so, by this token if one is given.

    Raises:
        JoinRefused, WorkerNameTaken, Conflict, InvalidRequest, Unavailable
    """
    from farm.client import Farm
    from farm.local import home as homes
    from farm.local import joined
    from farm.trust import credentials

    joined.require_no_farm(home)
    url = url.rstrip("/")
    before = joined.read(home)
    token_id = None if token is None else credentials.join_id_of(token)
    if before is not None and before.farm == url and token_id in (None, before.token_id):
        return before
    if token is None or token_id is None:
        raise InvalidRequest(
            f"joining {url} takes a token",
            hint="farm tokens create --worker, then FARM_JOIN_TOKEN=…",
        )
    name = name or os.environ.get("FARM_WORKER_HOST") or socket.gethostname()
    _warn_of_plain(url)
    with Farm(url, key="") as farm:
        answer = farm.join(token, name, holder=homes.holder(home))
    made = joined.of_answer(answer, farm=url, name=name, token_id=token_id)
    joined.keep(home, made)
    return made


def _warn_of_plain(url: str) -> None:
    from farm.client.http import reaches_this_machine

    if url.startswith("http://") and not reaches_this_machine(url):
        print(
            f"warning: {url} isn't encrypted: the token, and the passwords in the farm's answer, can be read "
            "on the way",
            file=sys.stderr,
        )

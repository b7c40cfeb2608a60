"""What a machine that joined a farm keeps in its home: the settings it got there, and its key."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from farm.errors import InvalidRequest
from farm.local import home as homes
from farm.schemas.tokens import JoinView
from farm.settings import Settings
from farm.trust import credentials

_FILE = "joined.json"
_STORE = "FARM_STORE"


class Joined(BaseModel):
    """A farm that this machine has joined."""

    model_config = ConfigDict(frozen=True)

    farm: str  #: its API's address
    name: str  #: this machine's
    version: str  #: the farm's, at that time
    token_id: str
    key_id: str
    environment: dict[str, str]

    def apply(self, environment: MutableMapping[str, str]) -> None:
        """Add these settings to an environment, whose own come first.

        The key is the store's: where the environment names another store, it stays with its own key.
        """
        of_store = (_STORE, credentials.VARIABLE)
        own_store = bool(environment.get(_STORE))
        for name, value in self.environment.items():
            if name in of_store:
                if not own_store:
                    environment[name] = value
            elif not environment.get(name):
                environment[name] = value


def of_answer(answer: JoinView, *, farm: str, name: str, token_id: str) -> Joined:
    """What to keep of a farm's answer.

    Parameters:
        farm: the address at which it was joined.
    """
    shared = Settings(
        broker_url=answer.broker_url,
        database_url=answer.database_url,
        store=answer.store or farm,
        **answer.settings.model_dump(),
    )
    names = {"broker_url", "database_url", "store", *type(answer.settings).model_fields}
    told = shared.environment()
    wanted = {variable: told[variable] for variable in (f"FARM_{one.upper()}" for one in names)}
    return Joined(
        farm=farm,
        name=name,
        version=answer.version,
        token_id=token_id,
        key_id=answer.key_id,
        environment=wanted | {credentials.VARIABLE: answer.key},
    )


def file_in(home: Path) -> Path:
    return home / _FILE


def read(home: Path) -> Joined | None:
    """The farm that the machine with this home has joined; None if it has joined none.

    Raises:
        InvalidRequest: the file can't be understood.
    """
    file = file_in(home)
    try:
        return Joined.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as err:
        raise InvalidRequest(
            f"{file} can't be understood",
            hint="join again: farm worker --join URL, with a new token",
        ) from err


def keep(home: Path, joined: Joined) -> None:
    """Write it down, readable only by this user."""
    credentials.write(file_in(home), joined.model_dump_json(indent=2))


def require_no_farm(home: Path) -> None:
    """Return unless this home is a farm's of its own, which its workers would leave.

    Raises:
        InvalidRequest
    """
    if homes.has_farm(home):
        raise InvalidRequest(
            f"{home} is the home of a farm of this machine's own",
            hint="join from another: FARM_HOME=~/.engine-farm-worker farm worker --join …",
        )

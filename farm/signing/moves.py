"""The signed statement of an alias: which version it names since its latest move."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from farm.errors import SignatureRefused
from farm.signing.bundles import Opened, Statement, Subject

ALIAS = "https://engine-farm/alias/v1"


@dataclass(frozen=True, kw_only=True)
class Moved:
    """Where an alias is after a move."""

    model: str
    alias: str
    version: int | None  #: None if it was deleted
    revision: int  #: the number of its moves: a rollback's is higher, too


def of_move(moved: Moved, at: str) -> Statement:
    """What is signed of a move.

    Parameters:
        at: when, in ISO 8601.
    """
    predicate = asdict(moved) | {"at": at}
    return Statement(type=ALIAS, subjects=(_subject(moved, predicate),), predicate=predicate)


def move_in(opened: Opened) -> Moved:
    """The move that a statement is of.

    Raises:
        SignatureRefused: it is of something else.
    """
    statement = opened.statement
    said = dict(statement.predicate)
    model, alias = said.get("model"), said.get("alias")
    version, revision = said.get("version"), said.get("revision")
    if (
        statement.type != ALIAS
        or not isinstance(model, str)
        or not isinstance(alias, str)
        or type(revision) is not int
        or not (version is None or type(version) is int)
    ):
        raise SignatureRefused("this statement isn't of an alias")
    moved = Moved(model=model, alias=alias, version=version, revision=revision)
    if statement.subjects != (_subject(moved, said),):
        raise SignatureRefused("the statement's subject and its alias contradict each other")
    return moved


def _subject(moved: Moved, predicate: dict[str, object]) -> Subject:
    """in-toto wants the digest of something: of what is said."""
    written = json.dumps(predicate, sort_keys=True, separators=(",", ":")).encode()
    digest = f"sha256:{hashlib.sha256(written).hexdigest()}"
    return Subject(name=f"{moved.model}@{moved.alias}", digest=digest)

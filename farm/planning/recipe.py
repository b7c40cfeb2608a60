"""Recipes: complete descriptions of what a job does, which identify it.

A recipe covers everything that can change the result (inputs, parameters, tools) and nothing that can't
(names, labels, priorities). An input that another job makes enters by that job's key, so every key of a
build is known when it is submitted. Pure, no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from farm.planning import keys
from farm.stages import JobKind

#: The only field of a reference to a large parameter; its value is the digest.
SHARED = "$shared"


@dataclass(frozen=True)
class Given:
    """An uploaded input."""

    digest: str

    def __str__(self) -> str:
        return self.digest


@dataclass(frozen=True)
class Made:
    """An input that another job makes."""

    key: str  #: that job's key
    role: str  #: its output's role

    def __str__(self) -> str:
        return f"{self.key}#{self.role}"


Input = Given | Made


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a job does."""

    kind: JobKind
    stage: int  #: the version of its stage
    params: Mapping[str, Any]  #: JSON; large ones by digest
    inputs: Mapping[str, Input]  #: by role
    tools: Mapping[str, str]  #: package → version, or ``any`` when no worker has announced it yet

    @cached_property
    def document(self) -> dict[str, Any]:
        """The recipe as JSON: stored, and hashed for the key."""
        return {
            "kind": self.kind.value,
            "stage": self.stage,
            "params": dict(self.params),
            "inputs": {str(role): str(given) for role, given in self.inputs.items()},
            "tools": dict(self.tools),
        }

    @cached_property
    def key(self) -> str:
        """The key of the job that does this."""
        return keys.key(self.document)

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Self:
        """Read a stored recipe."""
        return cls(
            kind=JobKind(document["kind"]),
            stage=document["stage"],
            params=document["params"],
            inputs={role: _input(text) for role, text in document["inputs"].items()},
            tools=document["tools"],
        )


def _input(text: str) -> Input:
    key, made, role = text.partition("#")
    return Made(key, role) if made else Given(text)


def named(value: Any) -> str | None:
    """The digest if the value is a reference to a large parameter, or None."""
    if isinstance(value, dict) and value.keys() == {SHARED}:
        return str(value[SHARED])
    return None

"""Aliases: which version of a model the fleet is given."""

from __future__ import annotations

from collections.abc import Mapping

from farm.client.noun import Noun, part
from farm.client.submission import checked
from farm.schemas.aliases import (
    AliasList,
    AliasView,
    Move,
    MovePage,
    PromoteRequest,
    Promotion,
    RollbackRequest,
)
from farm.specs import references


class Aliases(Noun):
    """Moves aliases."""

    def version_of(self, model: str, version: int | None = None) -> tuple[str, int | None]:
        """A model's name and the version that ``digits@7`` or ``digits@prod`` means; None if it says none.

        Raises:
            NotFound: there is no such alias.
            InvalidRequest
        """
        name, of = references.split(model, version)
        return name, self.alias(name, of.alias).version if of.alias else of.version

    def aliases(self, model: str) -> list[AliasView]:
        """A model's aliases by name.

        Raises:
            NotFound
        """
        return self.http.read(AliasList, "GET", _path(model)).items

    def alias(self, model: str, alias: str) -> AliasView:
        """An alias, with the version it names.

        Raises:
            NotFound
        """
        return self.http.read(AliasView, "GET", _path(model, alias))

    def promote(
        self,
        model: str,
        version: int | str,
        alias: str = references.PROD,
        *,
        partial: bool = False,
        new_inputs: bool = False,
        note: str | None = None,
        max_slowdown: float = 1.1,
        max_drop: float = 0.01,
        revision: int | None = None,
        dry_run: bool = False,
    ) -> Promotion:
        """Make an alias name a version, for all GPUs at once.

        Parameters:
            version: its number, or an alias that names it.
            partial: promote it although GPUs lack an engine of it.
            new_inputs: promote it although its inputs or outputs are other ones.
            note: why, for the history.
            max_slowdown: largest ratio of the median latencies beside the engines it replaces.
            max_drop: largest drop of the task's metric beside them, on the same evaluation data.
            revision: the alias's as you saw it, 0 for none: a Conflict if it was moved since.
            dry_run: only say what would be left out.

        Raises:
            Conflict: naming the GPUs that the version can't serve as the one before did, or how its inputs
                and outputs differ.
            NotFound, InvalidRequest, ScopeMissing
        """
        _, number = self.version_of(f"{model}@{version}")
        request = checked(
            PromoteRequest,
            version=number,
            partial=partial,
            new_inputs=new_inputs,
            note=note,
            max_slowdown=max_slowdown,
            max_drop=max_drop,
        )
        return self.http.read(
            Promotion,
            "PUT",
            _path(model, alias),
            json=request.model_dump(mode="json"),
            params={"dry_run": True} if dry_run else {},
            repeatable=revision is None,  # to name the version it names moves nothing
            headers=_if_match(revision),
        )

    def rollback(
        self,
        model: str,
        alias: str = references.PROD,
        *,
        note: str | None = None,
        revision: int | None = None,
    ) -> AliasView:
        """Have an alias name the version it named before its present one was promoted.

        Raises:
            Conflict: it never named another.
            NotFound, ScopeMissing
        """
        request = checked(RollbackRequest, note=note)
        return self.http.read(
            AliasView,
            "POST",
            f"{_path(model, alias)}/rollback",
            json=request.model_dump(mode="json"),
            repeatable=False,
            headers=_if_match(revision),
        )

    def delete_alias(self, model: str, alias: str, *, revision: int | None = None) -> None:
        """Delete an alias; its history stays.

        Raises:
            NotFound, Conflict, ScopeMissing
        """
        headers = _if_match(revision)
        self.http.request("DELETE", _path(model, alias), repeatable=False, headers=headers)

    def alias_history(self, model: str, alias: str, *, limit: int = 1000) -> list[Move]:
        """An alias's moves, newest first.

        Raises:
            NotFound
        """
        pages = self._pages(MovePage, f"{_path(model, alias)}/history", {}, limit)
        return [item for page in pages for item in page.items]


def _path(model: str, alias: str | None = None) -> str:
    path = f"/v1/models/{part(model)}/aliases"
    return path if alias is None else f"{path}/{part(alias)}"


def _if_match(revision: int | None) -> Mapping[str, str]:
    return {} if revision is None else {"If-Match": f'"{revision}"'}

"""Rules of what is kept of a model."""

from __future__ import annotations

from typing import Any

from farm.client.noun import Noun, part
from farm.client.submission import checked
from farm.schemas.retention import RetentionReport, RetentionView
from farm.specs.retention import Retention

_LONGEST_S = 3600.0


class Retentions(Noun):
    """Sets and applies rules of retention."""

    def retention(self, model: str) -> RetentionView:
        """The rule that holds for a model, and the versions whose engines stay.

        Raises:
            NotFound
        """
        return self.http.read(RetentionView, "GET", _path(model))

    def set_retention(self, model: str, **rule: Any) -> RetentionView:
        """Set a model's own rule.

        Parameters:
            rule: ``history``, ``newest``, ``engines_days``, ``intermediates_days``; what is left out has its
                default.

        Raises:
            NotFound, InvalidRequest, ScopeMissing
        """
        body = checked(Retention, **rule).model_dump()
        return self.http.read(RetentionView, "PUT", _path(model), json=body)

    def reset_retention(self, model: str) -> RetentionView:
        """Have the farm's rule hold for a model again.

        Raises:
            NotFound, ScopeMissing
        """
        return self.http.read(RetentionView, "DELETE", _path(model))

    def apply_retention(self, *, dry_run: bool = False) -> RetentionReport:
        """Delete what the rules of all models let go now.

        Raises:
            ScopeMissing, Unavailable
        """
        return self.http.read(
            RetentionReport,
            "POST",
            "/v1/retention",
            json={"dry_run": dry_run},
            repeatable=dry_run,
            timeout=_LONGEST_S,
        )


def _path(model: str) -> str:
    return f"/v1/models/{part(model)}/retention"

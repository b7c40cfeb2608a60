"""Engines that can't be built: told all at once, or left out. Pure, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from farm.errors import CalibrationMissing, InvalidRequest, TargetUnsupported
from farm.planning.targets import Choice
from farm.schemas.builds import LeftOut
from farm.schemas.submission import BuildRequest
from farm.specs import target_text
from farm.specs.precision import Precision

_SKIP = "skip_unsupported (--skip-unsupported) leaves out what can't be built"


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Engines of one target that can't be built for one reason."""

    target: str  #: as requested, if no runtime supports it
    precisions: tuple[Precision, ...]
    why: str
    said: str  #: the reason with what it is about
    error: type[InvalidRequest] = TargetUnsupported
    hint: str | None = None

    @property
    def can_be_skipped(self) -> bool:
        """Missing data is no property of a target: whoever asks for int8 has forgotten them."""
        return self.error is not CalibrationMissing

    def left_out(self) -> LeftOut:
        return LeftOut(target=self.target, precisions=list(self.precisions), why=self.why)


def all_at_once(refused: Sequence[Refused]) -> InvalidRequest:
    """One error for all of them: of the class that they share, if they do."""
    kinds = {one.error for one in refused}
    [error] = kinds if len(kinds) == 1 else [TargetUnsupported]
    said = list(dict.fromkeys(one.said for one in refused))
    can_skip = all(one.can_be_skipped for one in refused)
    if len(said) == 1:
        hint = refused[0].hint
        return error(said[0], hint=f"{hint}; or {_SKIP}" if hint and can_skip else hint)
    hints = dict.fromkeys(one.hint or one.error.default_hint or "" for one in refused)
    listed = "\n".join(f"  {one}" for one in said)
    told = [*filter(None, hints), *([_SKIP] if can_skip else [])]
    return error(f"these can't be built:\n{listed}", hint="; or ".join(told))


def choose_all(
    request: BuildRequest, choose: Callable[[str], Choice]
) -> tuple[list[Choice], list[Refused]]:
    """The targets of a request, and those that no runtime supports.

    Raises:
        UnknownGpu, InvalidRequest
    """
    choices: list[Choice] = []
    refused: list[Refused] = []
    for asked in request.targets:
        try:
            choices.append(choose(asked))
        except TargetUnsupported as err:
            target, own = target_text.split(asked)
            refused.append(
                Refused(
                    target=target,
                    precisions=own or tuple(request.precisions),
                    why=err.detail.removeprefix(f"{target}: "),
                    said=err.detail,
                    hint=err.hint,
                )
            )
    return choices, refused


def without(
    choices: Sequence[Choice], requested: Sequence[Precision], refused: Sequence[Refused]
) -> list[Choice]:
    """The targets without the engines that can't be built.

    Raises:
        InvalidRequest: nothing is left, or what can't be built isn't to be skipped: missing data.
    """
    kept = [one for one in refused if not one.can_be_skipped]
    if kept:
        raise all_at_once(kept)
    gone = {(one.target, precision) for one in refused for precision in one.precisions}
    found: list[Choice] = []
    for choice in choices:
        left = [one for one in choice.of(requested) if (str(choice.target), one) not in gone]
        if left:
            found.append(replace(choice, precisions=tuple(left)))
    if not found:
        raise all_at_once([replace(one, hint=None) for one in refused])
    return found

"""What ``farm pull`` shows of the engines that it has pulled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from farm.cli import exits, registry, show
from farm.cli.pull_by_id import misfit

if TYPE_CHECKING:
    from farm.client import EngineSet, Missing, Pulled
    from farm.client.onnx import PulledOnnx
    from farm.schemas.engines import Match, PassedOver


@dataclass(frozen=True, kw_only=True)
class Shown:
    """How the user wants it: as JSON, as paths alone, or in words."""

    as_json: bool
    quiet: bool

    def matched(
        self,
        pulled: Sequence[tuple[str, Pulled]],
        passed_over: Sequence[Sequence[PassedOver] | None],
    ) -> None:
        """Engines pulled for GPU tags, each with those that were passed over for it, if that was asked."""
        if self.as_json:
            documents = [document(tag, one) for tag, one in pulled]
            told = zip(documents, passed_over, strict=True)
            show.document(
                [one if others is None else one | {"passed_over": others} for one, others in told]
            )
            return
        self._tell([one for _, one in pulled])
        say_passed_over(one for others in passed_over for one in others or ())

    def foretold(self, matches: Sequence[tuple[str, Match]]) -> None:
        """What would be pulled for GPU tags; nothing is."""
        if self.as_json:
            show.document(
                [{"asked": tag, "engine": one.engine, "why": one.why} for tag, one in matches]
            )
            return
        for tag, one in matches:
            engine = one.engine
            if self.quiet:
                print(engine.id)
                continue
            precision = show.precision(engine.precision, engine.prune)
            what = f"{engine.model} v{engine.version} in {precision} by {engine.runtime}"
            show.line(f"{tag}: {engine.id}, {what}, {show.size(engine.bytes)}")
            show.line(f"  why: {one.why}")
            show.line(f"  judged on: {show.judged_on(engine.accuracy)}")
        say_passed_over(other for _, one in matches for other in one.passed_over or ())

    def by_id(self, pulled: Pulled) -> None:
        """The engine that was named, and whether it is for this machine."""
        note = misfit(pulled.engine)
        if self.as_json:
            show.document([document(pulled.engine.gpu, pulled) | {"note": note}])
            return
        self._tell([pulled])
        if note:
            show.note(f"note: {note}")

    def onnx(self, files: Sequence[PulledOnnx]) -> None:
        """ONNX files, and how to build engines from them."""
        if self.as_json:
            show.document(
                [{"path": str(one.path), "fresh": one.fresh, "onnx": one.onnx} for one in files]
            )
            return
        for one in files:
            if self.quiet:
                print(one.path)
                continue
            show.line(f"{one.path}  {show.size(one.onnx.bytes)}  {one.onnx.digest}")
            show.line(f"  why: {one.onnx.why}")
            show.line("  verified" + ("" if one.fresh else "; already downloaded"))
            show.line(f"  build an engine where TensorRT is: {one.onnx.build}")

    def whole(self, made: EngineSet, **more: str) -> int:
        """A set of engines; return the exit code: whether any is missing."""
        if self.as_json:
            pulled = [document(one.engine.gpu, one) for one in made.pulled]
            missing = [asdict(one) for one in made.missing]
            named = {**more, "model": made.model, "version": made.version}
            show.document({**named, "pulled": pulled, "missing": missing})
            return code(made.missing)
        self._tell(made.pulled)
        say_missing(made.missing)
        return code(made.missing)

    def _tell(self, pulled: Sequence[Pulled]) -> None:
        for one in pulled:
            if self.quiet:
                print(one.path)
            else:
                say(one)
        if not self.quiet and show.on_terminal():
            _say_how_to_run(pulled)


def code(missing: Sequence[Missing]) -> int:
    if any(not one.doubtful for one in missing):
        return exits.FAILED
    return exits.DOUBTFUL if missing else exits.OK


def say(pulled: Pulled) -> None:
    show.line(f"{pulled.path}  {show.size(pulled.engine.bytes)}  {pulled.engine.digest}")
    show.line(f"  why: {pulled.why}")
    show.line(f"  judged on: {show.judged_on(pulled.engine.accuracy)}")
    if pulled.engine.against is not None:
        show.line(f"  against {registry.against(pulled.engine)}")
    show.line(f"  runs on: {pulled.engine.runtime} {pulled.engine.runtime_version}")
    show.line(f"  {_verified(pulled)}" + ("" if pulled.fresh else "; already downloaded"))


def _verified(pulled: Pulled) -> str:
    if pulled.signed_by is None:
        return "verified; unsigned: the farm has no signing key"
    return f"verified: signed by sha256:{pulled.signed_by}"


def say_passed_over(passed_over: Iterable[PassedOver]) -> None:
    for one in passed_over:
        what = f"{one.precision} by {one.runtime}, {one.gpu}"
        show.note(f"passed over: {one.engine} ({what}): {one.why}")


def say_missing(missing: Sequence[Missing]) -> None:
    for one in missing:
        what = f"{one.precision}@{one.target}" if one.precision else one.target
        show.note(f"missing: {what}{f' ({one.engine})' if one.engine else ''}: {one.why}")


def _say_how_to_run(pulled: Sequence[Pulled]) -> None:
    """The Python that runs one engine, or where it is written for each of several."""
    runnable = [one for one in pulled if one.load]
    if len(runnable) == 1:
        show.line(f"\nTo run it in Python ({runnable[0].manifest} says it too):\n")
        show.line(runnable[0].load.rstrip())
    elif runnable:
        show.line(
            f"\nHow to run each in Python: load in its manifest, as in {runnable[0].manifest}"
        )


def document(tag: str, pulled: Pulled) -> dict[str, Any]:
    return {
        "gpu": tag,
        "path": str(pulled.path),
        "manifest": str(pulled.manifest),
        "fresh": pulled.fresh,
        "signed_by": pulled.signed_by,
        "why": pulled.why,
        "load": pulled.load,
        "engine": pulled.engine,
    }

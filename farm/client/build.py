"""A build that was submitted."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from farm.client import events, sets
from farm.client.download import download
from farm.client.failures import failed
from farm.client.http import Http
from farm.client.plain import plain
from farm.client.progress import TransferProgress
from farm.client.registry import Registry
from farm.client.sets import EngineSet, Missing
from farm.errors import (
    BuildCancelled,
    Conflict,
    NotFound,
    WaitTimedOut,
)
from farm.schemas.builds import BuildView, Explanation, WantedEngine
from farm.schemas.engines import EngineView, Match
from farm.schemas.events import Event
from farm.specs import durations
from farm.specs.counted import counted
from farm.specs.gpus import canonical, compute_capability
from farm.specs.states import BUILD_ENDED, BuildState

_FIRST_POLL_S = 0.2
_LONGEST_POLL_S = 2.0


class Build:
    """A handle to one build of a farm.

    Attributes:
        named_after: what told the name of a model that was submitted without one; None if that was its file's
            name, or not known here.
        taken: which file of the folder that was submitted is the model.
    """

    named_after: str | None = None
    taken: Path | None = None

    def __init__(self, http: Http, view: BuildView) -> None:
        self._http = http
        self._view = view

    def __repr__(self) -> str:
        return f"<Build {self.id} of {self._view.model} v{self._view.version}: {self._view.state}>"

    @property
    def id(self) -> str:
        return self._view.id

    @property
    def view(self) -> BuildView:
        """The build as last fetched."""
        return self._view

    @property
    def has_ended(self) -> bool:
        """Whether the build had ended when last fetched."""
        return self._view.state in BUILD_ENDED

    def refresh(self) -> Self:
        """Fetch the build's current state."""
        self._view = self._http.read(BuildView, "GET", self._path)
        return self

    def events(self, *, after: int = 0) -> Iterator[Event]:
        """The build's events, from its submission until it ends."""
        return events.follow(self._http, self.id, after=after)

    def wait(self, timeout: float | None = None) -> Self:
        """Wait until the build has succeeded.

        Parameters:
            timeout: seconds; the build continues after a timeout.

        Raises:
            BuildFailed, BuildCancelled, WaitTimedOut
            Unavailable: the farm stayed unreachable; the build isn't affected.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause_s = _FIRST_POLL_S
        while not self.refresh().has_ended:
            left_s = float("inf") if deadline is None else deadline - time.monotonic()
            if left_s <= 0:
                raise WaitTimedOut(
                    f"build {self.id} hadn't ended after {durations.told(timeout or 0)}; it continues",
                    hint=f"wait again, or check its state: farm status {self.id}",
                )
            time.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 1.5, _LONGEST_POLL_S)
        self.raise_for_state()
        return self

    def raise_for_state(self) -> None:
        """Raise the build's error if it failed or was cancelled.

        Raises:
            BuildFailed, BuildCancelled
        """
        if self._view.state is BuildState.FAILED:
            raise failed(self._view)
        if self._view.state is BuildState.CANCELLED:
            raise BuildCancelled(
                f"build {self.id} was cancelled", hint=f"run it again: farm retry {self.id}"
            )

    def cancel(self) -> Self:
        """Cancel the build; jobs that other builds need continue."""
        return self._post("cancel")

    def retry(self, *, force: bool = False) -> Self:
        """Rerun failed and cancelled jobs; succeeded ones are kept.

        Parameters:
            force: even if all that failed would only fail again.

        Raises:
            Conflict: it would, and says what to change.
        """
        return self._post("retry", force="true") if force else self._post("retry")

    def logs(self, job: int | None = None) -> str:
        """What the build's jobs, or one of them, printed."""
        query = {} if job is None else {"job": job}
        return plain(self._http.request("GET", f"{self._path}/logs", params=query).text)

    def explain(self) -> Explanation:
        """Why each job ran or was reused."""
        return self._http.read(Explanation, "GET", f"{self._path}/explain")

    def engines(self) -> list[EngineView]:
        """The build's engines in the registry."""
        ids = dict.fromkeys(want.engine for want in self.refresh().view.engines if want.engine)
        registry = Registry(self._http)
        return [registry.engine(engine_id) for engine_id in ids]

    def pull(
        self,
        folder: str | Path = ".",
        gpu: str | None = None,
        precision: str | None = None,
        *,
        doubtful: bool = False,
        progress: TransferProgress | None = None,
    ) -> list[Path]:
        """Download the build's engines, or those for a GPU and a precision; return their paths.

        For a failed build, the engines that could be built.

        Parameters:
            doubtful: include engines that failed a gate.

        Raises:
            Conflict: the build isn't done yet.
            NotFound: it has no such engine.
            UnknownGpu
        """
        chosen = self._chosen(self._ready(), gpu, precision, doubtful=doubtful)
        return [
            download(self._http, match.engine, path, why=match.why, progress=progress).path
            for match, path in sets.placed(self._matches(chosen), folder)
        ]

    def pull_all(
        self,
        folder: str | Path = ".",
        *,
        doubtful: bool = False,
        progress: TransferProgress | None = None,
    ) -> EngineSet:
        """Download every engine of the build that isn't yanked; say which are missing, and why.

        Parameters:
            doubtful: include engines that failed a gate.

        Raises:
            Conflict: the build isn't done yet.
            DigestMismatch, Unavailable
        """
        engines = self._ready()
        taken = [engine for engine in engines if not engine.yanked]
        chosen = [engine for engine in taken if doubtful or not engine.doubts]
        left = [sets.left_out(engine) for engine in engines if engine not in chosen]
        pulled, lost = sets.fetch_all(self._http, self._matches(chosen), folder, progress)
        missing = [*self._unbuilt(), *left, *lost]
        view = self._view
        return EngineSet(model=view.model, version=view.version, pulled=pulled, missing=missing)

    def _ready(self) -> list[EngineView]:
        """The build's engines once no more will come.

        Raises:
            Conflict: the build isn't done yet.
        """
        engines = self.engines()
        ready = self._view.engines_done == self._view.engines_total
        if not ready and not self.has_ended:
            raise Conflict(
                f"{self._view.engines_done} of {counted(self._view.engines_total, 'engine')} of build "
                f"{self.id} are ready",
                hint="wait for it first: build.wait(), or farm watch " + self.id,
            )
        return engines

    def _matches(self, engines: Sequence[EngineView]) -> list[Match]:
        return [Match(engine=engine, why=f"made for build {self.id}") for engine in engines]

    def _unbuilt(self) -> list[Missing]:
        """The engines that the build was asked for and hasn't made."""
        view = self._view
        wanted = {(w.target, w.precision): w for w in view.engines if not w.engine}
        return [
            Missing(target=target, precision=precision, why=_why(view, want))
            for (target, precision), want in wanted.items()
        ]

    def _chosen(
        self,
        engines: Sequence[EngineView],
        gpu: str | None,
        precision: str | None,
        *,
        doubtful: bool,
    ) -> list[EngineView]:
        tags = {canonical(gpu), compute_capability(gpu)} if gpu else None
        chosen = [
            engine
            for engine in engines
            if (tags is None or engine.gpu in tags) and precision in (None, engine.precision)
        ]
        if not chosen:
            there = ", ".join(f"{e.precision}@{e.gpu}" for e in engines) or "none"
            asked = " ".join(filter(None, (precision, gpu)))
            raise NotFound(
                f"build {self.id} has no {asked + ' ' if asked else ''}engine; there is {there}",
                hint=f"see farm status {self.id}",
            )
        good = [engine for engine in chosen if doubtful or not engine.doubts]
        if not good:
            why = "; ".join(f"{e.precision}@{e.gpu}: {'; '.join(e.doubts)}" for e in chosen)
            raise NotFound(
                f"every such engine of build {self.id} is doubtful: {why}",
                hint="accept them with doubtful=True, or submit the model again with your own data, "
                "another precision, or other gates",
            )
        return good

    @property
    def _path(self) -> str:
        return f"/v1/builds/{self.id}"

    def _post(self, verb: str, **query: str) -> Self:
        self._view = self._http.read(BuildView, "POST", f"{self._path}/{verb}", params=query)
        return self


def _why(view: BuildView, want: WantedEngine) -> str:
    """Why a build that has ended lacks an engine."""
    own = [job for job in view.jobs if job.id in (want.build_job, want.measure_job)]
    said = [job.error.detail for job in own if job.error]
    return said[0] if said else f"the build is {view.state}"

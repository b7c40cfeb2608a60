"""What is tried again while a farm is out of reach, and how long is waited in between."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import stamina

from farm.client.problems import is_passing
from farm.errors import Unavailable

# What stamina says of each attempt is for whoever sets up logging, not for a terminal.
logging.getLogger("stamina").addHandler(logging.NullHandler())


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """How often a repeatable request is tried, and how long is waited in between.

    The wait is doubled each time, and has chance in it: clients that lost a farm together come back one
    by one. A farm that says how long to wait is obeyed.

    Parameters:
        first_s: the first wait, and what chance adds to each at most; zero never waits.
        longest_s: what the doubling ends at.
    """

    attempts: int = 4
    first_s: float = 0.2
    longest_s: float = 5.0

    def tries(self, attempts: int | None = None) -> Iterable[stamina.Attempt]:
        """Attempts until one doesn't end in what passes, or there were enough."""
        return stamina.retry_context(
            on=self._wait,
            attempts=attempts or self.attempts,
            timeout=None,
            wait_initial=self.first_s,
            wait_max=self.longest_s,
            wait_jitter=self.first_s,
        )

    def in_a_row(self, attempts: int) -> Iterator[Try]:
        """Attempts without end, of which so many may fail in a row; one that got on begins a new row."""
        lost: Unavailable | None = None
        while True:
            for attempt in self.tries(attempts + (lost is not None)):
                if lost is not None:
                    with attempt:  # to be waited for, as all that is lost
                        err, lost = lost, None
                        raise err
                    continue
                one = Try(attempt)
                yield one
                lost = one.lost
                if one.has_ended or lost is not None:
                    break

    def _wait(self, err: Exception) -> bool | float:
        """Whether what went wrong passes; where the farm says when, after how many seconds."""
        if not is_passing(err):
            return False
        if not err.retry_after_s or not self.first_s:
            return True
        # Whom a full farm sends away, it sends away together.
        return err.retry_after_s + random.uniform(0, self.first_s)  # noqa: S311


class Try:
    """One attempt, which says of itself whether it ``got_on`` before it failed."""

    def __init__(self, attempt: stamina.Attempt) -> None:
        self._attempt = attempt
        self.got_on = False
        self.has_ended = False
        self.lost: Unavailable | None = None

    def __enter__(self) -> Self:
        self._attempt.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        if isinstance(err, Exception) and is_passing(err) and self.got_on:
            self.lost = err
            return True
        self.has_ended = err is None
        if err is not None and not isinstance(err, Exception):
            return None  # Ctrl+C, or nobody wants to know the rest
        return self._attempt.__exit__(kind, err, trace)

"""What is retried while a farm is unreachable, and after which waits."""

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

# stamina's messages are for applications that configure logging, not for a terminal.
logging.getLogger("stamina").addHandler(logging.NullHandler())


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """How often a repeatable request is tried, and the waits in between.

    The wait doubles each time, with jitter so that clients that lost a farm together don't return together. A
    farm's Retry-After takes precedence.

    Parameters:
        first_s: the first wait, and the largest jitter; zero never waits.
        longest_s: the longest wait.
    """

    attempts: int = 4
    first_s: float = 0.2
    longest_s: float = 5.0

    def tries(self, attempts: int | None = None) -> Iterable[stamina.Attempt]:
        """Attempts until one succeeds or fails permanently, or the limit is reached."""
        return stamina.retry_context(
            on=self._wait,
            attempts=attempts or self.attempts,
            timeout=None,
            wait_initial=self.first_s,
            wait_max=self.longest_s,
            wait_jitter=self.first_s,
        )

    def in_a_row(self, attempts: int) -> Iterator[Try]:
        """Unlimited attempts, of which this many may fail in a row; progress resets the count."""
        lost: Unavailable | None = None
        while True:
            for attempt in self.tries(attempts + (lost is not None)):
                if lost is not None:
                    with attempt:  # retried like any lost connection
                        err, lost = lost, None
                        raise err
                    continue
                one = Try(attempt)
                yield one
                lost = one.lost
                if one.has_ended or lost is not None:
                    break

    def _wait(self, err: Exception) -> bool | float:
        """Whether the failure is temporary; if the farm says for how long, the seconds to wait."""
        if not is_passing(err):
            return False
        if not err.retry_after_s or not self.first_s:
            return True
        # An overloaded farm turns many clients away at once.
        return err.retry_after_s + random.uniform(0, self.first_s)  # noqa: S311


class Try:
    """One attempt; sets ``got_on`` if it made progress before failing."""

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
            return None  # Ctrl+C, or the consumer stopped early
        return self._attempt.__exit__(kind, err, trace)

"""How many requests keys send, and how many wrong join tokens an address does: counted in Redis, and so over
all API processes, where the broker is one.

While Redis doesn't answer, and where the broker is another, each process counts for itself: a limit on
requests is no reason to answer none.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from anyio.lowlevel import RunVar
from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter as Shared
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter as Own
from redis.exceptions import RedisError

from farm.errors import RateExceeded
from farm.specs.limits import ADVICE, Quota, Used

log = logging.getLogger(__name__)

_WINDOW_S = 60
#: A request waits for Redis no longer than this.
_PATIENCE_S = 0.25
#: After Redis failed, requests are counted without it for so long.
_WITHOUT_S = 10.0
_NAMESPACE = "farm-requests"
#: Wrong join tokens that an address may send in a minute.
GUESSES = 10


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What is left of a key's requests within a minute."""

    limit: int
    left: int
    resets_in_s: int  #: until one more is allowed, or more of them
    is_allowed: bool = True

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """As draft-ietf-httpapi-ratelimit-headers-10 has them."""
        policy = f'"requests";q={self.limit};w={_WINDOW_S}'
        left = f'"requests";r={self.left};t={self.resets_in_s}'
        return [(b"ratelimit-policy", policy.encode()), (b"ratelimit", left.encode())]

    @property
    def used(self) -> Used:
        return Used(
            quota=Quota.REQUESTS, used=float(self.limit - self.left), limit=float(self.limit)
        )


class Rates:
    """Counts the requests of keys that have a limit.

    Parameters:
        broker: its URL; another than Redis's or Valkey's counts nothing.
    """

    def __init__(self, broker: str) -> None:
        self._url = _redis(broker)
        self._own = Own(MemoryStorage())
        #: An event loop's own: the API has one, tests have many.
        self._shared: RunVar[Shared] = RunVar("rates of requests")
        self._failed_at = -math.inf

    async def take(self, key_id: str, limit: int) -> Rate:
        """Count a request.

        Raises:
            RateExceeded: it is one too many. Those refused don't count.
        """
        rate = await self._rate(key_id, limit, takes=True)
        if rate.is_allowed:
            return rate
        err = RateExceeded(
            f"the key {key_id} may send {limit} requests a minute, and has",
            hint=f"wait {rate.resets_in_s} s, then go on; {ADVICE[Quota.REQUESTS]}; an administrator can "
            f"raise it: farm keys limits {key_id} {Quota.REQUESTS.option}=…",
        )
        err.retry_after_s = rate.resets_in_s
        err.rate = rate
        raise err

    async def require_guess(self, address: str) -> None:
        """Return if an address may send a join token: it hasn't sent too many wrong ones.

        Raises:
            RateExceeded
        """
        rate = await self._rate(_guesser(address), GUESSES, takes=False)
        if rate.left > 0:
            return
        err = RateExceeded(
            f"{address} has sent {GUESSES} wrong join tokens within a minute",
            hint=f"wait {rate.resets_in_s} s, and check the token; farm tokens create --worker makes another",
        )
        err.retry_after_s = rate.resets_in_s
        raise err

    async def guessed(self, address: str) -> None:
        """Count a wrong join token."""
        await self._rate(_guesser(address), GUESSES, takes=True)

    async def look(self, key_id: str, limit: int) -> Rate:
        """What is left, without counting."""
        return await self._rate(key_id, limit, takes=False)

    async def _rate(self, key_id: str, limit: int, *, takes: bool) -> Rate:
        item = RateLimitItemPerMinute(limit, namespace=_NAMESPACE)
        if self._url is not None and time.monotonic() - self._failed_at >= _WITHOUT_S:
            try:
                shared = self._limiter(self._url)
                allowed = not takes or await shared.hit(item, key_id)
                return _told(limit, await shared.get_window_stats(item, key_id), allowed)
            except (RedisError, OSError) as err:
                self._failed_at = time.monotonic()
                log.warning("requests are counted by this process alone: %s", err)
        allowed = not takes or self._own.hit(item, key_id)
        return _told(limit, self._own.get_window_stats(item, key_id), allowed)

    def _limiter(self, url: str) -> Shared:
        try:
            return self._shared.get()
        except LookupError:
            storage = RedisStorage(
                f"async+{url}",
                implementation="redispy",
                socket_timeout=_PATIENCE_S,
                socket_connect_timeout=_PATIENCE_S,
            )
            made = Shared(storage)
            self._shared.set(made)
            return made


def _guesser(address: str) -> str:
    return f"join {address}"


def _told(limit: int, stats: Any, allowed: bool) -> Rate:
    resets_in_s = max(1, math.ceil(stats.reset_time - time.time()))
    return Rate(
        limit=limit, left=stats.remaining, resets_in_s=resets_in_s, is_allowed=bool(allowed)
    )


def _redis(broker: str) -> str | None:
    """A broker's URL, if it is a Redis, as its client writes it."""
    scheme = urlsplit(broker).scheme
    if scheme in ("redis", "rediss"):
        return broker
    return broker.replace("redis+socket", "redis+unix", 1) if scheme == "redis+socket" else None

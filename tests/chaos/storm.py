"""What happens to the farm while it works: a seeded schedule of crashes."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import httpx2
from redis.exceptions import RedisError

from farm.database.session import Database
from tests.chaos.part import Part
from tests.chaos.site import CLOCKS_OFF_S, Site
from tests.conftest import POSTGRES
from tests.e2e.live import Process
from tests.keys import bearer

_LOOK_S = 3.0


class Storm(threading.Thread):
    """Does one thing after another to the farm, until it is told to end.

    Parameters:
        pause_s: the shortest and the longest time between two of them.
        strikes: how many at most; a farm on a slow machine has its rest after them.
    """

    def __init__(
        self, site: Site, seed: int, *, pause_s: tuple[float, float], strikes: int
    ) -> None:
        super().__init__(name="storm", daemon=True)
        self._site = site
        self._random = random.Random(seed)
        self._pause_s = pause_s
        self._strikes = strikes
        self._over = threading.Event()
        self.done: Counter[str] = Counter()
        self._first = self._random.sample(sorted(acts := self._acts()), len(acts))
        self._by_name = acts
        self.error: BaseException | None = None

    @property
    def has_more_to_show(self) -> bool:
        """Whether there is something that it does, and hasn't done yet."""
        return bool(self._first) and self.is_alive()

    def _acts(self) -> dict[str, Callable[[], bool]]:
        acts: dict[str, Callable[[], bool]] = {
            "kill a stage": lambda: self._kill(self._site.stages),
            "kill a fork server": lambda: self._kill(self._site.fork_servers),
            "kill a worker": lambda: self._kill(self._site.workers),
            "stop a worker past its lease": self._stop_a_worker,
            "kill a machine": lambda: self._restart_a_machine(signal.SIGKILL),
            "restart a machine": lambda: self._restart_a_machine(signal.SIGTERM),
            "kill the API": lambda: self._restart(self._site.api, signal.SIGKILL, 0.0),
            "API gone for a while": lambda: self._restart(self._site.api, signal.SIGTERM, 3.0),
            "flush the broker": self._flush_the_broker,
            "collect garbage": self._collect_garbage,
            "put a clock": self._put_a_clock,
            "revoke a join token": lambda: self._random.choice(self._site.joiners).revoke_token(),
            "let a join token expire": self._expire_a_token,
            "join again": self._join_again,
            "kill the broker": lambda: self._restart(self._site.broker, signal.SIGKILL, 0.0),
            "broker gone for a while": lambda: self._restart(
                self._site.broker, signal.SIGTERM, 3.0
            ),
        }
        if (s3 := self._site.s3) is not None:
            acts["kill S3"] = lambda: self._restart(s3, signal.SIGKILL, 0.0)
            acts["S3 gone for a while"] = lambda: self._restart(s3, signal.SIGTERM, 5.0)
        else:
            acts["store can't be written"] = self._close_the_store
        if POSTGRES is not None:
            acts["database gone for a while"] = self._close_the_database
        return acts

    def run(self) -> None:
        try:
            # Each once, in the seed's order, and then at random.
            while self.done.total() < self._strikes:
                if self._over.wait(self._random.uniform(*self._pause_s)):
                    break
                first = self._first[:1]
                name = first[0] if first else self._random.choice(sorted(self._by_name))
                has_done = self._by_name[name]()
                if first:
                    self._first.remove(name)
                if has_done:
                    self.done[name] += 1
                elif first:
                    self._first.append(name)  # there was nothing to kill, or to collect
        except BaseException as err:
            self.error = err

    def end(self) -> None:
        self._over.set()
        self.join(60)
        if self.error is not None:
            raise self.error

    def _kill(self, look: Callable[[], list[Process]]) -> bool:
        """Kill one as soon as there is one: the stages of tiny models are short."""
        deadline = time.monotonic() + _LOOK_S
        while not (processes := look()):
            if time.monotonic() > deadline:
                return False
        with suppress(ProcessLookupError):
            os.kill(self._random.choice(processes).pid, signal.SIGKILL)
        return True

    def _stop_a_worker(self) -> bool:
        workers = self._site.workers()
        if not workers:
            return False
        pid = self._random.choice(workers).pid
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(1.5 * self._site.settings.lease_ttl_s)
            os.kill(pid, signal.SIGCONT)
        return True

    def _close_the_store(self) -> bool:
        """Let every write to it fail for a while, as on a full disk."""
        incoming = self._site.settings.store_dir / "incoming"
        aside = incoming.with_name("aside")
        if not incoming.is_dir():
            return False
        incoming.rename(aside)
        incoming.touch()
        time.sleep(self._random.uniform(0.5, 2.0))
        incoming.unlink()
        aside.rename(incoming)
        return True

    def _close_the_database(self) -> bool:
        with self._site.closed_database():
            time.sleep(self._random.uniform(0.5, 5.0))
        return True

    def _put_a_clock(self) -> bool:
        """Let one machine's clock jump, by many leases. Garbage collection takes ten minutes."""
        part = self._random.choice([self._site.api, *self._site.supervisors])
        part.put_clock(self._random.uniform(-CLOCKS_OFF_S, CLOCKS_OFF_S))
        return True

    def _collect_garbage(self) -> bool:
        """Remove whatever may be removed, without a grace."""
        try:
            answer = httpx2.post(
                f"{self._site.url}/v1/gc",
                json={"older_than_s": 0},
                timeout=60,
                headers=bearer(self._site.key),
            )
        except httpx2.TransportError:
            return False  # it is being restarted
        return answer.is_success and answer.json()["removed_total"] > 0

    def _expire_a_token(self) -> bool:
        db = Database(self._site.settings.database)
        try:
            return self._random.choice(self._site.joiners).expire_token(db)
        finally:
            db.dispose()

    def _join_again(self) -> bool:
        """Let a machine that has joined be killed, and start by a new token, with a new key."""
        joiner = self._random.choice(self._site.joiners)
        joiner.part.kill()
        self._site.wait_for_s3()
        joiner.join()
        return True

    def _flush_the_broker(self) -> bool:
        try:
            self._site.flush_broker()
        except (RedisError, OSError):
            return False  # it is being restarted
        return True

    def _restart(self, part: Part, sig: signal.Signals, gone_s: float) -> bool:
        part.kill(sig)
        time.sleep(gone_s)
        part.start()
        return True

    def _restart_a_machine(self, sig: signal.Signals) -> bool:
        return self._restart(self._random.choice(self._site.supervisors), sig, 0.0)

"""TensorRT's timing cache: the fleet's timings so far, and what a build adds.

TensorRT reports which entries a cache has, but not which of them a build looked up. So all that is known
of a build is how many it had to time (``misses``), and whether that was none (``hit``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from farm.stages import CacheUse

if TYPE_CHECKING:
    import tensorrt as types


@dataclass(frozen=True, kw_only=True)
class TimingCacheUse:
    """A build's use of a timing cache."""

    data: bytes  #: the cache including the build's timings
    taken: bool  #: whether the given cache fits this GPU and version
    entries_before: int | None  #: None if this TensorRT can't report it
    entries_after: int | None
    misses: int | None  #: entries the build had to time
    hit: bool  #: the build had to time nothing

    def facts(self) -> CacheUse:
        return CacheUse(
            taken=self.taken,
            entries_before=self.entries_before,
            entries_after=self.entries_after,
            misses=self.misses,
            hit=self.hit,
        )


@dataclass(frozen=True, kw_only=True)
class Started:
    """A cache that was set on a builder's configuration."""

    given: bytes
    taken: bool
    keys: frozenset[str] | None


def start(config: types.IBuilderConfig, given: bytes) -> Started:
    """Set a serialised cache for a build, or an empty one if TensorRT refuses it."""
    taken = bool(given) and _set(config, given)
    if not taken:
        _set(config, b"")
    if given and not taken:
        print(
            "TensorRT rejects the fleet's timing cache here: this build times everything",
            flush=True,
        )
    return Started(given=given, taken=taken, keys=_keys(config.get_timing_cache()))


def finish(config: types.IBuilderConfig, started: Started) -> TimingCacheUse | None:
    """Return the build's use of its cache; None when it kept none."""
    cache: types.ITimingCache | None = config.get_timing_cache()
    if cache is None:
        return None
    data, keys = bytes(cache.serialize()), _keys(cache)
    known = keys is not None and started.keys is not None
    misses = len((keys or frozenset()) - (started.keys or frozenset())) if known else None
    return TimingCacheUse(
        data=data,
        taken=started.taken,
        entries_before=None if started.keys is None else len(started.keys),
        entries_after=None if keys is None else len(keys),
        misses=misses,
        hit=started.taken and (data == started.given if misses is None else misses == 0),
    )


def combine(
    config: types.IBuilderConfig, newest: bytes, mine: bytes
) -> tuple[bytes, int | None] | None:
    """Merge two caches; return the result and its number of entries. The newest wins for a common entry.

    If the newest is broken, mine replaces it. None if mine doesn't match the newest.
    """
    theirs: types.ITimingCache | None = config.create_timing_cache(newest)
    ours: types.ITimingCache | None = config.create_timing_cache(mine)
    if ours is None:
        return None
    if theirs is None:
        return mine, _count(ours)
    if not theirs.combine(ours, False):
        return None
    return bytes(theirs.serialize()), _count(theirs)


def _set(config: types.IBuilderConfig, data: bytes) -> bool:
    # Don't ignore mismatches: another GPU's tactics would be used as if they were this one's.
    cache: types.ITimingCache | None = config.create_timing_cache(data)
    return cache is not None and config.set_timing_cache(cache, False)


def _keys(cache: Any) -> frozenset[str] | None:
    """The keys of a cache's entries (since TensorRT 10.8)."""
    if not hasattr(cache, "queryKeys"):
        return None
    try:
        return frozenset(str(key) for key in cache.queryKeys())
    except RuntimeError:  # as documented; a build doesn't depend on it
        return None


def _count(cache: Any) -> int | None:
    keys = _keys(cache)
    return None if keys is None else len(keys)

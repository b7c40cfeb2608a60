"""A builder that is garbage isn't deleted while the next is made: both would wait for TensorRT's lock."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from farm.specs.options import BuilderOptions
from farm.specs.runtime import Runtime
from workers.backends.trt import build


class Builder:
    """In a cycle of garbage, as a failed build's traceback leaves one."""

    def __init__(self) -> None:
        self.me = self


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_garbage_goes_before_a_build_and_nothing_does_meanwhile(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    seen: list[tuple[bool, object]] = []
    left = weakref.ref(Builder())

    def begin(*_: Any) -> None:
        seen.append((gc.isenabled(), left()))
        raise ValueError

    if fails:
        monkeypatch.setattr(build, "load_runtime", begin)
        with pytest.raises(ValueError):  # noqa: PT011 it is the fake's
            build.build_plan(Runtime.TENSORRT_RTX, Path(), [], "sm_89", BuilderOptions(), print)
    else:
        with build._uncollected():
            seen.append((gc.isenabled(), left()))
    assert seen == [(False, None)]
    assert gc.isenabled()

"""A builder that is garbage isn't deleted while the next is made: both would wait for TensorRT's lock."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from farm.specs import BuilderOptions, Runtime
from workers.backends import trt


class Builder:
    """In a cycle of garbage, as a failed build's traceback leaves one."""

    def __init__(self) -> None:
        self.me = self


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_garbage_goes_before_a_build_and_nothing_does_meanwhile(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    seen: list[tuple[bool, object]] = []

    def build(*_: Any, **__: Any) -> None:
        seen.append((gc.isenabled(), left()))
        if fails:
            raise ValueError

    monkeypatch.setattr(trt, "_build_plan", build)
    left = weakref.ref(Builder())
    asked = (Runtime.TENSORRT_RTX, Path(), [], "sm_89", BuilderOptions(), print)
    if fails:
        with pytest.raises(ValueError):  # noqa: PT011 it is the fake's
            trt.build_plan(*asked)
    else:
        trt.build_plan(*asked)
    assert seen == [(False, None)]
    assert gc.isenabled()

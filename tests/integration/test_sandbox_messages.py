"""What a job sends its worker is taken for what a job may say, and for nothing else."""

from __future__ import annotations

import json
import os
import time

import pytest

from farm.errors import ChildTimedOut, StageFault
from tests.sandboxed import run
from workers.runner.child import Child
from workers.runner.siblings import Siblings


def sends(frames, link):
    for frame in frames:
        os.write(link._messages.fileno(), frame.encode("latin-1"))
    os._exit(0)


def framed(text):
    return f"{len(text).to_bytes(4, 'big').decode('latin-1')}{text}"


@pytest.mark.parametrize(
    "frame",
    [
        "\x7f\xff\xff\xff",  # of 2 GiB
        "\xff\xff\xff\xff\x00\x00\x00\xff\x00\x00\x00\x00",  # of a TiB
        framed("not JSON"),
        framed("[" * 100_000),
        framed("{}"),
        framed("[1, 2]"),
        framed('["progress", 5]'),
        framed('["progress", [5, 5]]'),
        framed('["quiet", "please"]'),
        framed('["result", 1]') + framed('["result", 2]'),
        framed('["error", {"code": "lease-lost"}]'),
        framed('["error", {"code": ["x"], "detail": "", "hint": null}]'),
        framed('["bye", 1]'),
    ],
)
def test_a_message_that_no_stage_sends_ends_the_job_and_not_the_worker(box, frame):
    with pytest.raises(StageFault, match="the stage's process sent"):
        run(sends, [frame], box)


def test_a_job_that_stops_in_the_middle_of_a_message_keeps_nobody_waiting(box):
    with pytest.raises(ChildTimedOut):
        run(stops_in_a_message, None, box, timeout_s=2)


def stops_in_a_message(_argument, link):
    os.write(link._messages.fileno(), b"\x00\x00\x10\x00[")
    time.sleep(600)


@pytest.mark.parametrize("code", ["lease-lost", "unavailable", "internal-error", "no-such-thing"])
def test_a_job_cannot_end_in_an_error_that_is_its_workers(box, code):
    error = json.dumps(["error", {"code": code, "detail": "so \x1b[2Jit is", "hint": None}])
    with pytest.raises(StageFault) as caught:
        run(sends, [framed(error)], box)
    assert caught.value.detail == "so \ufffd[2Jit is"


def asks_for_quiet_and_never_listens(_argument, link):
    for _ in range(20_000):
        link.send("quiet", True)
        link.send("quiet", False)


def test_a_job_that_asks_for_quiet_without_end_blocks_nobody(box):
    with (
        Child(
            asks_for_quiet_and_never_listens, None, timeout_s=5, sandbox=box, siblings=Siblings()
        ) as child,
        pytest.raises(ChildTimedOut),
    ):
        list(child.events())

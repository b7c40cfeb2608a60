"""What the farm's processes log: records that no text can forge, with the ids of what they are about."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from farm import logs
from farm.local.log_files import LogFiles
from tests.e2e.live import wait_until

HOSTILE = "gone\n2026-01-01 00:00:00,000 INFO    farm: all is well\r\x1b[2J\u2028{}\x85"
BUILD = "01m7y8mb9kssegkq"


class Logger:
    """A logger with a formatter, and what it wrote."""

    def __init__(self, formatter: logging.Formatter) -> None:
        self.written = io.StringIO()
        handler = logging.StreamHandler(self.written)
        handler.setFormatter(formatter)
        self.log = logging.Logger("farm.test")
        self.log.addHandler(handler)

    @property
    def lines(self) -> list[str]:
        return self.written.getvalue().split("\n")[:-1]

    @property
    def records(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def text() -> Logger:
    return Logger(logs.TextLines())


@pytest.fixture
def structured() -> Logger:
    return Logger(logs.JsonLines())


def test_a_record_carries_the_ids_of_what_is_handled(text, structured):
    for logger in (text, structured):
        with logs.handling(request_id="r1"), logs.handling(build=BUILD, job=42, attempt=2):
            logger.log.warning("it is %s", "slow")
        logger.log.info("afterwards")
    told, after = text.lines
    assert told.endswith(
        f"WARNING farm.test: it is slow [request_id=r1 build={BUILD} job=42 attempt=2]"
    )
    assert after.endswith("INFO    farm.test: afterwards")
    record, bare = structured.records
    assert record | {"time": "", "process": 0} == {
        "time": "",
        "level": "WARNING",
        "logger": "farm.test",
        "message": "it is slow",
        "request_id": "r1",
        "build": BUILD,
        "job": 42,
        "attempt": 2,
        "process": 0,
    }
    assert datetime.fromisoformat(str(record["time"])).utcoffset() is not None
    assert record["process"] == os.getpid()
    assert set(bare) == {"time", "level", "logger", "message", "process"}


@pytest.mark.parametrize("made", [logs.TextLines, logs.JsonLines])
def test_a_hostile_text_stays_within_its_record(made):
    logger = Logger(made())
    with logs.handling(worker=HOSTILE, stage="x" * 5000):
        logger.log.info("%s", HOSTILE)
    written = logger.written.getvalue()
    assert len(written.splitlines()) == 1
    assert written.isprintable() or written[:-1].isprintable()
    assert len(written) < 1000


@pytest.mark.parametrize("made", [logs.TextLines, logs.JsonLines])
def test_a_traceback_cannot_begin_another_record(made):
    logger = Logger(made())
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logger.log.exception("it failed")
    first, *more = logger.written.getvalue().splitlines()
    assert "it failed" in first
    if made is logs.JsonLines:
        assert more == []
        assert logger.records[0]["error"] == f"ValueError: {HOSTILE}"
        assert "test_logs.py" in str(logger.records[0]["traceback"])
    else:
        assert any("ValueError: gone" in line for line in more)
        assert all(line.startswith("    ") and line.isprintable() for line in more)


def test_messages_are_bounded(text, structured):
    for logger in (text, structured):
        logger.log.info("x" * 1_000_000)
        assert len(logger.lines[0]) < 10_000


def test_what_a_coroutine_handles_reaches_its_threads_and_no_other_coroutine():
    found: dict[str, object] = {}

    async def request(name: str, other: anyio.Event, mine: anyio.Event) -> None:
        with logs.handling(request_id=name):
            mine.set()
            await other.wait()  # both are under way
            logs.note(build=f"of {name}")
            found[name] = await to_thread.run_sync(logs.handled)

    async def main() -> None:
        one, two = anyio.Event(), anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(request, "one", two, one)
            group.start_soon(request, "two", one, two)

    anyio.run(main)
    assert found == {
        "one": {"request_id": "one", "build": "of one"},
        "two": {"request_id": "two", "build": "of two"},
    }
    assert logs.handled() == {}


ENDS = """
import sys, threading, warnings
from farm import logs
logs.configure("INFO", "json", worker="cpu@here")
warnings.warn("old\\nways")
def fail(text):
    raise ValueError(text)
thread = threading.Thread(target=fail, args=("in a thread",), name="beats")
thread.start()
thread.join()
fail("in the end")
"""


def test_what_ends_a_process_or_a_thread_is_a_record_too():
    ended = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True)
    assert ended.returncode == 1
    records = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [(one["level"], one.get("error"), one["worker"]) for one in records] == [
        ("WARNING", None, "cpu@here"),
        ("CRITICAL", "ValueError: in a thread", "cpu@here"),
        ("CRITICAL", "ValueError: in the end", "cpu@here"),
    ]


WRITES = """
import os, sys
from pathlib import Path
from farm import logs
logs.configure("INFO", "text", Path(sys.argv[1]))
import logging
for number, _ in enumerate(sys.stdin):
    logging.info("line %s %d.", sys.argv[2], number)
    os.write(1, b"raw %s %d.\\n" % (sys.argv[2].encode(), number))
"""


@pytest.fixture
def files(tmp_path: Path) -> LogFiles:
    made = LogFiles(tmp_path / "logs", most_bytes=4000, kept=99)
    made.create()
    return made


@pytest.fixture
def writers(files: LogFiles) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes that log, and print past Python's own streams, for each line they get."""
    made = []
    for name in ("one", "two"):
        with files.open("part") as log:
            command = [sys.executable, "-c", WRITES, str(files.path("part")), name]
            made.append(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, bufsize=1
                )
            )
    yield made
    for process in made:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(120) == 0


def test_no_line_of_several_processes_is_lost_while_their_file_is_rotated(files, writers):
    lines = 400

    for process in writers:
        process.stdin.write("\n" * lines)
        process.stdin.close()
    while any(process.poll() is None for process in writers):
        files.rotate("part")
    logged = sorted(files.path("part").parent.glob("part.log*"))
    assert len(logged) > 1
    text = "".join(one.read_text() for one in logged)
    for name in ("one", "two"):
        for number in range(lines):
            assert text.count(f"line {name} {number}.") == 1
            assert text.count(f"raw {name} {number}.") == 1
    assert all(one.stat().st_mode & 0o077 == 0 for one in logged)


def test_a_file_is_rotated_also_while_its_part_starts_or_stops(tmp_path):
    files = LogFiles(tmp_path, most_bytes=10, kept=2)
    with files.rotated():
        with files.open("part") as log:
            log.write(b"what a part prints before it is ready\n")
        wait_until("it is rotated", (tmp_path / "part.log.1").exists)
        assert files.last_line("part") == ""
    files.path("part").write_text("printed after the block\n")
    assert not (tmp_path / "part.log.2").exists()


def test_as_many_files_are_kept_as_the_setting_says(tmp_path):
    files = LogFiles(tmp_path, most_bytes=10, kept=2)
    for number in range(5):
        files.path("part").write_text(f"the file {number}\n")
        files.rotate("part")
    kept = {one.name: one.read_text() for one in tmp_path.iterdir()}
    assert kept == {
        "part.log": "",
        "part.log.1": "the file 4\n",
        "part.log.2": "the file 3\n",
    }


def test_a_part_is_quoted_from_its_start_on(tmp_path):
    files = LogFiles(tmp_path, most_bytes=100, kept=2)
    files.path("part").write_text("of an earlier run\n")
    with files.open("part") as log:
        assert files.last_line("part") == ""
        log.write(b"it begins\nit goes on\n")
    assert files.last_line("part") == "it goes on"
    files.path("part").write_text("x" * 200)
    files.rotate("part")
    files.path("part").write_text("after the rotation\n")
    assert files.last_line("part") == "after the rotation"
    assert files.tail("part") == "after the rotation"

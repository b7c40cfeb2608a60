"""How the farm's own processes log: one line an event, to standard error, as text or JSON.

A record carries what its process works on just then (:func:`handling`): the request, the build, the job.
Records are safe to read line by line: whatever hostile text one holds, it stays that one record.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal

from farm.specs import texts

Format = Literal["text", "json"]
#: What a record may carry, in this order.
FIELDS = (
    *("request_id", "build", "job", "attempt", "stage", "worker"),
    *("trace_id", "span_id"),
)
_MESSAGE_CHARS, _TRACEBACK_CHARS, _FIELD_CHARS = 8192, 32768, 200
_CUT = "…"
_NOISY = ("httpx2", "httpcore2", "alembic.runtime.migration", "urllib3")
_NOTHING: Mapping[str, object] = {}
_handled: ContextVar[Mapping[str, object]] = ContextVar("handled", default=_NOTHING)
_of_process: dict[str, object] = {}

log = logging.getLogger(__name__)


@contextmanager
def handling(**fields: object) -> Iterator[None]:
    """Add these :data:`FIELDS` to the records made in the block, in its thread and its coroutine."""
    token = _handled.set({**_handled.get(), **fields})
    try:
        yield
    finally:
        _handled.reset(token)


def note(**fields: object) -> None:
    """Add these fields until the surrounding :func:`handling` ends."""
    _handled.set({**_handled.get(), **fields})


def handled() -> dict[str, object]:
    """The fields of a record made now, for another process to go on with."""
    found = {**_of_process, **_handled.get()}
    return {name: found[name] for name in FIELDS if found.get(name) is not None}


class TextLines(logging.Formatter):
    """``TIME LEVEL LOGGER: MESSAGE [build=… job=42]``; a traceback's lines follow, indented."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        record.message = _cut(texts.escaped(record.message), _MESSAGE_CHARS)
        line = super().formatMessage(record)
        carried = " ".join(f"{name}={value}" for name, value in _fields().items())
        return f"{line} [{carried}]" if carried else line

    def formatException(self, info: _Info) -> str:  # noqa: N802
        told = _cut(super().formatException(info), _TRACEBACK_CHARS)
        # Split at what ends a line for a terminal or a reader of the file.
        return "\n".join(f"    {texts.escaped(line)}" for line in told.splitlines())

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        return "\n".join(f"    {texts.escaped(line)}" for line in stack_info.splitlines())


class JsonLines(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``message``, the fields, ``process``, and
    of an exception its ``error`` and ``traceback``."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": _cut(record.getMessage(), _MESSAGE_CHARS),
            **_fields(),
            "process": record.process,
        }
        if record.exc_info and record.exc_info[0] is not None:
            kind, err, _ = record.exc_info
            line["error"] = _cut(f"{kind.__name__}: {err}", _MESSAGE_CHARS)
            line["traceback"] = _cut(self.formatException(record.exc_info), _TRACEBACK_CHARS)
        return json.dumps(line, default=str)  # ASCII: no reader takes a part of it for a line's end


_Info = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def _fields() -> dict[str, object]:
    found = handled()
    return {
        name: value if isinstance(value, int) else _cut(texts.escaped(str(value)), _FIELD_CHARS)
        for name, value in found.items()
    }


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + _CUT


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to standard error, and follows its file when that is renamed."""

    def __init__(self, file: Path | None) -> None:
        super().__init__()
        self._file = file

    def emit(self, record: logging.LogRecord) -> None:
        if self._file is not None:
            follow(self._file)
        super().emit(record)


_following = threading.Lock()


def follow(file: Path) -> None:
    """Have this process's standard output and error go to a file of this name, if another has got it.

    Whoever renamed the old file loses no line: it is written to until then.
    """
    with _following, suppress(OSError):  # a full disk, say: the old file is as good
        if _is_output(file):
            return
        opened = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            for stream in (sys.__stdout__, sys.__stderr__):
                if stream is not None:
                    stream.flush()
            os.dup2(opened, 1)
            os.dup2(opened, 2)
        finally:
            os.close(opened)


def _is_output(file: Path) -> bool:
    with suppress(FileNotFoundError):
        there, here = file.stat(), os.fstat(2)
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
    return False


def configure(
    level: str = "INFO", format: Format = "text", file: Path | None = None, **fields: object
) -> None:
    """Have this process log; what would end it unhandled is logged, too.

    Parameters:
        file: where standard output and error go; None leaves them.
        fields: of all its records.
    """
    _of_process.update(fields)
    if file is not None:
        follow(file)
    handler = _Handler(file)
    handler.setFormatter(JsonLines() if format == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = _ended_by
    threading.excepthook = _thread_ended_by


def inherit(fields: Mapping[str, object]) -> None:
    """Have a job's process, which logs little, log as one that is handling these fields."""
    note(**fields)
    handler = logging.StreamHandler()
    handler.setFormatter(TextLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def _ended_by(kind: type[BaseException], err: BaseException, where: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, err, where)
        return
    log.critical("the process ends", exc_info=(kind, err, where))


def _thread_ended_by(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is None or issubclass(ended.exc_type, SystemExit):
        return
    name = ended.thread.name if ended.thread else "unknown"
    log.critical(
        "the thread %s ends",
        name,
        exc_info=(ended.exc_type, ended.exc_value, ended.exc_traceback),
    )

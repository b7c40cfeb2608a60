"""What ``farm up`` says while it starts."""

from __future__ import annotations

import io
import re

from farm.local.starting import Starting


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _start(out: io.StringIO | None) -> None:
    starting = Starting(out)
    starting.waits_for("the broker")
    starting.ready("the broker is ready")
    for detail in ("", "imports torch", "\x1b[2Jtries the sandbox " + "x" * 100):
        starting.waits_for("a worker", detail)
    starting.ready("a worker is ready")
    starting.close()


def test_off_a_terminal_each_part_is_waited_for_and_ready_on_a_line_of_its_own() -> None:
    out = io.StringIO()
    _start(out)
    assert re.sub(r"\d+\.\d s", "N s", out.getvalue()).splitlines() == [
        "waiting for the broker",
        "the broker is ready after N s",
        "waiting for a worker",
        "a worker is ready after N s",
    ]


def test_on_a_terminal_one_line_changes_and_holds_no_controls_of_others() -> None:
    out = Terminal()
    _start(out)
    shown = out.getvalue().split("\r\x1b[K")
    assert "waiting for a worker: imports torch" in shown
    [last] = [one for one in shown if "sandbox" in one]
    assert last.startswith("waiting for a worker: \\x1b[2Jtries the sandbox")
    assert len(last) == 79
    assert out.getvalue().endswith("\r\x1b[K")
    assert out.getvalue().count("\n") == 2


def test_without_an_output_nothing_is_said() -> None:
    _start(None)

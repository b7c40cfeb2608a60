"""How things are shown: sizes, times, tables that never cut an id."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime, timedelta

import pytest
from rich.cells import cell_len

from farm.cli import show


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1400, "1.4 kB"), (25_600_000, "25.6 MB"), (3 * 10**12, "3.0 TB")],
)
def test_sizes_are_for_people(count: int, text: str) -> None:
    assert show.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0.0 s"), (4.21, "4.2 s"), (65, "1 min 05 s"), (7400, "2 h 03 min")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert show.duration(seconds) == text


def test_how_long_ago_is_for_people() -> None:
    assert show.ago(datetime.now(UTC) - timedelta(minutes=3, seconds=5)) == "3 minutes ago"
    assert show.ago(datetime.now(UTC) + timedelta(minutes=3)) == "now"  # another machine's clock


def _on_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> str:
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", terminal)
    why = "because of many words that do not fit on one line of a narrow terminal"
    show.table(("id", "why"), [("01m7y8mb9kssegkq", why)], keep=("id",))
    return terminal.getvalue()


def test_a_narrow_terminal_wraps_words_and_keeps_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = _on_terminal(monkeypatch, 40)
    assert "01m7y8mb9kssegkq" in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert max(map(len, plain.splitlines())) <= 40


def test_a_terminal_narrower_than_an_id_still_shows_it_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "01m7y8mb9kssegkq" in _on_terminal(monkeypatch, 10)


def test_columns_that_would_be_too_narrow_are_told_below_their_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", terminal)
    headers = ("id", "target", "size", "accuracy", "computes in")
    rows = [
        ("01m7y8mb9kssegkq", "tensorrt-rtx:sm_89", "1.4 MB", "–", "fp16 100 % (plan)"),
        ("01m7y8mb9kssegkr", "onnxruntime:cpu", "2 kB", "99.8 %", "fp32 100 % (optimised graph)"),
    ]
    show.table(headers, rows, keep=("id", "target"))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert [one.rstrip() for one in plain.splitlines()] == [
        "id                target",
        "01m7y8mb9kssegkq  tensorrt-rtx:sm_89",
        "  size: 1.4 MB; computes in: fp16 100 %",
        "  (plan)",
        "01m7y8mb9kssegkr  onnxruntime:cpu",
        "  size: 2 kB; accuracy: 99.8 %; computes",
        "  in: fp32 100 % (optimised graph)",
    ]


_ROWS = [
    (
        "01m7y8mb9kssegkq",
        "tensorrt-rtx:sm_89",
        "no worker online can build it",
        "rtx-4080, rtx-4090",
    ),
    ("01m7y8mb9kssegkr", "onnxruntime:cpu", "because " * 9, "cpu"),
]
_COLUMNS = ("id", "target", "why", "products")


def test_without_wide_columns_that_do_not_fit_are_left_out_and_named_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", terminal)
    show.table(_COLUMNS, _ROWS, keep=("id", "target"), wide=False)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()
    assert lines[0].split() == ["id", "target", "why"]
    assert max(map(len, lines)) <= 60
    assert capsys.readouterr().err == "more with --wide: products\n"


def test_off_a_terminal_what_fits_80_columns_is_shown_with_prose_at_the_end_of_its_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show.table(_COLUMNS, _ROWS, keep=("id", "target"), wide=False)
    captured = capsys.readouterr()
    assert [re.split(r" {2,}", line.rstrip()) for line in captured.out.splitlines()] == [
        ["id", "target", "products", "why"],
        ["01m7y8mb9kssegkq", "tensorrt-rtx:sm_89", "rtx-4080, rtx-4090", _ROWS[0][2]],
        ["01m7y8mb9kssegkr", "onnxruntime:cpu", "cpu", _ROWS[1][2].rstrip()],
    ]
    assert captured.err == ""
    show.table(_COLUMNS, _ROWS, keep=("id", "target"), wide=True)
    assert "because " * 9 in capsys.readouterr().out


def test_no_word_of_up_to_40_characters_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", terminal)
    title = "measure resnet50-v1-12:int8-dynamic@sm_120"
    show.table(("job", "title", "why"), [("1", title, "it is so " * 20)], keep=("job",))
    assert "resnet50-v1-12:int8-dynamic@sm_120" in terminal.getvalue()


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", terminal)
    show.line(show.state("failed"))
    assert terminal.getvalue() == "failed\n"


def test_off_a_terminal_a_row_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    show.table(("id", "why"), [("01m7y8mb9kssegkq", "word " * 100)])
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_column_that_is_kept_whole_gives_way_where_a_terminal_has_no_room_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("sys.stdout", terminal)
    rows = [
        ("01m7y8mb9kssegkq", f"{name}-encoder v1", "failed") for name in ("漢字" * 20, "x" * 90)
    ]
    show.table(("id", "model", "state"), rows, keep=("id", "model", "state"), wide=False)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert sum("01m7y8mb9kssegkq" in line and "failed" in line for line in lines) == 2
    assert sum(line.count("x") for line in lines) == 90
    assert sum(line.count("漢字") for line in lines) >= 19  # one is parted by the line's end

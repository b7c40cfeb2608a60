"""What the bench of calibrators measures within its time and memory, and how it tells it."""

from __future__ import annotations

import pytest

from bench import calibration
from bench.calibration import COUNTS, ORDER, Cost, LeftOut, Measured, forecast


class Machine:
    """A clock, and calibrators that take a second and 10 MB an image."""

    def __init__(self, each_s: float = 1.0, **fails: str) -> None:
        self.now, self.each_s, self.fails = 0.0, each_s, fails

    def measure(self, what: str, count: int, limit_s: float) -> Cost:
        if what in self.fails:
            raise LeftOut(self.fails[what])
        taken = self.each_s * count
        assert taken <= limit_s or count == COUNTS[0]
        self.now += taken
        return Cost(seconds=taken, processor_s=2 * taken, peak_mb=10 * count, whole_s=taken)

    def run(self, budget_s: float, free_mb: float = 1e9) -> Measured:
        return calibration.measured(self.measure, budget_s, free_mb, lambda: self.now)


@pytest.fixture(autouse=True)
def _with_nncf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "find_spec", lambda _: object())


def test_a_forecast_follows_the_last_two_and_else_grows_with_the_images():
    assert forecast({}, 32) == 0
    assert forecast({32: 8.0}, 128) == 32
    assert forecast({32: 8.0, 128: 14.0}, 512) == 38
    assert forecast({32: 8.0, 128: 14.0, 512: 14.0}, 1024) == 14


def test_all_is_measured_where_there_is_time():
    found = Machine().run(1e9)
    assert found.left_out == {}
    assert [(what, n) for n in COUNTS for what in found.costs if n in found.costs[what]] == sorted(
        ORDER, key=lambda one: COUNTS.index(one[1])
    )


def test_what_would_pass_the_time_is_left_out_and_what_is_shorter_is_not():
    # The forward passes, max and auto at all counts, then others at the fewest.
    found = Machine().run(3 * sum(COUNTS) + 8 * 32 + 100)
    assert found.costs["max"].keys() == found.costs["auto"].keys() == set(COUNTS)
    assert found.costs["NNCF"].keys() == {32}
    assert found.left_out["mse", 128] == "it would take about 128 s of the 100 s left"
    assert found.left_out["NNCF", 1024] == "fewer images were"
    assert sum(len(costs) for costs in found.costs.values()) + len(found.left_out) == len(ORDER)


def test_nothing_is_begun_when_the_time_is_up():
    found = Machine().run(3 * 32)
    assert found.costs["auto"].keys() == {32}
    assert found.left_out["mse", 32] == "the time is up"


def test_what_would_fill_the_memory_is_left_out():
    found = Machine().run(1e9, free_mb=5120 / 0.7)
    assert found.costs["ONNX Runtime Entropy"].keys() == {32, 128, 512}
    assert found.left_out["ONNX Runtime Entropy", 1024] == "it would need about 10.0 GB of memory"


def test_what_fails_is_not_tried_with_more_images():
    found = Machine(auto="it ended with 1: no output").run(1e9)
    assert found.costs["auto"] == {}
    assert found.left_out["auto", 32] == "it ended with 1: no output"
    assert found.left_out["auto", 128] == "fewer images were"


def test_a_peer_that_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr(calibration, "find_spec", lambda _: None)
    assert "pip install" in Machine().run(1e9).left_out["NNCF", 32]


def test_goals_are_judged_at_the_most_images():
    rows = {row["what"]: row for row in calibration.rows(Machine().run(1e9))}
    assert rows["max, 1024 images, over the forward passes"]["goal"] == "≤ 1.5"
    assert rows["auto, 1024 images, over the forward passes"]["goal"] == "≤ 2"
    assert rows["max, 512 images, over the forward passes"]["goal"] == "–"
    assert rows["entropy beside ONNX Runtime Entropy, 32 images"]["verdict"] == "met"
    assert rows["max, peak, 1,024 images over 128"]["verdict"] == "MISSED"


def test_the_table_stands_between_the_pages_marks():
    found = Machine().run(200)
    text = calibration.table(found)
    assert "| forward passes | 32 | 32.0 | 1.00 | 1.00 | 320 |" in text
    assert "| `max` | 32 | 32.0 | 1.00 | 1.00 | 320 |" in text
    assert "- forward passes, 128 images: it would take about 128 s of the 104 s left" in text
    page = f"before\n{calibration._BEGIN}\nold\n{calibration._END}\nafter\n"
    made = calibration.written(page, text)
    assert made.startswith("before\n")
    assert made.endswith("after\n")
    assert "old" not in made
    assert calibration.written(made, text) == made
    with pytest.raises(ValueError, match="lacks"):
        calibration.written("no marks", text)


def test_the_page_has_the_marks():
    page = calibration._PAGE.read_text()
    assert calibration.written(page, "")

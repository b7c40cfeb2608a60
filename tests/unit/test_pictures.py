"""Pictures of how an engine was quantised: what they show is what was recorded, whoever named it."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from farm.errors import NotFound
from farm.pictures import canvas, sheet
from farm.pictures.noise import noise
from farm.pictures.ranges import ranges
from farm.pictures.tried import tried
from farm.reports.histograms import Histograms, TensorHistogram
from farm.reports.quantization import Quantization
from farm.reports.search import Search, Tried

_SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</title><script>alert(1)</script>\x1b[2J\ufffe&amp;\"'"


def read(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def told(root: ElementTree.Element, tag: str = "text") -> list[str]:
    return [one.text or "" for one in root.iter(_SVG + tag)]


def histogram(**changes: object) -> TensorHistogram:
    facts = {
        "tensor": "relu_3",
        "largest": 8.0,
        "counts": [1000, 100, 10, 0, 0, 0, 0, 1],
        "range": 2.0,
        "method": "mse",
        "ranges": {"mse": 2.0, "max": 8.0, "entropy": 3.0},
    }
    return TensorHistogram.model_validate(facts | changes)


def search(**changes: object) -> Search:
    facts: dict[str, object] = {
        "metric": "top1",
        "max_drop": 0.01,
        "budget_s": 60,
        "spent_s": 12.0,
        "samples": 48,
        "held_out": 16,
        "tried": [
            Tried(what="plain", drop=0.05, predicted_time=0.4),
            Tried(what="broken", drop=None, predicted_time=0.5),
            Tried(what="2 layers in floats", drop=0.004, predicted_time=0.6, kept=True),
            Tried(what="never timed", drop=0.0),
        ],
    }
    return Search.model_validate(facts | changes)


def test_a_bar_stands_for_each_layer_and_the_lowest_is_named() -> None:
    found = read(noise({"a": 40.0, "b": -3.5, "c": 150.0}).file())
    bars = [one for one in found.iter(_SVG + "rect") if one.find(_SVG + "title") is not None]
    assert [bar[0].text for bar in bars] == ["a: 40.0 dB", "b: -3.5 dB", "c: no noise"]
    heights = [float(bar.get("height", 0)) for bar in bars]
    assert heights[0] / heights[1] == pytest.approx(40 / 3.5, rel=0.01)
    assert [bar.get("class") for bar in bars] == ["f-blue", "f-red", "f-blue"]
    assert "lowest: -3.5 dB, b" in told(found)


def test_the_lines_over_a_histogram_are_where_the_ranges_are() -> None:
    found = read(ranges(histogram()).file())
    labels = {one.text: one.get("font-weight") for one in found.iter(_SVG + "text")}
    assert {"mse 2": "bold", "max 8": None, "entropy 3": None}.items() <= labels.items()
    solid = [one for one in found.iter(_SVG + "line") if one.get("stroke-width") == "2.5"]
    dashed = [one for one in found.iter(_SVG + "line") if one.get("stroke-dasharray")]
    [taken] = [float(one.get("x1", 0)) for one in solid]
    first, last = sorted(float(one.get("x1", 0)) for one in dashed)
    # At 2, 3 and 8 of the axis.
    assert (last - taken) / (first - taken) == pytest.approx(6, rel=0.02)
    assert told(found, "desc") == [
        "Magnitudes to 8; range 2 by mse, which clips 0.990 % of them; by other methods max 8, entropy 3."
    ]


@pytest.mark.parametrize(
    ("changes", "clipped"),
    [
        ({}, 11 / 1111),
        ({"range": 8.0}, 0.0),
        ({"range": 1.5}, 61 / 1111),
        ({"range": None}, None),
        ({"counts": []}, None),
        ({"counts": [0] * 8}, None),
        ({"largest": 0.0}, None),
    ],
)
def test_the_share_that_a_range_clips_is_counted_in_bins(
    changes: dict[str, object], clipped: float | None
) -> None:
    assert histogram(**changes).clipped == (clipped and pytest.approx(clipped))


def test_a_range_up_to_the_largest_magnitude_clips_none() -> None:
    told = histogram(range=8.0 - 1e-7).told
    assert told.startswith("Magnitudes to 8; range 8 by mse, which clips none of them; ")


def test_a_tensor_that_was_not_counted_or_stays_in_floats_says_so() -> None:
    found = read(ranges(histogram(counts=[], range=None)).file())
    assert "its values weren’t counted" in told(found)
    assert "it stays in floats" in told(found, "desc")[0]


def test_each_mix_tried_is_a_point_and_the_goal_a_line() -> None:
    found = read(tried(search()).file())
    points = {
        (one.find(_SVG + "title").text or ""): float(one.get("cy", 0))  # type: ignore[union-attr]
        for one in found.iter(_SVG + "circle")
        if one.find(_SVG + "title") is not None
    }
    assert points.keys() == {"1 plain: drop 0.0500", "3 2 layers in floats: drop 0.0040"}
    [goal] = [one for one in found.iter(_SVG + "line") if one.get("stroke-dasharray")]
    above, below = points["1 plain: drop 0.0500"], points["3 2 layers in floats: drop 0.0040"]
    assert above < float(goal.get("y1", 0)) < below
    words = told(found)
    assert {"1", "2", "3 chosen", "goal: at most 0.01"} <= set(words)
    assert "2 layers in floats: drop 0.0040, chosen" in words
    assert "Chosen: 2 layers in floats, with drop 0.0040." in told(found, "desc")[0]


def test_of_very_many_tries_the_picture_spells_out_the_chosen_one_alone() -> None:
    many = [Tried(what=f"way {n}", drop=0.1, predicted_time=0.5, kept=n == 7) for n in range(300)]
    words = told(read(tried(search(tried=many)).file()))
    assert [one for one in words if "way" in one] == ["way 7: drop 0.1000, chosen"]


def test_texts_of_a_model_are_texts_in_every_picture() -> None:
    found = Quantization(
        snr_db={HOSTILE: 3.0},
        histograms=Histograms(
            tensors=[histogram(tensor=HOSTILE, method=HOSTILE, ranges={HOSTILE: 1.0})]
        ),
        search=search(metric=HOSTILE, tried=[Tried(what=HOSTILE, drop=1.0, predicted_time=1.0)]),
    )
    drawn = sheet.drawn(found)
    texts = [sheet.of(found), sheet.of_tensor(found, HOSTILE)]
    texts += [one.file() for one in (drawn.noise, drawn.tried, *drawn.ranges) if one is not None]
    for text in texts:
        names = {one.tag.removeprefix(_SVG) for one in read(text).iter()}
        assert names <= set("svg title desc style rect path line circle text".split())
        assert "<script" not in text
        assert "\x1b" not in text
        assert "&lt;script&gt;" in text


def test_no_picture_fetches_anything() -> None:
    found = Quantization(
        snr_db={"a": 3.0}, histograms=Histograms(tensors=[histogram()]), search=search()
    )
    text = sheet.of(found)
    assert "href" not in text
    assert "url(" not in text
    assert text.count("http") == text.count('xmlns="http://www.w3.org/2000/svg"')


def test_what_is_not_known_is_said_in_the_picture() -> None:
    found = Quantization(
        snr_reason="not measured: why", histograms_reason="unknown: none were kept"
    )
    words = told(read(sheet.of(found)))
    assert {"not measured: why", "unknown: none were kept"} <= set(words)
    with pytest.raises(NotFound) as caught:
        sheet.of_tensor(found, "relu")
    assert caught.value.hint == "unknown: none were kept"


def test_a_tensor_without_a_histogram_is_answered_with_those_that_have_one() -> None:
    found = Quantization(histograms=Histograms(tensors=[histogram()]))
    with pytest.raises(NotFound) as caught:
        sheet.of_tensor(found, "relu")
    assert caught.value.hint == "there are those of 'relu_3'"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (-3.5, 42, [0, 10, 20, 30, 40]),
        (0, 0, [0]),
        (0, 1e-6, [0, 2e-7, 4e-7, 6e-7, 8e-7, 1e-6]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert canvas.ticks(low, high, 5) == pytest.approx(expected)


def test_a_file_has_the_colours_of_dark_mode_and_a_part_of_a_page_no_style() -> None:
    picture = noise({"a": 1.0})
    assert "@media (prefers-color-scheme:dark)" in picture.file()
    assert "<style" not in picture.inline("n")
    assert 'aria-labelledby="n-title n-said"' in picture.inline("n")

"""TensorRT's calibration caches are read as published, and hostile ones refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from farm.client import data
from farm.errors import DataRefused
from farm.formats import calibration_caches
from farm.formats.archives import Malformed

#: The example in NVIDIA's documentation of sampleINT8.
PUBLISHED = """TRT-7000-EntropyCalibration2
data: 3c008912
conv1: 3c88edfc
pool1: 3c88edfc
conv2: 3ddc858b
pool2: 3ddc858b
ip1: 3db6bd6e
ip2: 3e691968
prob: 3c010a14
"""


def cache(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_published_cache_gives_the_ranges_that_it_stands_for(tmp_path: Path) -> None:
    found = calibration_caches.read(cache(tmp_path / "c", PUBLISHED))
    assert list(found) == ["data", "conv1", "pool1", "conv2", "pool2", "ip1", "ip2", "prob"]
    # Pixels of 0 to 1, and probabilities: ranges of about 1.
    assert found["data"] * 127 == pytest.approx(0.9961, abs=1e-3)
    assert found["prob"] * 127 == pytest.approx(1.0, abs=1e-3)
    assert found["conv1"] == struct.unpack(">f", bytes.fromhex("3c88edfc"))[0] == found["pool1"]


@pytest.mark.parametrize(
    "heading",
    ["TRT-8501-EntropyCalibration2", "TRT-100300-MinMaxCalibration", "TRT-5105-EntropyCalibration"],
)
def test_names_may_hold_colons_and_lines_end_anyhow(tmp_path: Path, heading: str) -> None:
    text = (
        f"{heading}\r\ninput:0: 3c010a14\r\n(Unnamed Layer* 3) [Shuffle]_output: 3C010A14\r\n\r\n"
    )
    found = calibration_caches.read(cache(tmp_path / "c", text))
    assert list(found) == ["input:0", "(Unnamed Layer* 3) [Shuffle]_output"]
    assert len(set(found.values())) == 1


HEADING = "TRT-8501-EntropyCalibration2\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "its first line isn't"),
        ("x: 3c010a14\n", "its first line isn't"),
        (HEADING, "holds no tensor's scale"),
        (HEADING + "x\n", "line 2 isn't a tensor's name and its scale: 'x'"),
        (HEADING + "x: 3c01\n", "line 2 isn't"),
        (HEADING + "x: 3c010a1g\n", "line 2 isn't"),
        (HEADING + ": 3c010a14\n", "line 2 isn't"),
        (HEADING + "x" * 5000 + ": 3c010a14\n", "line 2 isn't"),
        (HEADING + "x: 7fc00000\n", "the scale nan for 'x'"),
        (HEADING + "x: 7f800000\n", "the scale inf for 'x'"),
        (HEADING + "x: bc010a14\n", "line 2 has the scale -0.0078"),
        (HEADING + "x: 3c010a14\nx: 3c010a15\n", "line 3 has another scale for 'x'"),
        (HEADING.encode() + b"\xff\xfe: 3c010a14\n", "can't decode"),
        (HEADING + "x: 3c010a14\n" * 200_001, "more than 200000 lines"),
        (HEADING.encode() + bytes(17 << 20), "and a calibration cache at most"),
    ],
)
def test_what_is_no_cache_is_refused_with_the_line(
    tmp_path: Path, text: str | bytes, told: str
) -> None:
    path = cache(tmp_path / "c", text)
    with pytest.raises(Malformed, match=told):
        calibration_caches.read(path)
    with pytest.raises(DataRefused, match="the calibration cache can't be read"):
        data.check_cache(path)


def test_a_cache_is_told_from_samples_by_its_start(tmp_path: Path) -> None:
    assert data.calibration_format(cache(tmp_path / "c", PUBLISHED)) == "tensorrt-cache"
    assert data.calibration_format(cache(tmp_path / "d.npz", b"PK\x03\x04")) == "samples"
    assert data.calibration_format("sha256:" + "a" * 64) == "samples"

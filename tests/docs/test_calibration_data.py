"""What the page on calibration data tells to do and write is what jobs take."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farm.specs.preprocess import PRESETS, Preprocess
from farm.specs.samples import LABEL
from farm.specs.shapes import TensorSpec
from tests.images import encoded, noise
from workers.inputs.samples import open_samples

PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/calibration-data.md"
TEXT = PAGE.read_text()
IMAGE = TensorSpec(name="image", dtype="float32", shape=("N", 3, 224, 224))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def rows(heading: str) -> list[list[str]]:
    """The cells of the table with this heading."""
    _, _, rest = TEXT.partition(f"\n{heading}\n")
    table = rest.partition("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_the_tar_that_the_page_makes_is_taken_with_its_preprocess(tmp_path: Path) -> None:
    for name in ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg"):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(noise(300, 280), "JPEG"))
    [tar] = re.findall(r"^tar .*$", TEXT, re.MULTILINE)
    subprocess.run(tar.split(), cwd=tmp_path, check=True)
    [caffe] = blocks("json")
    hows: list[Any] = [Preprocess.model_validate(json.loads(caffe)), *PRESETS.values()]
    for how in hows:
        found = open_samples(tmp_path / "images.tar", preprocess=how, inputs=[IMAGE])
        assert found["image"][:].shape == (3, 3, 224, 224)
        assert found[LABEL].tolist() == [0, 0, 1]
    values = open_samples(tmp_path / "images.tar", preprocess=hows[0], inputs=[IMAGE])["image"][:]
    assert values.min() < -100
    assert values.max() > 100


def test_all_fields_and_presets_are_on_the_page() -> None:
    fields = {
        name for row in rows("| field | default | |") for name in re.findall(r"`(\w+)`", row[0])
    }
    assert fields == set(Preprocess.model_fields)
    presets = {row[0].strip("`"): row[1] for row in rows("| preset | is | of |")}
    assert presets.keys() == PRESETS.keys()
    for name in ("imagenet", "vit"):
        told = [float(one) for one in re.findall(r"\d+\.?\d*", presets[name])]
        how = PRESETS[name]
        sides = np.ravel([each for each in (how.resize, how.crop) if each is not None])
        assert told == [*sides.tolist(), *(how.mean or ()), *(how.std or ())]


@pytest.mark.parametrize("row", rows("| field | default | |"), ids=lambda row: row[0])
def test_the_defaults_on_the_page_are_those(row: list[str]) -> None:
    for name in re.findall(r"`(\w+)`", row[0]):
        default = Preprocess.model_fields[name].default
        told = row[1].strip("`")
        if default is None:
            assert told in ("none", "1/255", "the only one", "[below](#labels-of-images)")
        else:
            assert told == str(default).lower()

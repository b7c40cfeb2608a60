"""The demo's real inputs: a trained digits CNN, a random ResNet-50, and data for both.

``python -m workers.demo OUT_DIR`` writes six files and needs no network. What is already there and
complete is kept. Everything is seeded and carries no times or paths, so the same toolchain on the
same kind of CPU writes the same bytes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

SEED = 20240501
DIGITS_EPOCHS = 20
DIGITS_CALIBRATION_SAMPLES = 256
RESNET_SAMPLES = 32
RESNET_CLASSES = 1000

Arrays = dict[str, NDArray[np.generic]]


class DigitsCnn(nn.Module):
    """A small CNN for 8×8 digits: image [N,1,8,8] → logits [N,10]."""

    # The archive names the class by its module, which is __main__ when this runs as a program.
    __module__ = "workers.demo"

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(64 * 4, 64), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.classifier(self.features(image)))
        return logits


class LogitsOnly(nn.Module):
    """A transformers image classifier that returns its logits and nothing else."""

    __module__ = "workers.demo"

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=image).logits
        return logits


def digits_split() -> tuple[Arrays, Arrays]:
    """scikit-learn's digits in [0,1] as a training and a held-out split, each image and label."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    parts = train_test_split(
        images, digits.target, test_size=0.25, random_state=SEED, stratify=digits.target
    )
    train_images, test_images, train_labels, test_labels = parts
    return (
        {"image": train_images, "label": train_labels.astype(np.int64)},
        {"image": test_images, "label": test_labels.astype(np.int64)},
    )


def train_digits(train: Arrays, *, epochs: int = DIGITS_EPOCHS) -> DigitsCnn:
    """Train the digits CNN from a fixed seed; about 97–99 % top-1 on the held-out split."""
    torch.manual_seed(SEED)
    model = DigitsCnn().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    images = torch.from_numpy(train["image"])
    labels = torch.from_numpy(train["label"])
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(images)), 64):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
            torch.autograd.backward(loss)
            optimizer.step()
    return model.eval()


def save_program(model: nn.Module, example: Tensor, path: Path) -> None:
    """Save ``model`` as a torch.export program with a dynamic batch."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    with torch.no_grad():
        program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        # Stack traces hold this machine's paths, and so would change the file's digest.
        node.meta.pop("stack_trace", None)
    torch.export.save(program, path)


def textured_images(count: int, *, seed: int) -> NDArray[np.float32]:
    """Images [N,3,224,224] whose spectrum falls as 1/f, as that of photographs does.

    White noise would calibrate INT8 for activations that no picture causes.
    """
    rng = np.random.default_rng(seed)
    size = 224
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = 1 / size
    spectrum = np.fft.rfft2(rng.standard_normal((count, 3, size, size))) / frequency
    images = np.fft.irfft2(spectrum, s=(size, size))
    shared = images.mean(axis=1, keepdims=True)
    images = 0.3 * images + 0.7 * shared  # colours of a photograph are correlated
    images -= images.mean(axis=(1, 2, 3), keepdims=True)
    images /= images.std(axis=(1, 2, 3), keepdims=True)
    brightness = rng.normal(0, 0.4, (count, 3, 1, 1))
    contrast = rng.uniform(0.5, 1.3, (count, 1, 1, 1))
    result: NDArray[np.float32] = (images * contrast + brightness).astype(np.float32)
    return result


def random_resnet50(images: NDArray[np.float32]) -> nn.Module:
    """A ResNet-50 with seeded random weights and BatchNorm statistics of ``images``."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(SEED)
    model = ResNetForImageClassification(ResNetConfig(num_labels=RESNET_CLASSES))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain mean over the batches
    model.train()
    with torch.no_grad():
        for batch in torch.split(torch.from_numpy(images), 16):
            model(pixel_values=batch)
    return LogitsOnly(model.eval()).eval()


def _write_digits(folder: Path) -> None:
    train, held_out = digits_split()
    calibration = train["image"][:DIGITS_CALIBRATION_SAMPLES]
    np.savez(folder / "digits-calibration.npz", image=calibration)
    np.savez(folder / "digits-evaluation.npz", image=held_out["image"], label=held_out["label"])
    save_program(train_digits(train), torch.zeros(2, 1, 8, 8), folder / "digits.pt2")


def _write_resnet50(folder: Path) -> None:
    calibration = textured_images(RESNET_SAMPLES, seed=SEED)
    np.savez(folder / "resnet50-calibration.npz", image=calibration)
    evaluation = textured_images(RESNET_SAMPLES, seed=SEED + 1)
    np.savez(folder / "resnet50-evaluation.npz", image=evaluation)
    model = random_resnet50(calibration)
    save_program(model, torch.zeros(2, 3, 224, 224), folder / "resnet50.pt2")


MODELS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "digits": (
        _write_digits,
        ("digits.pt2", "digits-calibration.npz", "digits-evaluation.npz"),
    ),
    "resnet50": (
        _write_resnet50,
        ("resnet50.pt2", "resnet50-calibration.npz", "resnet50-evaluation.npz"),
    ),
}


def write_demo(folder: Path) -> dict[str, Path]:
    """Write what is missing of the demo's files; return all of them by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (write, files) in MODELS.items():
        if _is_complete(folder, name, files):
            print(f"{name}: already there", flush=True)
            continue
        start = time.monotonic()
        print(f"{name}: making the model and its data …", flush=True)
        write(folder)
        _seal(folder, name, files)
        print(f"{name}: written in {time.monotonic() - start:.1f} s", flush=True)
    return {file: folder / file for _, files in MODELS.values() for file in files}


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def _seal(folder: Path, name: str, files: tuple[str, ...]) -> None:
    # Written last: its presence says that every file before it is whole.
    digests = {file: _digest(folder / file) for file in files}
    (folder / f"{name}.json").write_text(json.dumps(digests, indent=2) + "\n")


def _is_complete(folder: Path, name: str, files: tuple[str, ...]) -> bool:
    try:
        digests = json.loads((folder / f"{name}.json").read_text())
        return all(digests.get(file) == _digest(folder / file) for file in files)
    except (OSError, ValueError):
        return False


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m workers.demo OUT_DIR", file=sys.stderr)
        return 2
    for path in write_demo(Path(arguments[0])).values():
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""Tars of images for tests."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image


def encoded(array: Any, format: str = "PNG", **options: Any) -> bytes:
    """An image file with these pixels: uint8, [height, width] or [height, width, 3]."""
    image = array if isinstance(array, Image.Image) else Image.fromarray(np.asarray(array))
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def noise(height: int, width: int, seed: int = 0) -> Any:
    """Seeded pixels that neighbours partly share, as in photographs."""
    rng = np.random.default_rng(seed)
    rough = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3))
    smooth = rough.repeat(4, axis=0).repeat(4, axis=1)[:height, :width]
    return np.clip(smooth + rng.integers(-20, 21, (height, width, 3)), 0, 255).astype(np.uint8)


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()

"""Tars of images as data: what becomes of an image, in which order, with which labels."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from farm.client import data
from farm.errors import DataRefused, InvalidData
from farm.specs.preprocess import PRESETS, Preprocess
from farm.specs.samples import BOXES, LABEL
from farm.specs.shapes import Profile, ShapeRange, TensorSpec
from tests.images import encoded, noise, npy
from tests.tars import tarred
from workers.inputs import decoding
from workers.inputs.advice import advice
from workers.inputs.batch import Batch
from workers.inputs.images import Images
from workers.inputs.samples import check_labels, check_samples, open_samples

IMAGENET = PRESETS["imagenet"]
INPUT = TensorSpec(name="image", dtype="float32", shape=("N", 3, 224, 224))


def spec(*sizes: Any, dtype: str = "float32", name: str = "image") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=("N", *sizes))


def read(path: Path, how: Preprocess, *inputs: TensorSpec) -> dict[str, Any]:
    return open_samples(path, preprocess=how, inputs=inputs or [INPUT])


def one(path: Path, raw: bytes, how: Preprocess, *sizes: int, dtype: str = "float32") -> Any:
    """The sample that an image becomes."""
    return read(tarred(path, {"a.png": raw}), how, spec(*sizes, dtype=dtype))["image"][:][0]


def refused(path: Path, how: Preprocess, *inputs: TensorSpec) -> InvalidData:
    with pytest.raises(InvalidData) as caught:
        np.asarray(read(path, how, *inputs)["image"])
    return caught.value


def antialiased(image: Any, height: int, width: int) -> Any:
    """Bilinear resizing as torchvision documents it, with antialiasing, in float64."""

    def weights(there: int, wanted: int) -> Any:
        scale = there / wanted
        support = max(scale, 1.0)
        centres = (np.arange(wanted)[:, None] + 0.5) * scale
        away = np.abs(np.arange(there)[None, :] + 0.5 - centres) / support
        triangle = np.maximum(0.0, 1 - away)
        return triangle / triangle.sum(axis=1, keepdims=True)

    wide = image.astype(np.float64)
    down = np.einsum("hH,HWc->hWc", weights(image.shape[0], height), wide)
    return np.einsum("wW,hWc->hwc", weights(image.shape[1], width), down)


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (256, 256), (100, 120)])
def test_the_preset_imagenet_is_what_torchvision_does(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    image = noise(*size)
    made = one(tmp_path / "t.tar", encoded(image), IMAGENET, 3, 224, 224)
    # Resize(256), CenterCrop(224), ToTensor, Normalize.
    height, width = size
    if height <= width:
        resized = antialiased(image, 256, int(256 * width / height))
    else:
        resized = antialiased(image, int(256 * height / width), 256)
    top, left = (round((there - 224) / 2.0) for there in resized.shape[:2])
    cropped = resized[top : top + 224, left : left + 224]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = np.moveaxis((cropped / 255 - mean) / std, 2, 0)
    # Pillow rounds to a level after each direction.
    level = 1 / 255 / 0.224
    assert np.abs(made - expected).max() <= 1.1 * level
    assert np.abs(made - expected).mean() <= 0.35 * level
    assert made.dtype == np.float32


def test_values_are_those_of_float64_rounded_once(tmp_path: Path) -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = np.stack([image, image.T, image[::-1]], axis=2)
    how = Preprocess(mean=IMAGENET.mean, std=IMAGENET.std)
    made = one(tmp_path / "t.tar", encoded(image), how, 3, 16, 16)
    exact = (image / 255 - np.array(IMAGENET.mean)) / np.array(IMAGENET.std)
    assert (made == np.moveaxis(exact, 2, 0).astype(np.float32)).all()
    caffe = Preprocess(channels="bgr", scale=1, mean=(103.939, 116.779, 123.68), layout="nhwc")
    made = one(tmp_path / "u.tar", encoded(image), caffe, 16, 16, 3)
    exact = image[..., ::-1].astype(np.float64) - np.array(caffe.mean)
    assert (made == exact.astype(np.float32)).all()
    raw = one(
        tmp_path / "v.tar", encoded(image), Preprocess(dtype="uint8"), 3, 16, 16, dtype="uint8"
    )
    assert (raw == np.moveaxis(image, 2, 0)).all()
    assert raw.dtype == np.uint8
    half = Preprocess(dtype="float16", mean=(0.5,), std=(0.5,))
    made = one(tmp_path / "w.tar", encoded(image), half, 3, 16, 16, dtype="float16")
    assert made.dtype == np.float16
    assert (made.min(), made.max()) == (-1, 1)


@pytest.mark.parametrize(
    ("there", "wanted", "kept"),
    [
        ((10, 12), (4, 6), (slice(3, 7), slice(3, 9))),
        # Halves go to the even number, as torchvision's do by Python's round.
        ((9, 11), (4, 4), (slice(2, 6), slice(4, 8))),
    ],
)
def test_a_crop_is_the_centre(
    tmp_path: Path, there: tuple[int, int], wanted: tuple[int, int], kept: Any
) -> None:
    image = noise(*there)
    how = Preprocess(crop=wanted, dtype="uint8", layout="nhwc")
    made = one(tmp_path / "t.tar", encoded(image), how, *wanted, 3, dtype="uint8")
    assert (made == image[kept]).all()


def test_an_image_smaller_than_its_crop_is_padded_with_zeros(tmp_path: Path) -> None:
    image = np.full((3, 8, 3), 7, np.uint8)
    how = Preprocess(crop=6, dtype="uint8", layout="nhwc")
    made = one(tmp_path / "t.tar", encoded(image), how, 6, 6, 3, dtype="uint8")
    assert made[..., 0].tolist() == [[0] * 6] * 1 + [[7] * 6] * 3 + [[0] * 6] * 2


def kinds() -> dict[str, tuple[bytes, list[int]]]:
    """Files of one colour in all modes, and the RGB that each becomes."""
    red, size = (200, 40, 10), (8, 8)
    rgb = Image.new("RGB", size, red)
    sixteen = Image.fromarray(np.full(size, 0x8040, np.uint16))
    see_through = Image.new("RGBA", size, (*red, 3))
    palette = rgb.quantize(4)
    return {
        "rgb": (encoded(rgb), [200, 40, 10]),
        "alpha": (encoded(see_through), [200, 40, 10]),
        "webp": (encoded(rgb, "WEBP", lossless=True), [200, 40, 10]),
        "bmp": (encoded(rgb, "BMP"), [200, 40, 10]),
        "ppm": (encoded(rgb, "PPM"), [200, 40, 10]),
        "palette": (encoded(palette), [200, 40, 10]),
        "transparent": (encoded(palette, transparency=0), [200, 40, 10]),
        "gray": (encoded(Image.new("L", size, 77)), [77, 77, 77]),
        "gray-alpha": (encoded(Image.new("LA", size, (77, 9))), [77, 77, 77]),
        "one-bit": (encoded(Image.new("1", size, 1)), [255, 255, 255]),
        "sixteen-bits": (encoded(sixteen), [0x80, 0x80, 0x80]),
        "cmyk": (
            encoded(Image.new("CMYK", size, (0, 255, 255, 0)), "JPEG", quality=100),
            [255, 0, 0],
        ),
    }


@pytest.mark.parametrize("name", kinds())
def test_images_of_all_kinds_become_rgb(tmp_path: Path, name: str) -> None:
    raw, colour = kinds()[name]
    how = Preprocess(dtype="uint8", layout="nhwc")
    made = one(tmp_path / "t.tar", raw, how, 8, 8, 3, dtype="uint8")
    assert np.abs(made.reshape(-1, 3).astype(int) - colour).max() <= (2 if name == "cmyk" else 0)


def test_gray_has_one_channel_or_no_axis_for_it(tmp_path: Path) -> None:
    image = encoded(Image.new("RGB", (4, 4), (200, 40, 10)))
    luma = round(200 * 0.299 + 40 * 0.587 + 10 * 0.114)
    for layout, sizes in (("nchw", (1, 4, 4)), ("nhwc", (4, 4, 1)), ("nhw", (4, 4))):
        how = Preprocess(channels="gray", dtype="uint8", layout=layout)
        made = one(tmp_path / f"{layout}.tar", image, how, *sizes, dtype="uint8")
        assert made.shape == sizes
        assert set(made.flat) == {luma}


def test_images_are_turned_upright_unless_told_otherwise(tmp_path: Path) -> None:
    upright = noise(6, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to see it upright
    lying = encoded(np.rot90(upright), "PNG", exif=exif)
    plain = Preprocess(dtype="uint8", layout="nhwc")
    made = one(tmp_path / "t.tar", lying, plain, 6, 4, 3, dtype="uint8")
    assert (made == upright).all()
    as_stored = plain.model_copy(update={"exif": False})
    made = one(tmp_path / "u.tar", lying, as_stored, 4, 6, 3, dtype="uint8")
    assert (made == np.rot90(upright)).all()


def small(number: int) -> bytes:
    return encoded(np.full((4, 4, 3), number, np.uint8))


SMALL = Preprocess(dtype="uint8")
TINY = spec(3, 4, 4, dtype="uint8")


def levels(path: Path, how: Preprocess = SMALL) -> list[int]:
    return [int(image[0, 0, 0]) for image in read(path, how, TINY)["image"][:]]


def test_samples_are_in_order_of_names_whatever_the_order_in_the_tar(tmp_path: Path) -> None:
    files = {"b/1.png": small(3), "a/2.png": small(2), "a/1.png": small(1), "a/.DS_Store": b"x"}
    path = tarred(tmp_path / "t.tar", files)
    other = tarred(tmp_path / "u.tar", dict(sorted(files.items())))
    assert levels(path) == levels(other) == [1, 2, 3]
    images = read(path, SMALL, TINY)["image"]
    assert isinstance(images, Images)
    assert images[np.array([2, 0, 2])][:, 0, 0, 0].tolist() == [3, 1, 3]
    assert images.selected(np.array([True, False, True]))[:][:, 0, 0, 0].tolist() == [1, 3]


@pytest.mark.parametrize(
    ("names", "more", "labels"),
    [
        (["cat/1.png", "dog/1.png", "cat/2.png"], {}, [0, 0, 1]),
        (["val/10/1.png", "val/2/1.png", "val/10/2.png"], {}, [10, 10, 2]),
        (["a/1.png", "2.png"], {}, None),
        (["a/1.png", "a/2.png"], {}, None),
        (["1.png", "2.png"], {"labels.csv": b"name,label\n2.png,7\n1.png,5\n"}, [5, 7]),
        (["x/1.png", "x/2.png"], {"labels.csv": b"2.png,7\n1.png,5\n"}, [5, 7]),
        (["x/1.png", "x/2.png"], {"x/labels.csv": b"x/2.png,7\n./x/1.png,5\n"}, [5, 7]),
        (
            ["1.png", "2.png"],
            {"labels.json": b'{"2.png": [7, 1], "1.png": [5, -1]}'},
            [[5, -1], [7, 1]],
        ),
        (["1.png", "2.png"], {"labels.csv": b"1.png,0.5\n2.png,nan\n"}, [0.5, np.nan]),
        (["1.png", "2.png"], {"labels.npy": npy(np.array([4, 3]))}, [4, 3]),
        (["a/1.png", "b/2.png"], {"labels.csv": b"a/1.png,8\nb/2.png,9"}, [8, 9]),
    ],
)
def test_labels_come_from_a_file_or_from_folders(
    tmp_path: Path, names: list[str], more: dict[str, bytes], labels: Any, capfd: Any
) -> None:
    path = tarred(tmp_path / "t.tar", {name: small(1) for name in names} | more)
    found = read(path, SMALL, TINY).get(LABEL)
    assert (found is None) == (labels is None)
    if labels is not None:
        assert np.array_equal(
            found, np.asarray(labels, found.dtype), equal_nan=found.dtype.kind == "f"
        )
    told = capfd.readouterr().out
    assert f"{len(names)} images for input 'image'" in told
    assert ("labels: none" in told) == (labels is None)


def test_where_labels_come_from_can_be_said(tmp_path: Path, capfd: Any) -> None:
    files = {"a/1.png": small(1), "b/1.png": small(1), "labels.csv": b"a/1.png,8\nb/1.png,9"}
    path = tarred(tmp_path / "t.tar", files)
    how = SMALL.model_copy(update={"labels": "folders"})
    assert read(path, how, TINY)[LABEL].tolist() == [0, 1]
    assert "labels: the names of 2 folders: a=0, b=1" in capfd.readouterr().out
    assert LABEL not in read(path, SMALL.model_copy(update={"labels": "none"}), TINY)
    bare = tarred(tmp_path / "u.tar", {"a/1.png": small(1)})
    assert (
        "no labels.csv" in refused(bare, SMALL.model_copy(update={"labels": "file"}), TINY).detail
    )


def test_other_inputs_and_labels_of_boxes_are_arrays_beside_the_images(tmp_path: Path) -> None:
    ids, boxes = np.array([[1, 2], [3, 4]]), np.ones((2, 1, 4), np.float32)
    more = {
        "ids.npy": npy(ids),
        "label.npy": npy(np.zeros((2, 1), np.int64)),
        "label_boxes.npy": npy(boxes),
    }
    path = tarred(tmp_path / "t.tar", {"i/2.png": small(2), "i/1.png": small(1)} | more)
    tokens = TensorSpec(name="ids", dtype="int64", shape=("N", 2))
    found = read(path, SMALL, TINY, tokens)
    assert found.keys() == {"image", "ids", LABEL, BOXES}
    assert (found["ids"] == ids).all()
    assert (found[BOXES] == boxes).all()
    two = refused(
        tarred(tmp_path / "u.tar", {"1.png": small(1)}), SMALL, TINY, spec(3, 4, 4, name="other")
    )
    assert "several inputs for images" in two.detail
    assert "'image', 'other'" in two.detail


def test_an_array_that_says_it_is_longer_than_its_file_is_refused(tmp_path: Path) -> None:
    whole = npy(np.zeros((1000, 1000), np.int64))
    path = tarred(tmp_path / "t.tar", {"1.png": small(1), "labels.npy": whole[:200]})
    assert "shorter than its header says" in refused(path, SMALL, TINY).detail
    objects = npy(np.array([{"a": 1}], object))
    path = tarred(tmp_path / "u.tar", {"1.png": small(1), "labels.npy": objects})
    assert "Object arrays cannot be loaded" in refused(path, SMALL, TINY).detail


def link(kind: bytes, name: str = "l.png", target: str = "/etc/passwd") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (link(tarfile.SYMTYPE), "isn't a regular file"),
        (link(tarfile.LNKTYPE), "isn't a regular file"),
        (link(tarfile.CHRTYPE), "isn't a regular file"),
        (link(tarfile.FIFOTYPE), "isn't a regular file"),
        (tarfile.TarInfo("../a.png"), "leads outside it"),
        (tarfile.TarInfo("/a.png"), "leads outside it"),
        (tarfile.TarInfo("1.png"), "twice"),
        (tarfile.TarInfo("2.png"), "has 0 bytes"),
        (tarfile.TarInfo("run.sh"), "is no image"),
        (tarfile.TarInfo("a" * 300 + ".png"), "too long for a file name"),
    ],
)
def test_what_has_no_place_in_a_tar_of_images_is_refused(
    tmp_path: Path, entry: tarfile.TarInfo, told: str
) -> None:
    path = tarred(tmp_path / "t.tar", {"1.png": small(1)}, entry)
    assert told in refused(path, SMALL, TINY).detail
    with pytest.raises(DataRefused, match=told):
        data.check(path, [TINY], preprocess=SMALL)


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header says a size, with the pixels of another."""
    import zlib

    raw = bytearray(small(1))
    raw[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    raw[29:33] = zlib.crc32(raw[12:29]).to_bytes(4, "big")
    return bytes(raw)


def webp_of(kind: bytes) -> bytes:
    """The start of a WebP of 16,384 × 16,384 pixels, or nearly."""
    sizes = {
        b"VP8X": b"\0\0\0\0" + (16383).to_bytes(3, "little") * 2,
        b"VP8L": b"\x2f" + ((1 << 28) - 1).to_bytes(4, "little") + bytes(5),
        b"VP8 ": b"\0\0\0\x9d\x01\x2a" + b"\xff\x3f\xff\x3f",
    }
    body = b"WEBP" + kind + (10).to_bytes(4, "little") + sizes[kind]
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def animated(format: str) -> bytes:
    frames = [Image.new("RGB", (4, 4), (100 * n, 0, 0)) for n in range(3)]
    return encoded(frames[0], format, save_all=True, append_images=frames[1:])


def bad() -> dict[str, tuple[bytes, str]]:
    jpeg = encoded(noise(64, 64), "JPEG")
    return {
        "bomb": (png_of(30000, 30000), "has 30000 × 30000 pixels"),
        "half a bomb": (png_of(10000, 10000), "has 10000 × 10000 pixels, of at most 64 Mi"),
        "webp-x": (webp_of(b"VP8X"), "has 16384 × 16384 pixels"),
        "webp-lossless": (webp_of(b"VP8L"), "has 16384 × 16384 pixels"),
        "webp": (webp_of(b"VP8 "), "has 16383 × 16383 pixels"),
        "strip": (
            encoded(Image.new("L", (1, 60000))),
            "would be 15360000 × 256 pixels after resizing",
        ),
        "truncated": (jpeg[: len(jpeg) // 2], "truncated"),
        "cut-png": (encoded(noise(64, 64))[:2000], "can't be decoded"),
        "animated": (animated("PNG"), "is animated"),
        "animated-webp": (animated("WEBP"), "is animated"),
        "gif": (animated("GIF"), "it is none of JPEG, PNG, WEBP, BMP, PPM"),
        "text": (b"hello", "it is none of JPEG"),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is none of JPEG"),
        "wide": (
            encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
            "it is none of JPEG",
        ),
    }


@pytest.mark.parametrize("name", bad())
def test_an_image_that_is_a_bomb_or_damaged_is_refused_by_name(tmp_path: Path, name: str) -> None:
    raw, told = bad()[name]
    path = tarred(tmp_path / "t.tar", {"good.png": encoded(noise(300, 300)), "bad.png": raw})
    error = refused(path, IMAGENET)
    assert "'bad.png'" in error.detail
    assert told in error.detail
    assert error.hint == "remove it from the tar, or replace it"


def test_no_bomb_is_decoded(tmp_path: Path) -> None:
    """In a process of its own: peak memory is the process's."""
    script = f"""
import resource, sys
from tests.integration.test_images import *
path = Path({str(tmp_path)!r}) / "t.tar"
one(path, encoded(noise(300, 300)), IMAGENET, 3, 224, 224)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for raw, _ in bad().values():
    refused(tarred(path, {{"bad.png": raw}}), IMAGENET)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert (
        int(done.stdout.splitlines()[-1]) < 60_000
    )  # KiB: an RGB image of 64 Mi pixels has 192 MiB


def test_sizes_that_differ_need_a_crop(tmp_path: Path) -> None:
    files = {"a.png": encoded(noise(8, 12)), "b.png": encoded(noise(8, 16))}
    path = tarred(tmp_path / "t.tar", files)
    free = spec(3, "h", "w")
    error = refused(path, Preprocess(resize=4), free)
    assert "'a.png' becomes [4, 6] and 'b.png' [4, 8]" in error.detail
    assert read(path, Preprocess(resize=4, crop=4), free)["image"].shape == (2, 3, 4, 4)


@pytest.mark.parametrize(
    ("how", "inputs", "told"),
    [
        (
            IMAGENET,
            spec(3, 256, 256),
            "takes ['N', 3, 256, 256], but images become [N, 3, 224, 224]",
        ),
        (
            IMAGENET,
            spec(224, 224, 3),
            "takes ['N', 224, 224, 3], but images become [N, 3, 224, 224]",
        ),
        (IMAGENET, spec(10), "takes ['N', 10], but images become [N, 3, 224, 224]"),
        (IMAGENET, spec(3, 224, 224, dtype="uint8"), "takes uint8, but images become float32"),
        (Preprocess(channels="gray"), spec(3, 8, 8), "but images become [N, 1, ?, ?]"),
        (Preprocess(input="x"), spec(3, 8, 8), "the model has no input 'x'"),
    ],
)
def test_images_that_do_not_fit_their_input_are_refused_before_the_upload_too(
    tmp_path: Path, how: Preprocess, inputs: TensorSpec, told: str
) -> None:
    path = tarred(tmp_path / "t.tar", {"1.png": small(1)})
    assert told in refused(path, how, inputs).detail
    with pytest.raises(DataRefused) as caught:
        data.check(path, [inputs], preprocess=how)
    assert told in caught.value.detail


def test_arrays_take_no_preprocess_and_images_need_it(tmp_path: Path) -> None:
    arrays, images = tmp_path / "a.npz", tarred(tmp_path / "t.tar", {"1.png": small(1)})
    np.savez(arrays, image=np.zeros((4, 3, 224, 224), np.float32))
    assert "preprocess is for a tar of images" in refused(arrays, IMAGENET).detail
    with pytest.raises(InvalidData, match="nothing says how they become"):
        open_samples(images)
    with pytest.raises(DataRefused, match="nothing says how they become"):
        data.check(images, [INPUT])
    data.check(images, [INPUT], preprocess=IMAGENET)


def test_checked_images_are_still_in_their_tar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    pixels = decoding.pixels
    monkeypatch.setattr(
        decoding, "pixels", lambda raw, name, how: decoded.append(name) or pixels(raw, name, how)
    )
    files = {f"{n % 2}/{n:03}.png": small(n) for n in range(100)}
    arrays = read(tarred(tmp_path / "t.tar", files), SMALL, TINY)
    sizes = {"min": (1, 3, 4, 4), "opt": (8, 3, 4, 4), "max": (64, 3, 4, 4)}
    profile: Profile = {"image": ShapeRange(**sizes)}
    samples = check_samples(arrays, [TINY], profile)
    batch = Batch.of([TINY], profile)
    assert batch.count(samples) == 100
    assert check_labels(arrays, 100)[LABEL].tolist() == [0] * 50 + [1] * 50
    assert decoded == []
    first = next(batch.split(samples, 8))
    assert sorted(decoded) == [f"0/{n:03}.png" for n in range(0, 16, 2)]
    assert first["image"][:, 0, 0, 0].tolist() == list(range(0, 16, 2))


def test_images_are_warned_of_like_arrays(tmp_path: Path) -> None:
    profile: Profile = {
        "image": ShapeRange(min=(1, 3, 16, 16), opt=(8, 3, 16, 16), max=(64, 3, 16, 16))
    }
    inputs = [spec(3, 16, 16)]

    def told(how: Preprocess, files: dict[str, bytes]) -> list[str]:
        samples = check_samples(
            read(tarred(tmp_path / "t.tar", files), how, *inputs), inputs, profile
        )
        return advice(samples, inputs, Batch.of(inputs, profile))

    varied = {f"{n}.png": encoded(noise(16, 16, n)) for n in range(40)}
    assert told(Preprocess(), varied) == []
    [raw] = told(Preprocess(scale=1), varied)
    assert "looks like raw pixels" in raw
    same = {f"{n}.png": encoded(noise(16, 16, n % 3)) for n in range(40)}
    [alike] = told(Preprocess(), same)
    assert "37 of 40 samples are nearly equal" in alike
    few, _ = told(Preprocess(), {"1.png": encoded(noise(16, 16))}), None
    assert "only 1 samples" in few[0]


def test_a_preset_has_the_published_figures() -> None:
    assert IMAGENET.changed() == {
        "resize": 256,
        "crop": 224,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    assert json.loads(json.dumps(PRESETS["clip"].changed()))["interpolation"] == "bicubic"
    assert [PRESETS["vit"].value(level, 0) for level in (0, 255)] == [-1, 1]

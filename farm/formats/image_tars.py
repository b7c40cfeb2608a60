"""Tars of images as calibration or evaluation data: what is in one, without decoding an image.

For untrusted files. Samples are ordered by the images' names, whatever the order in the tar.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farm.formats import packs
from farm.formats.archives import Malformed, behind
from farm.formats.array_files import head_in
from farm.formats.packs import Member
from farm.specs.preprocess import Preprocess
from farm.specs.samples import LABEL, Head, Refusal

#: Twice as many as any evaluation set in use.
_MOST_FILES = 100_000
#: The formats that images may have, by the names' endings.
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm")
_LABELS = ("labels.csv", "labels.json")
#: Files that systems leave in folders.
_LEFTOVERS = ("._", ".ds_store", "thumbs.db")
#: Of one image, and of a labels file that is read at once.
MOST_IMAGE_BYTES = 64 << 20
_MOST_LABELS_BYTES = 64 << 20
_HINT_LABELS = "see `labels` in docs/how-to/calibration-data.md"

Labels = Sequence[Any]  #: one per sample: a number, or nested lists of numbers


@dataclass(frozen=True, kw_only=True)
class ImageTar:
    """What a tar of images holds."""

    images: tuple[Member, ...]  #: by name
    arrays: Mapping[str, Member]  #: name → a ``.npy`` beside the images: labels, or other inputs
    labels: Member | None  #: ``labels.csv`` or ``labels.json``
    root: str  #: the folder that all is in, with its slash


def check_kind(path: Path, preprocess: Preprocess | None, error: Refusal) -> None:
    """Refuse a tar without ``preprocess``, and what else there is with it."""
    if packs.is_pack(path) and preprocess is None:
        raise error(
            "the data is a tar of images, and nothing says how they become the model's input",
            hint="add preprocess (--preprocess imagenet, or a file with resize, crop, mean, std, …)",
        )
    if preprocess is not None and not packs.is_pack(path):
        raise error(
            "preprocess is for a tar of images, and the data is none",
            hint="pack images without compression (tar -cf images.tar FOLDER), or leave preprocess out for "
            "arrays, which are taken as they are",
        )


def read(path: Path, preprocess: Preprocess) -> ImageTar:
    """List a tar's images, arrays, and labels unless others are asked for.

    Raises:
        Malformed: it is damaged or has something else in it, such as links.
        OSError
    """
    found = packs.members(path, most_files=_MOST_FILES)
    kept = {name: member for name, member in found.items() if not _is_left_over(name)}
    images = sorted(name for name in kept if name.lower().endswith(ENDINGS))
    if not images:
        raise Malformed(f"it holds no image ({', '.join(ENDINGS)})")
    root = _root(list(kept))
    arrays: dict[str, Member] = {}
    labels: Member | None = None
    for name in kept.keys() - set(images):
        below = name.removeprefix(root)
        if below in _LABELS and labels is None:
            labels = kept[name]
        elif below.endswith(".npy") and "/" not in below:
            plain = below.removesuffix(".npy")
            arrays[LABEL if plain == "labels" else plain] = kept[name]
        else:
            raise Malformed(
                f"{name[:200]!r} in it is no image ({', '.join(ENDINGS)}), and neither labels.csv, "
                "labels.json nor an array .npy at its root"
            )
    for name in images:
        if not 0 < kept[name].bytes <= MOST_IMAGE_BYTES:
            raise Malformed(f"{name[:200]!r} in it has {kept[name].bytes} bytes")
    if preprocess.labels in ("folders", "none"):
        labels = None
        arrays.pop(LABEL, None)
    if labels is not None and LABEL in arrays:
        raise Malformed("it holds labels twice")
    return ImageTar(
        images=tuple(kept[name] for name in images), arrays=arrays, labels=labels, root=root
    )


def heads(path: Path, tar: ImageTar) -> dict[str, Head]:
    """The types and shapes of the arrays beside the images.

    Raises:
        Malformed
    """
    found = {}
    with behind(), path.open("rb") as file:
        for name, member in tar.arrays.items():
            file.seek(member.offset)
            found[name] = head_in(file, member.bytes, member.name)
    return found


def labels_of(path: Path, tar: ImageTar, preprocess: Preprocess) -> tuple[Labels | None, str]:
    """The labels of a tar without an array of them, one per image, and where they come from in words.

    Raises:
        Malformed: there are none where they are asked for, or they don't fit the images.
    """
    asked = preprocess.labels
    if LABEL in tar.arrays:
        return None, tar.arrays[LABEL].name
    if tar.labels is not None:
        return _of_file(path, tar, tar.labels), tar.labels.name
    if asked == "file":
        raise Malformed(f"it holds no labels.csv, labels.json or labels.npy: {_HINT_LABELS}")
    folders = [_folder(member.name.removeprefix(tar.root)) for member in tar.images]
    if asked != "none" and "" not in folders and (asked == "folders" or len(set(folders)) > 1):
        numbers = _numbered(folders)
        some = ", ".join(f"{name}={number}" for name, number in list(numbers.items())[:5])
        more = ", …" if len(numbers) > 5 else ""
        told = f"the names of {len(numbers)} folders: {some[:200]}{more}"
        return [numbers[folder] for folder in folders], told
    if asked == "folders":
        raise Malformed("not all of its images are in folders, whose names would be their classes")
    return None, "none"


def _numbered(folders: Sequence[str]) -> dict[str, int]:
    """Folder → class: the name itself where all are numbers, else its place among the sorted names."""
    names = sorted(set(folders))
    if all(name.isascii() and name.isdigit() and len(name) < 10 for name in names):
        return {name: int(name) for name in sorted(names, key=int)}
    return {name: number for number, name in enumerate(names)}


def _of_file(path: Path, tar: ImageTar, member: Member) -> Labels:
    if member.bytes > _MOST_LABELS_BYTES:
        raise Malformed(f"{member.name!r} in it has {member.bytes} bytes")
    with behind(), path.open("rb") as file:
        file.seek(member.offset)
        text = file.read(member.bytes).decode("utf-8-sig")
        given = _of_csv(text) if member.name.endswith(".csv") else json.loads(text)
    if not isinstance(given, dict):
        raise Malformed(f"{member.name!r} isn't an object of image names and labels")
    names = [image.name.removeprefix(tar.root) for image in tar.images]
    by_name = {
        str(name).removeprefix("./").removeprefix(tar.root): one for name, one in given.items()
    }
    if by_name.keys().isdisjoint(names):
        short = [name.rpartition("/")[2] for name in names]
        names = short if len(set(short)) == len(short) else names
    absent = [name for name in names if name not in by_name]
    strange = by_name.keys() - set(names)
    if absent or strange:
        lacks = f"lacks {absent[0][:200]!r}" if absent else f"has {min(strange)[:200]!r} too"
        raise Malformed(
            f"{member.name!r} {lacks}: it has {len(by_name)} labels for {len(names)} images"
        )
    return [by_name[name] for name in names]


def _of_csv(text: str) -> dict[str, int | float]:
    """``name,label`` by row; a first row whose label isn't a number is a heading."""
    found: dict[str, int | float] = {}
    for number, row in enumerate(csv.reader(io.StringIO(text))):
        if not row:
            continue
        if len(row) != 2:
            raise Malformed(f"row {number + 1} of labels.csv isn't NAME,LABEL")
        name, label = (one.strip() for one in row)
        try:
            value: int | float = int(label) if label.lstrip("-").isdigit() else float(label)
        except ValueError:
            if number == 0:
                continue
            raise Malformed(
                f"row {number + 1} of labels.csv has the label {label[:60]!r}, not a number: classes are "
                "numbers from 0"
            ) from None
        if name in found:
            raise Malformed(f"labels.csv has {name[:200]!r} twice")
        found[name] = value
    return found


def _root(names: Sequence[str]) -> str:
    """The folders that everything is in, unless they may be the class of all."""
    first, last = min(names).split("/")[:-1], max(names).split("/")[:-1]
    common = []
    for one, other in zip(first, last, strict=False):
        if one != other:
            break
        common.append(one)
    return "".join(f"{folder}/" for folder in common)


def _folder(below: str) -> str:
    return below.split("/")[0] if "/" in below else ""


def _is_left_over(name: str) -> bool:
    last = name.rpartition("/")[2].lower()
    return last.startswith(_LEFTOVERS[0]) or last in _LEFTOVERS or "__MACOSX/" in name

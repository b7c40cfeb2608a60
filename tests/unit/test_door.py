"""Archives made by hand: each is refused with its reason, at once, whatever the library raises of it."""

from __future__ import annotations

import contextlib
import errno
import io
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farm.errors import InvalidData, InvalidRequest, SourceRefused
from farm.formats import packs, sources
from farm.formats.archives import Malformed, Window, behind, zip_names
from farm.formats.packs import MalformedPack, Pack
from farm.specs.source import SourceFormat
from workers.inputs.samples import read_samples

Field = tuple[int, bytes]
SIZE, KIND, MAGIC = 124, 156, 257


def header(name: bytes, size: int | bytes, kind: bytes = b"0", *fields: Field) -> bytes:
    """One block of a tar, its checksum right."""
    block = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT))
    block[:100] = name.ljust(100, b"\0")
    block[SIZE : SIZE + 12] = size if isinstance(size, bytes) else b"%011o\0" % size
    block[KIND : KIND + 1] = kind
    for at, content in fields:
        block[at : at + len(content)] = content
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def negative(size: int) -> bytes:
    """As GNU writes what isn't octal."""
    return b"\xff" + (2**88 + size).to_bytes(11, "big")


END = bytes(1024)
EMPTY = header(b"m.onnx", 0)
BROKEN = negative(-1024)
TARS = {
    "sparse, with a map that isn't one": header(b"m.onnx", 0, b"S", (386, b"\xff" * 96), (482, b"\1")),
    "sparse, whose map goes on without end": header(b"m.onnx", 0, b"S", (482, b"\1"))
    + (bytes(504) + b"\1" + bytes(7)) * 50,
    "sparse by pax": header(b"p", 30, b"x") + padded(b"30 GNU.sparse.map=0,x,1,y,2,z\n") + EMPTY,
    "a negative size": header(b"m.onnx", BROKEN) * 3,
    "a negative size of a long name": header(b"l", BROKEN, b"L") + EMPTY,
    "a negative size in pax": header(b"p", 14, b"x") + padded(b"14 size=-1024\n") + EMPTY,
    "a size that is no number": header(b"m.onnx", b"12x45y789zz\0"),
    "a size beyond all": header(b"m.onnx", b"\x80" + b"\xff" * 11),
    "a name beyond the file": header(b"l", 1 << 32, b"L") + EMPTY,
    "pax beyond the file": header(b"p", 1 << 32, b"x") + EMPTY,
    "pax within pax": header(b"p", 0, b"x") * 3000 + EMPTY,
    "long names within each other": (header(b"l", 1, b"L") + padded(b"a")) * 3000 + EMPTY,
    "pax whose length is none": header(b"p", 20, b"x") + padded(b"99999999999 path=m\n.") + EMPTY,
    "pax whose length is 0": header(b"p", 9, b"x") + padded(b"0 path=m\n") + EMPTY,
    "pax of digits alone": header(b"p", 80_000, b"x") + padded(b"1" * 80_000) + EMPTY,
    "pax in another encoding": header(b"p", 22, b"x") + padded(b"22 hdrcharset=\xff\xfe\xff\xfe\xff\xfe\n")
    + EMPTY,
    "a file in a file": header(b"a", 0) + header(b"a/b.onnx", 0),
    "a name too long for a file": header(b"l", 5000, b"L") + padded(b"a" * 5000) + EMPTY,
    "a link": header(b"m.onnx", 0, b"2", (157, b"/etc/passwd")),
    "a device": header(b"m.onnx", 0, b"3"),
    "a way out": header(b"../m.onnx", 0),
    "a wrong checksum": header(b"m.onnx", 0)[:148] + b"000000\0 " + header(b"m.onnx", 0)[156:],
    "cut off": header(b"m.onnx", 5000) + bytes(100),
}  # fmt: skip


@pytest.mark.parametrize("name", TARS)
def test_a_tar_made_by_hand_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.tar"
    path.write_bytes(TARS[name] + END)
    assert packs.is_pack(path)
    start = time.process_time()
    for kind in (SourceFormat.ONNX, SourceFormat.SAVEDMODEL):
        with pytest.raises(InvalidRequest) as caught:
            sources.check(path, kind)
        assert caught.value.hint
    sources.look(path, SourceFormat.ONNX)
    assert not sources.is_savedmodel(path)
    assert time.process_time() - start < 10


def test_a_tar_of_usual_files_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"weights")
    names = ["m.onnx", "folder/data", f"{'long' * 60}/data", "ü.bin"]
    Pack(name="m", files=dict.fromkeys(names, tmp_path / "file")).write(tmp_path / "m.tar")
    found = packs.members(tmp_path / "m.tar")
    assert sorted(found) == sorted(names)
    packs.unpack(tmp_path / "m.tar", tmp_path / "made")
    assert (tmp_path / "made/folder/data").read_bytes() == b"weights"


def a_zip(change: Callable[[bytearray], None] | None = None, *, name: str = "m/data.pkl") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"content")
    content = bytearray(buffer.getvalue())
    if change:
        change(content)
    return bytes(content)


def patched(at: int, new: bytes, *, signature: bytes = b"PK\1\2") -> bytes:
    """With bytes changed behind the last of such a signature."""

    def change(content: bytearray) -> None:
        start = content.rindex(signature) + at
        content[start : start + len(new)] = new

    return a_zip(change)


DIRECTORY_END = b"PK\5\6"
ZIPS = {
    "of a later version": patched(6, struct.pack("<H", 255)),
    "a name in no encoding": patched(8, b"\0\x08").replace(b"m/data", b"m/\xff\xfe\xfda"),
    "a name longer than the directory": patched(28, struct.pack("<H", 60000)),
    "extra fields that end within": patched(30, struct.pack("<H", 40000)),
    "a directory beyond the file": patched(16, struct.pack("<I", 2**31), signature=DIRECTORY_END),
    "a directory of 4 GiB": patched(12, struct.pack("<I", 2**32 - 2), signature=DIRECTORY_END),
    "a directory that isn't one": patched(0, b"XXXX"),
    "no directory": a_zip()[:30],
    "zip64 without its record": patched(8, b"\xff" * 12, signature=DIRECTORY_END),
}  # fmt: skip


@pytest.mark.parametrize("name", ZIPS)
@pytest.mark.parametrize("kind", [SourceFormat.PT2, SourceFormat.TORCHSCRIPT, SourceFormat.ONNX])
def test_a_zip_made_by_hand_is_refused(name: str, kind: SourceFormat, tmp_path: Path) -> None:
    path = tmp_path / "m.zip"
    path.write_bytes(ZIPS[name])
    with pytest.raises(InvalidRequest) as caught:  # SourceRefused is one
        sources.check(path, kind)
    assert caught.value.hint
    assert not sources.is_torchscript(path)
    with pytest.raises(InvalidData) as told:
        read_samples(path)
    assert told.value.hint


def test_names_are_read_and_what_is_no_zip_has_none(tmp_path: Path) -> None:
    path = tmp_path / "m.zip"
    path.write_bytes(a_zip())
    assert zip_names(path) == ["m/data.pkl"]
    path.write_bytes(b"no zip at all")
    assert zip_names(path) == []


@pytest.mark.parametrize(
    "npy",
    [
        b"\x93NUMPY\1\0\x76\0{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999,), }".ljust(128),
        b"\x93NUMPY\1\0\x76\0{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(128) + b"\x80.",
        b"\x93NUMPY\1\0\x76\0{'descr': '<f4', 'fortran_order': False, 'shape': (-5,), }".ljust(128),
        b"\x93NUMPY\1\0\x76\0((((((((((".ljust(128),
        b"\x93NUMPY\1\0\xff\xff" + b"(" * 65535,
        b"\x93NUMPY\2\0\xff\xff\xff\xff{}",
        b"\x93NUMPY\1\0\x76\0{'descr': 'nonsense', 'fortran_order': False, 'shape': (1,), }".ljust(128),
    ],
)  # fmt: skip
def test_arrays_made_by_hand_are_refused(npy: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", npy)
    with pytest.raises(InvalidData) as caught:
        read_samples(tmp_path / "d.npz")
    assert caught.value.hint


@pytest.mark.parametrize("header", [b"{" * 90000, b'{"a":' + b"[" * 5000, b'{"x":{"dtype":"F32"}}'])
def test_safetensors_made_by_hand_are_refused(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InvalidData):
        read_samples(path)


def test_honest_data_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones(3, np.float32))
    assert read_samples(tmp_path / "d.npz")["x"].tolist() == [1, 1, 1]


HONEST = header(b"m.onnx", 600) + padded(bytes(600)) + header(b"w/data", 3) + padded(b"abc") + END
changes = st.lists(st.tuples(st.integers(0, 1535), st.binary(min_size=1, max_size=12)), max_size=6)
deterministic = settings(
    derandomize=True, max_examples=150, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


@deterministic
@given(changes=changes, resum=st.booleans())
def test_a_tar_with_bytes_changed_is_read_or_refused(
    changes: list[Field], resum: bool, tmp_path: Path
) -> None:
    content = bytearray(HONEST)
    for at, new in changes:
        content[at : at + len(new)] = new
    if resum:  # so that what was changed is looked at
        for start in (0, 1536):
            block = content[start : start + 512]
            block[148:156] = b" " * 8
            content[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    path = tmp_path / "m.tar"
    path.write_bytes(content)
    with contextlib.suppress(MalformedPack):
        for member in packs.members(path).values():
            assert 0 <= member.offset <= member.offset + member.bytes <= len(content)
    for kind in SourceFormat:
        with contextlib.suppress(InvalidRequest, SourceRefused):
            sources.check(path, kind)


@deterministic
@given(
    changes=st.lists(st.tuples(st.integers(0, 150), st.binary(min_size=1, max_size=8)), max_size=5)
)
def test_a_zip_with_bytes_changed_is_read_or_refused(changes: list[Field], tmp_path: Path) -> None:
    content = bytearray(a_zip())
    for at, new in changes:
        content[at : at + len(new)] = new
    path = tmp_path / "m.zip"
    path.write_bytes(content)
    with contextlib.suppress(Malformed):
        zip_names(path)
    for kind in SourceFormat:
        with contextlib.suppress(InvalidRequest, SourceRefused):
            sources.check(path, kind)
    with contextlib.suppress(InvalidData):
        read_samples(path)


@pytest.mark.parametrize("reads", [{"max_bytes": 100}, {"max_reads": 3}])
def test_a_window_ends_reading_that_has_no_end(reads: dict[str, int]) -> None:
    window = Window(io.BytesIO(bytes(1000)), **reads)

    def read_on() -> None:
        while True:
            window.seek(0)
            window.read(30)

    with pytest.raises(Malformed, match="longer"):
        read_on()


def test_a_read_asks_for_no_more_than_the_file_has() -> None:
    assert Window(io.BytesIO(b"abc")).read(1 << 60) == b"abc"
    assert Window(io.BytesIO(b"abc")).read() == b"abc"


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), struct.error("x"), NotImplementedError("x"), OverflowError("x"), MemoryError(),
     RecursionError(), KeyError("x"), AssertionError(), EOFError(), OSError(errno.EINVAL, "x"),
     zipfile.BadZipFile("x"), tarfile.HeaderError("x")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_whatever_is_raised_behind_the_door_is_a_refusal_with_a_reason(error: Exception) -> None:
    with pytest.raises(MalformedPack) as caught, behind(MalformedPack):
        raise error
    assert str(caught.value)


def test_a_disk_that_fails_is_no_fault_of_the_archive() -> None:
    with pytest.raises(OSError, match="broken"), behind():
        raise OSError(errno.EIO, "broken")

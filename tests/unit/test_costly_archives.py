"""Archives that would take long to read are refused soon, by what they are made of and not by the clock."""

from __future__ import annotations

import io
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from farm.errors import InvalidRequest
from farm.formats import archives, packs, sources
from farm.formats.archives import Malformed, Window, zip_names
from farm.formats.packs import MalformedPack
from farm.specs.source import SourceFormat


def tar_of(names: list[str], kind: bytes = tarfile.REGTYPE) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.type = kind
            archive.addfile(entry)
    return written.getvalue()


def extended(content: bytes, kind: bytes = b"x", name: str = "m.onnx") -> bytes:
    """A file after an extended header of this content."""
    header = tarfile.TarInfo("extended")
    header.type, header.size = kind, len(content)
    file = tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT)
    return header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512) + file


def fields(count: int) -> bytes:
    return b"".join(b"13 k%06d=v\n" % number for number in range(count))


END = bytes(1024)
COSTLY: dict[str, Callable[[], bytes]] = {
    "names of many folders": lambda: tar_of(["a/" * 450 + f"{n}.bin" for n in range(2000)]),
    "a name of 33 folders": lambda: tar_of(["a/" * 33 + "m.onnx"]),
    "a folder of 40": lambda: tar_of(["a/" * 40 + "b"]),
    "many folders": lambda: tar_of([f"d{n}" for n in range(12_000)], tarfile.DIRTYPE),
    "one header of many fields": lambda: extended(fields(700_000)) + END,
    "many headers of many fields": lambda: (
        b"".join(extended(fields(4500), name=f"{n}") for n in range(40)) + END
    ),
    "many models": lambda: tar_of([f"{n}.onnx" for n in range(300)]),
    "a header of 100 kB": lambda: extended(b"100011 comment=" + b"x" * 100_000) + END,
    "fields of all files": lambda: (
        extended(fields(4500), b"g") + tar_of([f"{n}.bin" for n in range(9000)])
    ),
    "many headers of all files": lambda: extended(fields(1), b"g")[:-512] * 5000 + END,
    "one number": lambda: extended(b"1" * 60_000) + END,
}


@pytest.fixture(scope="module")
def honest_s(tmp_path_factory: pytest.TempPathFactory) -> float:
    """What this machine takes for a large pack of an honest user."""
    path = tmp_path_factory.mktemp("honest") / "honest.tar"
    path.write_bytes(tar_of([f"w/{n}.bin" for n in range(9000)] + ["saved_model.pb"]))
    began = time.thread_time()
    sources.check(path, SourceFormat.SAVEDMODEL)
    return time.thread_time() - began


@pytest.mark.parametrize("name", COSTLY)
def test_a_costly_pack_is_refused_after_a_small_part_of_it(
    name: str, honest_s: float, tmp_path: Path
) -> None:
    path = tmp_path / "pack.tar"
    path.write_bytes(COSTLY[name]())
    began = time.thread_time()
    for kind in (SourceFormat.ONNX, SourceFormat.SAVEDMODEL):
        with pytest.raises(InvalidRequest):
            sources.check(path, kind)
    # Most of these took ten times as long and more.
    assert time.thread_time() - began < 0.2 + 4 * honest_s


def test_a_pack_of_ten_thousand_files_as_packers_write_them_is_taken(tmp_path: Path) -> None:
    entry = tarfile.TarInfo(f"{'w/' * 20}{'l' * 120}.00000")
    entry.pax_headers = {"atime": "1.5", "ctime": "1.5"}
    entry.mtime = 1.25
    one = entry.tobuf(tarfile.PAX_FORMAT)
    path = tmp_path / "pack.tar"
    files = [one.replace(b".00000", b".%05d" % number) for number in range(9_999)]
    path.write_bytes(b"".join(files) + tar_of(["saved_model.pb"]))
    sources.check(path, SourceFormat.SAVEDMODEL)
    assert len(packs.members(path)) == 10_000


def test_a_file_within_a_file_is_found_however_deep(tmp_path: Path) -> None:
    path = tmp_path / "pack.tar"
    path.write_bytes(tar_of(["a/b/c/d", "x/y", "a/b", "z"]))
    with pytest.raises(MalformedPack, match="'a/b/c/d' below a file"):
        packs.members(path)


@pytest.mark.parametrize(
    "names",
    [
        [f"{number:0>240}" for number in range(28_000)],
        [f"{number}" for number in range(51_000)],
        ["a/" * 450 + "data.pkl"],
        ["a/" + "b" * 300],
    ],
    ids=["a long directory", "many names", "a deep name", "a long name"],
)
def test_a_costly_zip_is_refused(names: list[str], tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    with pytest.raises(Malformed):
        zip_names(path)


def test_a_reader_that_takes_the_processor_for_long_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    window = Window(io.BytesIO(bytes(2048)))
    assert len(window.read(512)) == 512
    spent_s = time.thread_time() + 3600
    monkeypatch.setattr(archives.time, "thread_time", lambda: spent_s)
    with pytest.raises(Malformed, match="take too long"):
        window.read(512)

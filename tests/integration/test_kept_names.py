"""What a store of files has the disk keep before a row may name a blob."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from farm.store.local import LocalStore


def test_a_blobs_bytes_are_on_the_disk_before_its_name_and_its_name_before_it_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[Path, bool]] = []
    digest = hashlib.sha256(b"engine").hexdigest()
    place = tmp_path / "store" / "sha256" / digest[:2] / digest

    def fsync(descriptor: int) -> None:
        kept.append((Path(f"/proc/self/fd/{descriptor}").readlink(), place.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    (tmp_path / "made").write_bytes(b"engine")
    store = LocalStore(tmp_path / "store")
    store.take(tmp_path / "made")
    assert kept == [
        (tmp_path / "made", False),
        (place.parent.parent, False),
        (place.parent, True),
    ]
    (tmp_path / "made").write_bytes(b"engine")
    store.take(tmp_path / "made")
    assert [path for path, _ in kept[3:]] == [tmp_path / "made", place.parent]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_file_system_that_keeps_names_by_itself_may_refuse_and_a_failing_disk_may_not(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = os.fsync

    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_dir():
            raise OSError(number, os.strerror(number))
        kept(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    (tmp_path / "made").write_bytes(b"engine")
    store = LocalStore(tmp_path / "store")
    if number == errno.EINVAL:
        assert store.has(store.take(tmp_path / "made").digest)
    else:
        with pytest.raises(Exception, match="Input/output error"):
            store.take(tmp_path / "made")

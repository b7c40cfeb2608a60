"""Files of arrays that aren't: each is refused with the reason, at the cost of its headers."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest

from farm.client import Farm
from farm.errors import DataRefused
from farm.formats.archives import Malformed
from farm.formats.array_files import heads
from farm.testing.stub_farm import StubFarm
from tests.arrays import npy, npz


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_npy", ".npy"), content)
    return file.getvalue()


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"no arrays at all", "neither .npz, .npy nor .safetensors"),
        (b"PK\x03\x04 and then nothing", "not a zip file"),
        (zipped(x_npy=b"text"), "'x.npy' in it isn't an array"),
        (zipped(x_npy=npy("|O", (1,), content=b"\x80\x04.")), "Object arrays cannot be loaded"),
        (npy("|O", (1,), content=b"\x80\x04."), "Object arrays cannot be loaded"),
        (zipped(x_npy=npy("<U3", (2,), content=b"")), "holds '<U3', not numbers"),
        (zipped(x_npy=npy("<f4", (10**9, 10**9), content=b"")), "is shorter than its header says"),
        (npy("<f4", (-1,), content=b""), "no valid shape"),
        (npy("<f4", (1,) * 65), "no valid shape"),
        (header("{'descr': [('a', '<f4')], 'shape': (1,)}"), "holds records"),
        (header("{'descr': __import__('os').abort(), 'shape': ()}"), "malformed node"),
        (header("(" * 5000), "nested"),
        (b"\x93NUMPY\x02\x00" + (10**6).to_bytes(4, "little"), "a header of 1000000 bytes"),
        ((2**40).to_bytes(8, "little") + b"{", "a header of 1099511627776 bytes"),
        ((8).to_bytes(8, "little") + b'{"x": 1}', "subscriptable"),
    ],
)
def test_what_holds_no_arrays_of_numbers_is_refused(
    tmp_path: Path, content: bytes, told: str
) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(Malformed, match=told):
        heads(path)


def test_an_array_that_is_in_a_file_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", npy("<f4", (1,)))
        archive.writestr("x", npy("<f4", (2,)))
    with pytest.raises(Malformed, match="'x' is in it twice"):
        heads(tmp_path / "a.npz")


def test_safetensors_tell_types_and_shapes(tmp_path: Path) -> None:
    text = json.dumps(
        {"__metadata__": {}, "x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    ).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(24))
    assert heads(path) == {"x": ("float32", (2, 3))}


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value


def onnx() -> bytes:
    """A model with the input ``image`` of float32 ``[batch, 3]``."""
    shape = field(1, field(2, b"batch")) + field(1, field(1, 3))
    tensor = field(1, 1) + field(2, shape)
    return field(7, field(11, field(1, b"image") + field(2, field(1, tensor))))


def test_data_that_do_not_fit_are_refused_before_anything_is_sent(
    farm: Farm, stub: StubFarm, tmp_path: Path
) -> None:
    model = tmp_path / "digits.onnx"
    model.write_bytes(onnx())
    good = npz(tmp_path / "good.npz", image=("<f4", (8, 3)), label=("<i8", (8,)))
    bad = npz(tmp_path / "bad.npz", image=("|u1", (8, 3)))
    for role in ("calibration", "evaluation"):
        with pytest.raises(DataRefused, match="is uint8, but the model takes float32") as caught:
            farm.submit(model, targets=["sm_89"], precisions=["fp16"], **{role: bad})
        assert ".astype(numpy.float32)" in str(caught.value.hint)
    assert not stub.seen
    farm.submit(model, targets=["sm_89"], precisions=["fp16"], calibration=good, evaluation=good)
    assert len(stub.submitted) == 1


def test_data_of_a_source_that_does_not_tell_its_inputs_are_left_to_the_job(
    farm: Farm, stub: StubFarm, model: Path, tmp_path: Path
) -> None:
    data = npz(tmp_path / "data.npz", anything=("<f4", (8, 3)))
    farm.submit(model, targets=["sm_89"], precisions=["fp16"], calibration=data)
    assert len(stub.submitted) == 1

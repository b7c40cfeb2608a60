"""The files that the farm is given, honest and not: ``python -m tests.e2e.files OUT_DIR LAST``.

``LAST`` is an empty one that is made when all others are there.

Made in a process of its own, since they need PyTorch and the tests don't.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.integration.test_stage_sources import Evil, edit_json, edited, torch_pickle
from workers import demo

LAYERS = 8


def write(folder: Path) -> None:
    train, held_out = demo.digits_split()
    digits = folder / "digits.pt2"
    demo.save_program(demo.train_digits(train, epochs=5), torch.zeros(2, 1, 8, 8), digits)
    np.savez(folder / "calibration.npz", image=train["image"][:64])
    np.savez(folder / "evaluation.npz", image=held_out["image"], label=held_out["label"])
    # The same with other weights, so that nothing that is made of it is made of anything else.
    other = demo.train_digits(train, epochs=1)
    demo.save_program(other, torch.zeros(2, 1, 8, 8), folder / "retained.pt2")
    _write_small(folder / "small.onnx")
    _write_small(folder / "retained.onnx", seed=1)
    _write_custom_operator(folder / "custom.onnx")
    _write_malicious(digits, folder / "malicious.pt2", folder / "executed")
    small = (folder / "small.onnx").read_bytes()
    (folder / "truncated.onnx").write_bytes(small[: len(small) // 2])
    program = digits.read_bytes()
    (folder / "truncated.pt2").write_bytes(program[: len(program) // 2])
    torch.save({"weight": torch.zeros(2)}, folder / "weights.pt")
    (folder / "empty.onnx").touch()


def _write_small(path: Path, seed: int = 0) -> None:
    """A chain of convolutions [n,1,8,8] → [n,1,8,8]: quick to build, and calibrated as long as one
    likes by the number of samples.
    """
    rng = np.random.default_rng(seed)
    nodes, weights = [], []
    for layer in range(LAYERS):
        kernel = rng.standard_normal((16 if layer < LAYERS - 1 else 1, 16 if layer else 1, 3, 3))
        kernel = (kernel / 9).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{layer}"))
        before = f"y{layer - 1}" if layer else "image"
        after = f"y{layer}" if layer < LAYERS - 1 else "output"
        conv = helper.make_node(
            "Conv", [before, f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1], name=f"conv{layer}"
        )
        nodes += [conv, helper.make_node("Relu", [f"c{layer}"], [after], name=f"relu{layer}")]
    _save(path, nodes, weights)


def _write_custom_operator(path: Path) -> None:
    _save(path, [helper.make_node("MagicBlend", ["image"], ["output"], domain="acme")], [])


def _save(path: Path, nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto]) -> None:
    shape = ["n", 1, 8, 8]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
        weights,
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("acme", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(path))


def _write_malicious(honest: Path, path: Path, marker: Path) -> None:
    """A program one of whose weights is a pickle that creates ``marker``."""
    config = "data/weights/model_weights_config.json"
    evil = torch_pickle(Evil(marker))

    def use_pickle(value: dict) -> None:  # type: ignore[type-arg]
        next(iter(value["config"].values()))["use_pickle"] = True

    edit = edit_json(config, use_pickle)
    edited(
        honest,
        path,
        lambda name, content: evil if name == "data/weights/weight_0" else edit(name, content),
    )


if __name__ == "__main__":
    write(Path(sys.argv[1]))
    (Path(sys.argv[1]) / sys.argv[2]).touch()

"""A graph that holds nothing for int8 is refused by the reason, with the way out that fits it."""

from __future__ import annotations

import onnx.parser
import pytest

from workers.quantize.unquantised import reasons

HEAD = '<ir_version: 10, opset_import: ["" : 20]>'
SMALL = "small (float[n, 8] x) => (float[n, 4] y) <float[8, 4] w> { y = MatMul(x, w) }"
VECTOR = "vector (float[64] x) => (float[32] y) <float[64, 32] w> { y = MatMul(x, w) }"
BRANCH = """branch (float[n, 64] x, bool c) => (float[n, 32] y) <float[64, 32] w> {
    y = If(c) <then_branch = yes () => (float[n, 32] a) { a = MatMul(x, w) },
               else_branch = no () => (float[n, 32] b) { b = MatMul(x, w) }>
}"""
RECURRENT = """recurrent (float[t, n, 4] x) => (float[t, 1, n, 8] y) <float[1, 32, 4] w, float[1, 32, 8] r> {
    y = LSTM <hidden_size = 8> (x, w, r)
}"""


@pytest.mark.parametrize(
    ("graph", "why", "ways"),
    [
        (SMALL, "1 have a side below 16", []),
        (VECTOR, "1 multiply by a vector", ["batch_size"]),
        (BRANCH, "2 are in the body of If 'y'", ["--fix"]),
        (RECURRENT, "1 recur", []),
    ],
)
def test_the_reason_is_the_graphs_and_so_is_the_way_out(
    graph: str, why: str, ways: list[str]
) -> None:
    said, hint = reasons(onnx.parser.parse_model(f"{HEAD} {graph}"))
    assert why in said
    assert hint.startswith("choose fp16")
    assert [way for way in ("--fix", "batch_size") if way in hint] == ways

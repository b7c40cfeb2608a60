"""Magnitudes are measured where they count, and aren't already known."""

from __future__ import annotations

import numpy as np
import pytest

from tests.typed_graphs import F, graph, model, node, value
from workers.graphs.normal import normalised
from workers.quantize.magnitudes import Magnitude, measured

X = {"x": np.float32([[1, -2, 4]])}


@pytest.fixture(name="made")
def _made():
    """x → a → b, and b / (c + d), where c is made of x."""
    nodes = [
        node("Neg", "x", "a"),
        node("Relu", "a", "b"),
        node("Mul", "x x", "c"),
        node("Add", "c c", "d"),
        node("Div", "b d", "y"),
    ]
    outer = [value("x", F, ["n", 3])], [value("y", F, ["n", 3])]
    return normalised(model(graph(nodes, *outer, {})))


def test_the_smallest_magnitude_is_measured_of_denominators_and_what_makes_them(made, tmp_path):
    found = measured(made, [X], tmp_path)
    assert found == {
        "x": Magnitude(most=4, least=1),
        "a": Magnitude(most=4),
        "b": Magnitude(most=2),
        "c": Magnitude(most=16, least=1),
        "d": Magnitude(most=32, least=2),
        "y": Magnitude(most=0.25),
    }


@pytest.mark.parametrize(("known", "most"), [(7.0, 7.0), (np.inf, np.inf), (1.0, 1.0)])
def test_what_is_known_of_more_data_is_not_measured(made, tmp_path, known, most):
    found = measured(made, [X], tmp_path, {"b": known})
    assert found["b"] == Magnitude(most=most)
    assert found["a"] == Magnitude(most=4)


def test_of_a_known_denominator_the_smallest_magnitude_is_measured(made, tmp_path):
    found = measured(made, [X], tmp_path, {"d": 50.0})
    assert found["d"] == Magnitude(most=50, least=2)


def test_a_graph_whose_magnitudes_are_all_known_is_not_run(tmp_path):
    outer = [value("x", F, ["n", 3])], [value("y", F, ["n", 3])]
    made = normalised(model(graph([node("Relu", "x", "y")], *outer, {})))
    wrong = {"x": np.zeros((1, 5, 5), np.float32)}
    found = measured(made, [wrong], tmp_path, {"x": 2.0, "y": 3.0})
    assert found == {"x": Magnitude(most=2), "y": Magnitude(most=3)}

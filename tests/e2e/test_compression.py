"""A model that is pruned, on a farm of real processes: for what it is judged by and how it is pulled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.e2e.live import LiveFarm

pytestmark = pytest.mark.heavy


def test_a_pruned_model_is_built_as_torchscript_and_pulled_by_model_and_tag(
    farm: LiveFarm, files: Path, tmp_path: Path
) -> None:
    submit = ["submit", files / "digits.pt2", "--name", "pruned", "--gpu", "torchscript:cpu"]
    judged = ["--evaluation", files / "evaluation.npz", "--max-drop", "0.1", "--wait", "--json"]
    view = farm.cli(*submit, "--precision", "fp32", "--prune", "l1:0.3", *judged).json()
    assert view["state"] == "succeeded"
    assert [job["kind"] for job in view["jobs"]] == ["prune", "build", "measure"]
    pull = ["pull", "pruned", "--gpu", "cpu", "-o", tmp_path, "--json"]
    [pulled] = farm.cli(*pull).json()
    assert "pruned l1:0.3: version 1 has no unpruned one" in pulled["why"]
    assert pulled["engine"]["prune"] == "l1:0.3"
    path = tmp_path / "pruned-v1-fp32-cpu-pruned-l1-0.3.pt"
    assert str(path) == pulled["path"]
    assert torch.jit.load(str(path))(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_a_pruning_that_ruins_the_model_fails_its_build_with_the_figures(
    farm: LiveFarm, files: Path
) -> None:
    submit = ["submit", files / "digits.pt2", "--name", "ruined", "--gpu", "torchscript:cpu"]
    judged = ["--evaluation", files / "evaluation.npz", "--max-drop", "0.1", "--json"]
    build = farm.cli(*submit, "--precision", "fp32", "--prune", "l1:0.99", *judged).json()
    view = farm.ended(build["id"])
    assert (view["state"], view["error"]["code"]) == ("failed", "accuracy-dropped")
    assert "; 0.1 is allowed" in view["error"]["detail"]

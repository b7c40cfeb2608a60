"""Configurations of named architectures are data: none chooses code, and none is without end."""

from __future__ import annotations

from typing import Any

import pytest

from farm.specs.architectures import refusal


@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": {"AutoModel": "evil.Model"}},
        {"text_config": {"auto_map": {"AutoModel": "evil.Model"}}},
        {"a": {"b": {"_attn_implementation": "author/kernel"}}},
        {"custom_generate": "author/repository"},
        {"dtype": "os"},
        {"torch_dtype": "load"},
        {"dtype": ["float32"]},
        {"__class__": "x"},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 1e9},
        {"depths": [2, 10**6]},
    ],
)
def test_a_configuration_that_chooses_code_or_has_no_end_is_refused(config: dict[str, Any]) -> None:
    assert refusal("transformers", "BertModel", config)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_hidden_layers": 48, "torch_dtype": "bfloat16", "architectures": ["BertModel"]},
        {"dtype": None, "depths": [3, 3, 27, 3], "id2label": {"0": "cat"}, "auto_map": None},
    ],
)
def test_a_usual_configuration_is_taken(config: dict[str, Any]) -> None:
    assert refusal("transformers", "BertModel", config) is None

"""Folders that transformers saves are sources: the worker loads what the client sends of them."""

from __future__ import annotations

import pytest
import torch

from farm.client import sources
from farm.specs.source import Architecture
from workers.sources.architectures import load_program

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_a_folder_as_saved_is_what_the_worker_loads(tmp_path, shard_size):
    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=300,
    )
    model = transformers.BertModel(config).eval()
    folder = tmp_path / "tiny-bert"
    model.save_pretrained(folder, max_shard_size=shard_size)
    assert (folder / "model.safetensors").is_file() is (shard_size == "1GB")
    found = sources.find(folder)
    sent = tmp_path / "sent.safetensors"
    content = found.content
    sent.write_bytes(
        content.read_bytes() if hasattr(content, "read_bytes") else b"".join(content.chunks())
    )
    described = sources.architecture(found.architecture, found.config)
    program = load_program(sent, Architecture.model_validate(described))
    ids = torch.arange(12).reshape(2, 6)
    mask = torch.ones_like(ids)
    with torch.no_grad():
        made = program.module()(ids, mask)["last_hidden_state"]
        wanted = model(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(made, wanted)

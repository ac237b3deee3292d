"""transformers loads a folder that we wrote, in parts with an index, as the model that it saved itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import reshard
from reshard import Options

transformers = pytest.importorskip("transformers", reason="no transformers here; make test-hf has an environment")
pytestmark = pytest.mark.hf
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 96}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with random weights."""
    import torch

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, tie_word_embeddings=False))
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def load(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights of a folder as transformers has them, and what it found odd."""
    model, said = transformers.LlamaForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    return model.state_dict(), said


def test_parts_and_their_index(saved: Path, tmp_path: Path) -> None:
    import torch

    reshard.convert(saved, tmp_path / "out", Options(format="safetensors", max_shard_nbytes=20_000))
    (index,) = (tmp_path / "out").rglob("*.index.json")
    parts = set(json.loads(index.read_text())["weight_map"].values())
    assert len(parts) > 2
    shutil.copy(saved / "config.json", index.parent)
    ours, said = load(index.parent)
    theirs, _ = load(saved)
    assert not any(said.values()), said
    assert ours.keys() == theirs.keys()
    assert all(ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in theirs)

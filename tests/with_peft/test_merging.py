"""An adapter that PEFT trained and saved: what we merge is what PEFT merges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reshard
from making import read_file

peft = pytest.importorskip("peft", reason="no PEFT here; make test-peft has an environment with it")
pytestmark = pytest.mark.peft
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 96}  # fmt: skip


@pytest.fixture
def model() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False))


@pytest.mark.parametrize("more", [{}, {"use_rslora": True}], ids=["plain", "rslora"])
def test_a_merge_is_that_of_peft(model: Any, tmp_path: Path, more: dict[str, Any]) -> None:
    import torch

    model.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=4, lora_alpha=10, target_modules=["q_proj", "v_proj", "down_proj"], **more)
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:  # they begin as zeros
                weight.normal_()
    adapted.save_pretrained(tmp_path / "adapter")
    wanted = adapted.merge_and_unload().state_dict()
    scaling = reshard.lora_config(config=tmp_path / "adapter" / "adapter_config.json")
    reshard.merge_lora(tmp_path / "base", tmp_path / "out.safetensors", scaling, adapter=tmp_path / "adapter")
    made = read_file(tmp_path / "out.safetensors")
    assert made.keys() == wanted.keys()
    for name, weight in wanted.items():
        np.testing.assert_allclose(made[name], weight.numpy(), rtol=1e-5, atol=1e-6, err_msg=name)

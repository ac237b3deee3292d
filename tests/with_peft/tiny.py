"""Models of a few hundred numbers with a layer of every kind, and adapters on them that PEFT makes and saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

VOCAB, WIDTH, INNER, EXPERTS = 12, 6, 8, 3


class Experts(nn.Module):
    """Fused experts, stored [expert, out, in], or [expert, in, out] with ``is_transposed``."""

    def __init__(self, *, is_transposed: bool) -> None:
        super().__init__()
        self.is_transposed = is_transposed
        up, down = ((WIDTH, 2 * INNER), (INNER, WIDTH)) if is_transposed else ((2 * INNER, WIDTH), (WIDTH, INNER))
        self.gate_up_proj = nn.Parameter(torch.randn(EXPERTS, *up))
        self.down_proj = nn.Parameter(torch.randn(EXPERTS, *down))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Layer(nn.Module):
    def __init__(self, *, is_transposed: bool, conv1d: bool) -> None:
        super().__init__()
        if conv1d:  # a model has them or Linear
            self.c_attn = Conv1D(INNER, WIDTH)
            self.c_proj = Conv1D(WIDTH, WIDTH)
            return
        self.q_proj = nn.Linear(WIDTH, WIDTH)
        self.k_proj = nn.Linear(WIDTH, INNER, bias=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.conv1 = nn.Conv1d(4, 6, 3)
        self.conv2 = nn.Conv2d(4, 6, 3)
        self.point = nn.Conv2d(4, 6, 1)
        self.conv3 = nn.Conv3d(4, 6, (1, 2, 3))
        self.experts = Experts(is_transposed=is_transposed)


class Tiny(nn.Module):
    """``tied``: the head is the embedding."""

    def __init__(self, *, tied: bool = False, is_transposed: bool = False, conv1d: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = {"model_type": "tiny", "tie_word_embeddings": tied}
        self.embed_tokens = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList(Layer(is_transposed=is_transposed, conv1d=conv1d) for _ in range(2))
        self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight
            self._tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def prepare_inputs_for_generation(self) -> None: ...

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.embed_tokens(x))


def shaken(model: nn.Module, *, seed: int = 1) -> None:
    """Give every number that an adapter may have trained another value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad or "lora_" in name:
                weight.add_(torch.randn(weight.shape, generator=generator).to(weight.dtype) * 0.5)


def save(model: nn.Module, path: Path) -> None:
    """Its weights; of a tied head none."""
    state = {name: weight.contiguous().clone() for name, weight in model.state_dict().items()}
    if model.config["tie_word_embeddings"]:
        del state["lm_head.weight"]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, {"format": "pt"})


def values(model: Any) -> dict[str, Any]:
    return {name: weight.float().numpy() for name, weight in model.state_dict().items()}

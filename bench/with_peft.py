"""What PEFT does for the job of a LoRA row: load, add, merge_and_unload, save.

    python bench/with_peft.py BASE ADAPTER OUT

The base is loaded as it lies, as modules of the names of its weights; scaling is 2.
"""

from __future__ import annotations

import sys

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import nn


def model_of(weights: dict[str, torch.Tensor]) -> nn.Module:
    """Modules that hold them, matrices as linear layers."""
    root = nn.Module()
    for name, weight in weights.items():
        *path, last, _ = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]
        leaf = nn.Linear(1, 1, bias=False, device="meta") if weight.dim() == 2 else nn.Module()
        leaf.weight = nn.Parameter(weight, requires_grad=False)
        if weight.dim() == 2:
            leaf.out_features, leaf.in_features = weight.shape
        module.add_module(last, leaf)
    return root


def main(base: str, adapter: str, out: str) -> None:
    factors = load_file(adapter)
    layers = {name.removesuffix(".lora_A.weight"): len(a) for name, a in factors.items() if "lora_A" in name}
    rank = next(iter(layers.values()))
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(layers), init_lora_weights=False)
    model = peft.get_peft_model(model_of(load_file(base)), config, low_cpu_mem_usage=True)
    peft.set_peft_model_state_dict(
        model, {f"base_model.model.{n}": f for n, f in factors.items()}, low_cpu_mem_usage=True
    )
    save_file(model.merge_and_unload().state_dict(), out)


if __name__ == "__main__":
    main(*sys.argv[1:])

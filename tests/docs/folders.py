"""What the pages' commands find in their folder, made from a BERT that is an eighth as wide as the demo's."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from pages import ROOT

import reshard
from families.rows import FAMILIES
from hub_model import write_hub
from making import write_file
from reshard.ops.make_strategy import StrategyWish, made_stages
from reshard.ops.options import Options

LAYERS, HIDDEN, INTERMEDIATE, WORDS, PLACES = 6, 48, 192, 3810, 512
LORA_RANK = 8
AUTO = """\
run_mode: train
use_parallel: True
load_checkpoint: llama.ckpt
auto_trans_ckpt: True  # convert
parallel_config: {data_parallel: 2, model_parallel: 2, pipeline_stage: 2}
parallel: {parallel_mode: 1}
optimizer: {type: AdamW}
model:
  arch: {type: LlamaForCausalLM}
  model_config:
    {type: LlamaConfig, hidden_size: 64, num_layers: 4, num_heads: 8, n_kv_heads: 4, vocab_size: 512, multiple_of: 32}
"""
# sizes that pages show → sizes of the small model
SMALL_SIZES = {30522: WORDS, 15261: WORDS // 2, 1536: INTERMEDIATE, 768: 96, 384: HIDDEN, 192: 24}
# words in commands that go by bytes: a file of the small model is a sixty-fourth as large
SMALL_WORDS = {"seek=4000000": "seek=70000", "--max-shard-size 30MB": "--max-shard-size 468750"}


def _demo() -> ModuleType:
    """demo/tutorial.py, so that pages and what they are written for cannot part."""
    spec = importlib.util.spec_from_file_location("reshard_tutorial", ROOT / "demo/tutorial.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "demo")  # where its neighbours are
        spec.loader.exec_module(module)
    return module


def bert() -> dict[str, np.ndarray]:
    """Random weights with the names of all-MiniLM-L6-v2."""
    shapes = {
        "embeddings.word_embeddings.weight": (WORDS, HIDDEN),
        "embeddings.position_embeddings.weight": (PLACES, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
        **_norm("embeddings.LayerNorm"),
        **_dense("pooler.dense", HIDDEN, HIDDEN),
    }
    for layer in range(LAYERS):
        place = f"encoder.layer.{layer}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= _dense(f"{place}.attention.{name}", HIDDEN, HIDDEN)
        shapes |= _norm(f"{place}.attention.output.LayerNorm") | _norm(f"{place}.output.LayerNorm")
        shapes |= _dense(f"{place}.intermediate.dense", INTERMEDIATE, HIDDEN)
        shapes |= _dense(f"{place}.output.dense", HIDDEN, INTERMEDIATE)
    random = np.random.default_rng(0)
    made = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return {"embeddings.position_ids": np.arange(PLACES)[None], **made}


def _dense(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (HIDDEN,), f"{name}.bias": (HIDDEN,)}


def _factors(a_ending: str, b_ending: str, prefix: str = "") -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    names = [f"{prefix}encoder.layer.{i}.attention.self.{part}" for i in range(LAYERS) for part in ("query", "value")]
    return {
        name + ending: random.standard_normal(shape, np.float32)
        for name in names
        for ending, shape in ((a_ending, (LORA_RANK, HIDDEN)), (b_ending, (HIDDEN, LORA_RANK)))
    }


def make_demo(folder: Path) -> None:
    """``demo/out`` as ``make tutorial`` leaves it."""
    model = write_file(folder / "model.safetensors", bert(), {"format": "pt"})
    _demo().write_strategies(model, folder / "strategy")
    a, b, c = (str(folder / "strategy" / name) for name in ("dp2mp2pp2", "dp1mp4pp2", "dp1mp3pp2"))
    reshard.convert(model, folder / "cut-8", Options(dst_strategy=a))
    reshard.convert(folder / "cut-8", folder / "cut-mp4", Options(src_strategy=a, dst_strategy=b))
    reshard.convert(folder / "cut-mp4", folder / "cut-6", Options(src_strategy=b, dst_strategy=c, format="ckpt"))
    reshard.convert(folder / "cut-6", folder / "full.safetensors", Options(src_strategy=c))


def make_job(folder: Path) -> None:
    """What the README has: a full checkpoint, a job's ``rank_x`` folders, the strategies of two jobs."""
    _job(folder, bert(), "old_strategy", "new_strategy")
    reshard.convert(folder / "model.safetensors", folder / "llama.ckpt")


def make_readme(folder: Path) -> None:
    """A job of MindSpore's, and what ``make demo`` leaves: a Llama as deep and as often cut as SmolLM2, and narrow."""
    make_job(folder)
    layers, heads, kv, head, ffn, words = 30, 9, 3, 2, 6, 12
    hidden = heads * head
    sizes = {"hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers, "vocab_size": words}
    shapes = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv * head, hidden)}
    shapes |= {"self_attn.v_proj": (kv * head, hidden), "self_attn.o_proj": (hidden, hidden)}
    shapes |= {"mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden), "mlp.down_proj": (hidden, ffn)}
    shapes |= {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
    named = {f"model.layers.{n}.{name}.weight": shape for n in range(layers) for name, shape in shapes.items()}
    named |= {"model.embed_tokens.weight": (words, hidden), "model.norm.weight": (hidden,)}
    random = np.random.default_rng(2)
    tensors = {name: random.standard_normal(shape, np.float32) for name, shape in named.items()}
    counts = {"num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": head}
    write_hub(folder / "model", tensors, model_type="llama", tie_word_embeddings=True, **sizes, **counts)
    reshard.convert(folder / "model", folder / "megatron", Options(to="megatron", tp=3, pp=2))


def make_recipes(folder: Path) -> None:
    """Beside what the README has a run of ZeRO-3 and an adapter."""
    make_readme(folder)
    shutil.copytree(FAMILIES["DeepSpeed, stage 3"](folder / "made").path, folder / "zero")
    random = np.random.default_rng(3)
    places = [f"base_model.model.model.layers.{n}.self_attn.o_proj" for n in range(0, 30, 7)]
    factors = {f"{place}.lora_{part}.weight": (2, 18) if part == "A" else (18, 2) for place in places for part in "AB"}
    tensors = {name: random.standard_normal(shape, np.float32) for name, shape in factors.items()}
    write_file(folder / "adapter/adapter_model.safetensors", tensors)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["o_proj"]}
    (folder / "adapter/adapter_config.json").write_text(json.dumps(config))


def make_fsdp(folder: Path) -> None:
    """The ranks' files of an actor, also as one step of several."""
    shutil.copytree(FAMILIES["FSDP1, moments in pieces"](folder / "made").path, folder / "actor")
    shutil.copytree(folder / "actor", folder / "checkpoints/global_step_100/actor")


def make_lora(folder: Path) -> None:
    """A job that trained LoRA weights; a base and adapters as PEFT saves them; a run's YAML."""
    factors = _factors(".mindpet_delta_lora_a", ".mindpet_delta_lora_b")
    _job(folder, {**bert(), **factors}, "strategy", "serve_strategy")
    pet = f"lora_rank: {LORA_RANK}\n      lora_alpha: 16"
    (folder / "run.yaml").write_text(f"model:\n  model_config:\n    pet_config:\n      pet_type: lora\n      {pet}\n")
    write_file(folder / "base/model.safetensors", bert())
    peft = _factors(".lora_A.weight", ".lora_B.weight", "base_model.model.")
    for name in ("adapter", "second", "pissa", "pissa_init"):
        write_file(folder / name / "adapter_model.safetensors", peft)
        config = {"peft_type": "LORA", "r": LORA_RANK, "lora_alpha": 16, "target_modules": ["query", "value"]}
        config["init_lora_weights"] = "pissa" if name == "pissa" else True
        (folder / name / "adapter_config.json").write_text(json.dumps(config))


def make_auto(folder: Path) -> None:
    """A job's YAML and the full checkpoint of its model."""
    (folder / "run.yaml").write_text(AUTO)
    _, _, stages = made_stages(StrategyWish(config=str(folder / "run.yaml"), optimizer="none"))
    shapes = {name: layout.shape for stage in stages for name, layout in stage.items()}
    write_file(folder / "llama.ckpt", {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})


def make_unify(folder: Path) -> None:
    _job(folder, bert(), "strategy", "next_strategy")


def _job(folder: Path, tensors: dict[str, np.ndarray], strategy: str, next_strategy: str) -> None:
    """``ckpt`` with ``rank_r/llama_rank_r-1_10.ckpt``, as a training job leaves it."""
    model = write_file(folder / "model.safetensors", tensors)
    demo = _demo()
    demo.write_strategy(model, folder / strategy, dp=2, mp=2)
    demo.write_strategy(model, folder / next_strategy, dp=1, mp=4)
    reshard.convert(model, folder / "ckpt", Options(dst_strategy=str(folder / strategy), format="ckpt"))
    shutil.rmtree(folder / "ckpt/.reshard")
    for path in (folder / "ckpt").glob("rank_*/*.ckpt"):
        path.rename(path.with_name(f"llama_{path.parent.name}-1_10.ckpt"))


MAKERS: dict[str, Callable[[Path], None]] = {
    "README.md": make_readme,
    "README.zh.md": make_readme,
    "docs/how-to/recipes.md": make_recipes,
    "docs/zh/how-to/recipes.md": make_recipes,
    "docs/how-to/fsdp.md": make_fsdp,
    "docs/zh/how-to/fsdp.md": make_fsdp,
    "docs/how-to/lora.md": make_lora,
    "docs/zh/how-to/lora.md": make_lora,
    "docs/how-to/auto.md": make_auto,
    "docs/zh/how-to/auto.md": make_auto,
    "docs/how-to/auto-several-machines.md": make_auto,
    "docs/zh/how-to/auto-several-machines.md": make_auto,
    "docs/how-to/load-without-writing.md": make_auto,
    "docs/zh/how-to/load-without-writing.md": make_auto,
    "docs/how-to/unify.md": make_unify,
    "docs/zh/how-to/unify.md": make_unify,
}

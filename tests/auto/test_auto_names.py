"""A Hugging Face folder as load_checkpoint: the ranks get its weights under the names of the job's model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from jobs import write_yaml
from ranks import Ranks

from golden.cases import run_reshard
from making import array, read_file, read_rank, same, write_file
from reshard.auto import load

LAYERS, H, HEADS, KV, F, V = 4, 16, 8, 4, 48, 64
NAMES = {
    "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_hub(folder: Path, **config: Any) -> dict[str, np.ndarray]:
    """A small Llama as Hugging Face has it, in two parts."""
    rows = {"q": H, "k": H * KV // HEADS, "v": H * KV // HEADS}
    shapes: dict[str, tuple[int, ...]] = {f"self_attn.{p}_proj": (n, H) for p, n in rows.items()}
    shapes |= {"self_attn.o_proj": (H, H), "mlp.gate_proj": (F, H), "mlp.up_proj": (F, H), "mlp.down_proj": (H, F)}
    shapes |= {"input_layernorm": (H,), "post_attention_layernorm": (H,)}
    named = {f"model.layers.{n}.{name}": shape for n in range(LAYERS) for name, shape in shapes.items()}
    named |= {"model.embed_tokens": (V, H), "model.norm": (H,), "lm_head": (V, H)}
    tensors = {f"{name}.weight": array(shape, seed=seed) for seed, (name, shape) in enumerate(named.items())}
    folder.mkdir()
    names, where = list(tensors), {}
    for part, some in (
        ("model-00001-of-00002.safetensors", names[:20]),
        ("model-00002-of-00002.safetensors", names[20:]),
    ):
        write_file(folder / part, {name: tensors[name] for name in some})
        where |= dict.fromkeys(some, part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    said = {"model_type": "llama", "num_hidden_layers": LAYERS, "hidden_size": H, "num_attention_heads": HEADS}
    said |= {"num_key_value_heads": KV, "intermediate_size": F, "vocab_size": V, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(said | config))
    return tensors


def test_it_is_cut_under_the_names_of_the_job(tmp_path: Path, ranks: Ranks) -> None:
    tensors = write_hub(tmp_path / "hub")
    write_yaml(tmp_path / "run.yaml", "dp1mp4pp2", load_checkpoint="hub", load_ckpt_format="safetensors")
    for ended in ranks.run(8, "--config", "run.yaml", cwd=tmp_path):
        assert ended.code == 0, ended.err
    run = yaml.safe_load((tmp_path / "output" / "reshard_run.yaml").read_text())
    first, last = (read_rank(tmp_path / run["load_checkpoint"], rank) for rank in (1, 6))
    for theirs, ours in NAMES.items():
        full = tensors[f"model.layers.0.{theirs}.weight"]
        axis = 1 if ours in ("attention.wo", "feed_forward.w2") else 0
        part = full if full.ndim == 1 else np.split(full, 4, axis)[1]
        assert same(first[f"model.layers.0.{ours}.weight"], np.ascontiguousarray(part)), ours
    assert same(last["lm_head.weight"], np.split(tensors["lm_head.weight"], 4)[2])
    assert not [name for name in (*first, *last) if "self_attn" in name]


def test_of_one_rank_the_file_has_the_job_s_names(tmp_path: Path, ranks: Ranks) -> None:
    """It is one full checkpoint already, and the job could not load it as it is."""
    tensors = write_hub(tmp_path / "hub")
    write_yaml(tmp_path / "run.yaml", "", load_checkpoint="hub", use_parallel=False)
    (ended,) = ranks.run(1, "--config", "run.yaml", cwd=tmp_path)
    assert ended.code == 0, ended.err
    run = yaml.safe_load((tmp_path / "output" / "reshard_run.yaml").read_text())
    made = read_file(Path(tmp_path / run["load_checkpoint"]))
    assert len(made) == len(tensors)
    assert same(made["model.layers.3.feed_forward.w2.weight"], tensors["model.layers.3.mlp.down_proj.weight"])


def test_fused_as_the_yaml_says_and_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tensors = write_hub(tmp_path / "hub")
    sizes = {"hidden_size": H, "vocab_size": V, "intermediate_size": F, "qkv_concat": True}
    write_yaml(tmp_path / "run.yaml", "dp2mp4", sizes, load_checkpoint="hub", load_ckpt_format="safetensors")
    held = load("run.yaml", rank=2, world_size=8)
    q, k, v = (tensors[f"model.layers.1.self_attn.{p}_proj.weight"] for p in "qkv")
    grouped = np.concatenate([x.reshape(KV, -1, H) for x in (q, k, v)], 1)
    assert same(held["model.layers.1.attention.w_qkv.weight"], np.ascontiguousarray(grouped[2]))


def test_a_folder_of_another_model_is_refused_with_both_numbers(tmp_path: Path, ranks: Ranks) -> None:
    write_hub(tmp_path / "hub", num_key_value_heads=8)
    write_yaml(tmp_path / "run.yaml", "dp8", load_checkpoint="hub")
    ended = ranks.run(8, "--config", "run.yaml", cwd=tmp_path)
    said = next(rank.err for rank in ended if rank.code == 3)  # the others hear that one has failed
    assert "n_kv_heads 4" in said
    assert "num_key_value_heads 8" in said
    assert not (tmp_path / "output" / "reshard_run.yaml").exists()


def test_split_gives_the_same(tmp_path: Path) -> None:
    tensors = write_hub(tmp_path / "hub")
    run = write_yaml(tmp_path / "run.yaml", "dp1mp4pp2")
    words = ["strategy", "make", "--config", str(run), "-o", str(tmp_path / "strategy")]
    assert run_reshard(words) == 0
    words = ["split", str(tmp_path / "hub"), str(tmp_path / "ranks"), "--dst-strategy", str(tmp_path / "strategy")]
    assert run_reshard(words) == 3  # names of Hugging Face are not the job's
    assert run_reshard([*words, "--dst-names", "mindformers", "--model", str(run)]) == 0
    made = read_rank(tmp_path / "ranks", 3)
    full = tensors["model.layers.1.mlp.down_proj.weight"]
    assert same(made["model.layers.1.feed_forward.w2.weight"], np.ascontiguousarray(np.split(full, 4, 1)[3]))

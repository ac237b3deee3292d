"""The README's two tables: what is in the first goes with what is in the second."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from folders import make_job
from pages import text_of

from families.rows import FAMILIES
from golden.cases import run_reshard
from making import write_file

TABLE = re.compile(r"^\|[^|]*\| `([^`]*)` \|", re.MULTILINE)
PAGES = ("README.md", "README.zh.md")
HIDDEN, FFN, LAYERS = 16, 32, 2


def hugging_face(folder: Path) -> None:
    """A Llama of two layers, with what lies beside it on Hugging Face."""
    (folder / "Qwen3-8B").mkdir()
    sizes = {"hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": LAYERS, "vocab_size": 24}
    config = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, **sizes}
    (folder / "Qwen3-8B/config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    shapes = {"self_attn.q_proj": (16, 16), "self_attn.k_proj": (8, 16), "self_attn.v_proj": (8, 16)}
    shapes |= {"self_attn.o_proj": (16, 16), "mlp.gate_proj": (FFN, HIDDEN), "mlp.up_proj": (FFN, HIDDEN)}
    shapes |= {"mlp.down_proj": (HIDDEN, FFN), "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,)}
    layers = {f"model.layers.{n}.{name}.weight": shape for n in range(LAYERS) for name, shape in shapes.items()}
    ends = {
        "model.embed_tokens.weight": (24, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (24, HIDDEN),
    }
    tensors = {name: np.arange(np.prod(s), dtype=np.float32).reshape(s) for name, s in {**layers, **ends}.items()}
    write_file(folder / "Qwen3-8B/model.safetensors", tensors)


def recorded(family: str, name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        shutil.copytree(FAMILIES[family](folder / "made").path, folder / name)

    return make


MAKERS = {
    "Qwen3-8B": hugging_face,
    "ckpt": make_job,
    "checkpoint2": recorded("Checkpoint 2.0", "checkpoint2"),
    "step-1000": recorded("DCP, uneven rows", "step-1000"),
    "actor": recorded("FSDP2, uneven rows", "actor"),
    "zero": recorded("DeepSpeed, stage 2", "zero"),
    "megatron": recorded("Megatron, rank folders", "megatron"),
    "recut": recorded("ours", "recut"),
}
ONLY_FROM = {
    "--dst-strategy new_strategy": "ckpt",  # it has the names of that model
    "--dst-names hf": "Qwen3-8B",
    "--to megatron": "Qwen3-8B",
    "--to universal": "zero",
}


def tables(page: str) -> tuple[list[str], list[str]]:
    """The codes of both: places of sources with their options, targets with theirs."""
    have, want = re.split(r"\n\n(?=\|)", text_of(page).split("\n## ")[2], maxsplit=2)[1:]
    return TABLE.findall(have), TABLE.findall(want)


HAVE, WANT = tables("README.md")


def test_both_languages_have_the_same() -> None:
    assert tables("README.zh.md") == (HAVE, WANT)
    assert {words.split()[0] for words in HAVE} == set(MAKERS)
    assert len(WANT) == 8


@pytest.mark.parametrize("have", HAVE)
def test_any_row_goes_with_any_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], have: str
) -> None:
    monkeypatch.chdir(tmp_path)
    place = have.split()[0]
    MAKERS[place](tmp_path)
    for want in WANT:
        if place != next((source for part, source in ONLY_FROM.items() if part in want), place):
            continue
        code = run_reshard(["convert", *shlex.split(have), *shlex.split(want)])
        assert code == 0, f"{have} → {want}\n{capsys.readouterr().err}"
        made = tmp_path / want.split()[0]
        assert made.is_file() or any(made.rglob("*.*"))
        code = run_reshard(["verify", str(made)])
        assert code == 0, f"verify {want}\n{capsys.readouterr().err}"

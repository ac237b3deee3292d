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
from pages import text_of

from families.rows import FAMILIES
from golden.cases import run_reshard
from making import write_file, write_strategy
from reshard.families.source import Source
from reshard.layout.tensor import Sharding
from reshard.ops.inspect import opened

TABLE = re.compile(r"^\|[^|]*\| `([^`]*)` \|", re.MULTILINE)
PAGES = ("README.md", "README.zh.md")
HIDDEN, FFN, LAYERS = 16, 32, 2


def hugging_face(folder: Path) -> None:
    """A Llama of two layers, with what lies beside it on Hugging Face."""
    (folder / "Qwen3-8B").mkdir()
    sizes = {"hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": LAYERS, "vocab_size": 24}
    config = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, **sizes}
    for place in ("Qwen3-8B/config.json", "config.json"):
        (folder / place).write_text(json.dumps({**config, "tie_word_embeddings": False}))
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


def made_of_it(name: str, *words: str) -> Callable[[Path], None]:
    """The Llama as another family's folder; as a job of MindFormers has it where it goes by a strategy."""

    def make(folder: Path) -> None:
        hugging_face(folder)
        source = str(folder / "Qwen3-8B")
        if "old_strategy" in words:
            source = str(folder / "mf.safetensors")
            assert run_reshard(["convert", str(folder / "Qwen3-8B"), source, "--dst-names", "mindformers"]) == 0
            strategy_of(source, folder / "old_strategy", 2)
        assert run_reshard(["convert", source, str(folder / name), *words]) == 0
        if name != "recut":
            shutil.rmtree(folder / name / ".reshard")

    return make


def recorded(family: str, name: str) -> Callable[[Path], None]:
    """As the program saved it, of a model that is too small to be known."""

    def make(folder: Path) -> None:
        shutil.copytree(FAMILIES[family](folder / "made").path, folder / name)

    return make


def strategy_of(path: str, folder: Path, ranks: int, source_strategy: str = "") -> None:
    """Rows of all that has as many are cut."""
    shapes = {name: t.spec.shape for name, t in opened(Source(path, source_strategy)).tensors.items()}
    write_strategy(
        folder,
        [
            {name: Sharding((ranks,), tuple((0,) if n == 0 and not d % ranks else () for n, d in enumerate(shape)))
             for name, shape in shapes.items()}
        ],
    )  # fmt: skip


MAKERS = {
    "Qwen3-8B": hugging_face,
    "ckpt": made_of_it("ckpt", "--dst-strategy", "old_strategy", "--format", "ckpt"),
    "checkpoint2": made_of_it("checkpoint2", "--to", "checkpoint2", "--dst-strategy", "old_strategy"),
    "step-1000": made_of_it("step-1000", "--to", "dcp"),
    "actor": recorded("FSDP2, uneven rows", "actor"),
    "zero": recorded("DeepSpeed, stage 2", "zero"),
    "megatron": made_of_it("megatron", "--to", "megatron", "--tp", "2"),
    "recut": made_of_it("recut", "--dst-strategy", "old_strategy"),
}
OF_NO_KNOWN_MODEL = ("actor", "zero")
ONLY_FROM = {"--model": set(MAKERS) - {*OF_NO_KNOWN_MODEL}, "--to universal": {"zero"}}


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
    place, *given = shlex.split(have)
    MAKERS[place](tmp_path)
    strategy_of(place, tmp_path / "new_strategy", 4, given[-1] if given else "")
    for want in WANT:
        if any(part in want and place not in those for part, those in ONLY_FROM.items()):
            continue
        code = run_reshard(["convert", *shlex.split(have), *shlex.split(want)])
        assert code == 0, f"{have} → {want}\n{capsys.readouterr().err}"
        made = tmp_path / want.split()[0]
        assert made.is_file() or any(made.rglob("*.*"))
        code = run_reshard(["verify", str(made)])
        assert code == 0, f"verify {want}\n{capsys.readouterr().err}"

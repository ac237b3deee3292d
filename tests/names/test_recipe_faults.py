"""A recipe that is wrong is told line by line, all of it; the one that the documentation shows is right."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest

from reshard.errors import StrategyError
from reshard.names.recipe import read_recipe

COMMON = (files("reshard.names") / "recipes" / "_common.yaml").read_text(encoding="utf-8")
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-model-family.md"
EXAMPLE = next(block for block in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.S) if "convention:" in block)

WRONG = {
    "a bracket": ("models: [mymodel", "models: [[mymodel", ["line 3", "not YAML"]),
    "a key of the file": ("blocks:", "block:", ["'block' is not known; did you mean 'blocks'?", "no blocks"]),
    "no convention": ("convention: mindformers\n", "", ["convention None", "mcore"]),
    "another convention": ("convention: mindformers", "convention: mindformer", ["line 1", "'mindformer'"]),
    "no list": ("[mymodel, MyModelForCausalLM]", "mymodel", ["line 2", "models", "expected a list"]),
    "a key of a tensor": ("dims: vocab hidden", "dim: vocab hidden", ["line 7", "did you mean 'dims'?", "no dims"]),
    "a key of a block": (
        "    own: model.layers.{n}.",
        "    owns: model.layers.{n}.",
        ["line 9", "did you mean 'own'?"],
    ),
    "brackets of dims": ("hidden (heads head)", "hidden (heads head", ["line 11", "brackets do not match"]),
    "an axis": ("vocab hidden", "vocab hiden", ["line 7", "'hiden'", "did you mean 'hidden'?"]),
    "an axis that nobody knows": ("vocab hidden", "vocab zzz", ["line 7", "'zzz'", "axes: {NAME: ~}"]),
    "a style": ("{qkv: grouped}", "{qvk: grouped}", ["'qvk' is not among styles; did you mean 'qkv'?"]),
    "a value of a style": ("{qkv: grouped}", "{qkv: gruped}", ["line 4", "no tensor is for 'grouped'", "gruped"]),
    "a default": ("default: split", "default: splt", ["line 4", "no tensor is for 'splt'"]),
    "what it is fused with": ("ask: --qkv", "ask: --qkv, fused_with: gate", ["line 4", "fused_with 'gate'"]),
    "an expression": ("'grouped' if concat", "'grouped' iff concat", ["line 4", "told", "not an expression"]),
    "a name in one": ("None if concat is", "None if conkat is", ["line 4", "'conkat'", "did you mean 'concat'?"]),
    "a section": (
        "{group: self_attn",
        "{grup: self_attn",
        ["'grup'", "group, key, value", "no tensor is the section group"],
    ),
    "a counterpart": ("own: model.tok_embeddings.embedding_weight, ", "", ["line 7", "no counterpart"]),
    "a number": ("model.layers.{n}.     ", "model.layers.{m}.     ", ["{m} counts nothing"]),
    "a number on one side": (
        "    own: model.layers.{n}.",
        "    own: model.layers.",
        ["line 11", "{n}", "one side alone"],
    ),
    "a star on one side": ("own: attention.wo.*", "own: attention.wo.weight", ["line 11", ".* ends some"]),
    "the same twice": ("own: attention.wk.*", "own: attention.wq.*", ["line 13", "attention.wq.*", "before it"]),
    "dims of one side": ("hf_dims: expert_ffn hidden", "hf_dims: expert_ffn", ["line 17", "hidden on one side alone"]),
    "what it repeats": (
        "dims: vocab hidden",
        "tied: lm_head.weight, dims: vocab hidden",
        ["line 7", "tied lm_head.weight"],
    ),
    "a dtype": (
        "dims: vocab hidden",
        "dtype: float32, dims: vocab hidden",
        ["line 7", "dtype", "'float32' is no setting"],
    ),
    "a condition": ("dims: vocab hidden", "when: q_rnk, dims: vocab hidden", ["line 7", "did you mean 'q_rank'?"]),
    "a part's dims": ("styles: {qkv: grouped}", "parts_dims: {grop: kv hidden}, styles: {qkv: grouped}", ["'grop'"]),
    "an axis of axes": ("blocks:", "axes: {rows: heds head}\nblocks:", ["line 5", "did you mean 'heads'?"]),
    "an expression of axes": ("blocks:", "axes: {rows: heads *}\nblocks:", ["line 5", "rows", "not an expression"]),
    "keys of a setting": ("blocks:", "settings: {kv: n_kv}\nblocks:", ["line 5", "settings kv", "list of keys"]),
    "what it needs": ("blocks:", "needs: ['(']\nblocks:", ["line 5", "needs", "regular expression"]),
    "what is left out": ("blocks:", "drop: [{match: '(', why: x}]\nblocks:", ["line 5", "no", "regular expression"]),
}


def test_the_example_is_right() -> None:
    assert len(read_recipe(EXAMPLE, "mymodel.yaml", COMMON).rules) == 1 + 2 * 4 + 2 + 1


@pytest.mark.parametrize("what", WRONG)
def test_it_is_told_with_its_line(what: str) -> None:
    was, wrong, words = WRONG[what]
    assert was in EXAMPLE
    with pytest.raises(StrategyError) as told:
        read_recipe(EXAMPLE.replace(was, wrong, 1), "mymodel.yaml", COMMON)
    assert told.value.where == "mymodel.yaml"
    assert not [word for word in words if word not in told.value.message], told.value.message


def test_all_of_it_is_told_at_once() -> None:
    wrong = EXAMPLE.replace("vocab hidden", "vocab hiden").replace("(heads head)", "(heads hed)")
    with pytest.raises(StrategyError) as told:
        read_recipe(wrong, "mymodel.yaml", COMMON)
    assert [line.split(":")[0] for line in told.value.message.splitlines()] == ["line 7", "line 11", "line 12"]

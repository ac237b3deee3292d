"""Embedding and output layer: made one, made two, given other numbers of rows, whatever the checkpoint calls them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from making import array, counted, read_file, write_file
from reshard import convert, plan
from reshard.errors import CheckpointError, PlanError, UsageError
from reshard.names.wishes import Naming
from reshard.ops.options import Options

HF = {"embedding": "model.embed_tokens.weight", "head": "lm_head.weight", "norm": "model.norm.weight"}
OWN = {"embedding": "model.tok_embeddings.embedding_weight", "head": "lm_head.weight", "norm": "model.norm_out.weight"}


def written(tmp_path: Path, names: dict[str, str], **changes: np.ndarray | None) -> Path:
    """A model of three tensors, of which the output layer is the embedding, and what says that it is a Llama."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    values = {"embedding": counted(6, 4), "head": counted(6, 4), "norm": counted(4), **changes}
    return write_file(tmp_path / "full.ckpt", {names[key]: v for key, v in values.items() if v is not None})


def made(src: Path, naming: Naming) -> dict[str, np.ndarray]:
    target = src.parent / "target.ckpt"
    convert(src, target, Options(naming=naming))
    return read_file(target)


@pytest.mark.parametrize("names", [HF, OWN], ids=["hf", "mindformers"])
def test_an_output_layer_that_is_the_embedding_is_left_out(tmp_path: Path, names: dict[str, str]) -> None:
    assert sorted(made(written(tmp_path, names), Naming(tied="drop"))) == sorted((names["embedding"], names["norm"]))


@pytest.mark.parametrize("names", [HF, OWN], ids=["hf", "mindformers"])
def test_one_that_differs_is_not(tmp_path: Path, names: dict[str, str]) -> None:
    with pytest.raises(CheckpointError, match="lm_head"):
        made(written(tmp_path, names, head=counted(6, 4) + 1), Naming(tied="drop"))
    assert not (tmp_path / "target.ckpt").exists()


@pytest.mark.parametrize("names", [HF, OWN], ids=["hf", "mindformers"])
def test_the_embedding_is_taken_for_an_output_layer_that_is_not_there(tmp_path: Path, names: dict[str, str]) -> None:
    found = made(written(tmp_path, names, head=None), Naming(tied="copy"))
    assert np.array_equal(found[names["head"]], counted(6, 4))


@pytest.mark.parametrize("rows", [4, 9])
@pytest.mark.parametrize("names", [HF, OWN], ids=["hf", "mindformers"])
def test_another_number_of_rows(tmp_path: Path, names: dict[str, str], rows: int) -> None:
    found = made(written(tmp_path, names), Naming(vocab_rows=rows))
    wanted = np.zeros((rows, 4), np.float32)
    wanted[: min(rows, 6)] = counted(6, 4)[:rows]
    assert np.array_equal(found[names["embedding"]], wanted)
    assert np.array_equal(found[names["head"]], wanted)


@pytest.mark.parametrize("rows", [4, 9])
@pytest.mark.parametrize("dst", ["", "mcore", "mindformers"])
def test_what_the_optimizer_keeps_of_each_row_goes_with_it(tmp_path: Path, dst: str, rows: int) -> None:
    moments = {f"adam_m.{name}": counted(6, 4) + 7 for name in (HF["embedding"], HF["head"])}
    source = read_file(written(tmp_path, HF, head=counted(6, 4) + 1))
    found = made(write_file(tmp_path / "full.ckpt", {**source, **moments}), Naming(dst=dst, vocab_rows=rows))
    kept = [found[name] for name in found if name.startswith("adam_m.")]
    assert len(kept) == 2
    wanted = np.zeros((rows, 4), np.float32)
    wanted[: min(rows, 6)] = (counted(6, 4) + 7)[:rows]
    assert all(np.array_equal(each, wanted) for each in kept)


def test_of_what_the_optimizer_keeps_otherwise_nobody_knows_the_rows(tmp_path: Path) -> None:
    states = {f"exp_avg_sq_row.{HF['embedding']}": counted(6)}
    with pytest.raises(PlanError, match=r"exp_avg_sq_row\.model\.embed_tokens\.weight: keeps its rows"):
        made(write_file(tmp_path / "full.ckpt", {**read_file(written(tmp_path, HF)), **states}), Naming(vocab_rows=9))


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("dst", ["", "mindformers"])
def test_factors_of_an_adapter_keep_their_rows(tmp_path: Path, dst: str, alone: bool) -> None:
    factors = {"lm_head.lora_A.weight": counted(2, 4), "lm_head.lora_B.weight": counted(6, 2)}
    base = {} if alone else read_file(written(tmp_path, HF))
    source = write_file(tmp_path / "full.ckpt", {**base, **factors})
    with pytest.raises(PlanError, match=r"lm_head\.lora_B\.weight: it is of the rows that lm_head\.weight has"):
        made(source, Naming(dst=dst, vocab_rows=9))
    assert len(made(source, Naming(dst=dst, vocab_rows=6))) == len(base) + 2


@pytest.mark.parametrize("scale", [2.0, 3.0])
def test_equal_codes_by_other_scales_are_not_one(tmp_path: Path, scale: float) -> None:
    codes = array((6, 4), "float8_e4m3fn", seed=1)
    tensors = {"model.norm.weight": counted(4)}
    for name, factor in ((HF["embedding"], 2.0), (HF["head"], scale)):
        tensors |= {name: codes, f"{name}_scale_inv": np.full((1, 1), factor, np.float32)}
    written(tmp_path, HF)
    source = write_file(tmp_path / "full.safetensors", tensors)
    if scale == 2:
        assert HF["head"] not in made(source, Naming(tied="drop", dequantize=True))
    else:
        with pytest.raises(
            CheckpointError, match=r"lm_head\.weight_scale_inv and model\.embed_tokens\.weight_scale_inv"
        ):
            made(source, Naming(tied="drop", dequantize=True))


def test_what_the_optimizer_keeps_of_an_output_layer_is_left_out_with_it(tmp_path: Path) -> None:
    states = {f"adam_m.{name}": counted(6, 4) for name in (HF["embedding"], HF["head"])}
    source = write_file(tmp_path / "full.ckpt", {**read_file(written(tmp_path, HF)), **states})
    assert "adam_m.lm_head.weight" not in made(source, Naming(tied="drop"))


@pytest.mark.parametrize("states", [True, False])
def test_an_output_layer_that_is_made_has_no_states_and_that_is_told(tmp_path: Path, states: bool) -> None:
    kept = {f"adam_m.{HF['embedding']}": counted(6, 4)} if states else {}
    source = write_file(tmp_path / "full.ckpt", {**read_file(written(tmp_path, HF, head=None)), **kept})
    planned = plan(source, None, Options(naming=Naming(tied="copy")))
    told = [warning for warning in planned.warnings if "without what the optimizer keeps" in warning]
    assert len(told) == states


def test_names_of_which_nobody_knows_what_is_the_embedding(tmp_path: Path) -> None:
    src = write_file(tmp_path / "full.ckpt", {"a": counted(6, 4), "b": counted(6, 4)})
    with pytest.raises((CheckpointError, UsageError), match=r"not known of these names|no recipe knows"):
        made(src, Naming(tied="drop"))

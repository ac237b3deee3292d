"""Heads that are their model's embedding, where an adapter has that embedding whole: as PEFT leaves them."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import reshard
from making import read_file, write_file
from reshard.errors import PlanError, UsageError
from reshard.names.wishes import Naming
from reshard.ops.options import Options
from reshard.planning.shares import Share

OLD, NEW = np.zeros((8, 4), np.float32), np.ones((8, 4), np.float32)
Arrays = dict[str, np.ndarray]


def merged(
    tmp_path: Path,
    base: Arrays,
    adapter: Arrays,
    said: dict[str, object] | None,
    options: Options | None = None,
    **config: object,
) -> Arrays:
    write_file(tmp_path / "base" / "m.safetensors", {"q.weight": np.zeros((3, 4), np.float32), **base})
    if said is not None:
        (tmp_path / "base" / "config.json").write_text(json.dumps(said))
    q = {"q.lora_A.weight": np.ones((1, 4), np.float32), "q.lora_B.weight": np.ones((3, 1), np.float32)}
    named = {f"base_model.model.{name}": array for name, array in {**q, **adapter}.items()}
    write_file(tmp_path / "adapter" / "adapter_model.safetensors", named)
    content = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, **config}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(content))
    how = reshard.lora_config(adapter=str(tmp_path / "adapter"))
    done = reshard.merge_lora(
        tmp_path / "base", tmp_path / "out.safetensors", how, options, adapter=tmp_path / "adapter"
    )
    (tmp_path / "said").write_text("\n".join(done.bill.warnings))
    return read_file(tmp_path / "out.safetensors")


HEADS = {
    "m.embed_tokens.weight LlamaForCausalLM": "lm_head.weight",
    "m.wte.weight GPT2LMHeadModel": "lm_head.weight",
    "m.word_embeddings.weight BloomForCausalLM": "lm_head.weight",
    "shared.weight T5ForConditionalGeneration": "lm_head.weight",
    "m.decoder.embed_tokens.weight WhisperForConditionalGeneration": "proj_out.weight",
    "m.embed_in.weight GPTNeoXForCausalLM": "embed_out.weight",
    "m.embed_tokens.weight LlamaForSequenceClassification": "",
    "bert.embeddings.word_embeddings.weight BertForTokenClassification": "",
    "wte.weight GPT2Model": "",
}


@pytest.mark.parametrize("tied", [True, None, False])
@pytest.mark.parametrize("model", HEADS)
def test_the_head_stays_as_it_was(tmp_path: Path, model: str, tied: bool | None) -> None:
    """Of a base without a head's weight; what its configuration does not say, its class does."""
    embedding, architecture = model.split()
    said = {"architectures": [architecture], **({} if tied is None else {"tie_word_embeddings": tied})}
    found = merged(tmp_path, {embedding: OLD}, {embedding: NEW}, said)
    head = "" if tied is False else HEADS[model]
    assert found.keys() == {"q.weight", embedding} | ({head} if head else set())
    np.testing.assert_array_equal(found[embedding], NEW)
    np.testing.assert_array_equal(found.get(head, OLD), OLD)


@pytest.mark.parametrize("ensured", [True, False])
def test_a_head_that_stays_tied(tmp_path: Path, ensured: bool) -> None:
    """An adapter that has both is tied where their bytes are one: PEFT saves both of tied ones, too, and where
    ensure_weight_tying does not reach them two that differ.
    """
    base, said = {"embed_tokens.weight": OLD}, {"architectures": ["LlamaForCausalLM"]}
    both = {"embed_tokens.weight": NEW, "lm_head.weight": NEW}
    found = merged(tmp_path / "a", base, both, said, ensure_weight_tying=ensured)
    assert found.keys() == {"q.weight", "embed_tokens.weight"}
    np.testing.assert_array_equal(found["embed_tokens.weight"], NEW)
    found = merged(tmp_path / "b", base, {**both, "lm_head.weight": NEW + 1}, said, ensure_weight_tying=ensured)
    np.testing.assert_array_equal(found["lm_head.weight"], NEW + 1)
    found = merged(tmp_path / "c", base, {"embed_tokens.weight": NEW}, said, ensure_weight_tying=ensured)
    np.testing.assert_array_equal(found["lm_head.weight"], OLD)


def test_a_copy_of_a_tied_head_gets_what_its_embedding_gets(tmp_path: Path) -> None:
    """PEFT saves embeddings beside factors, with save_embedding_layers the head as well."""
    a, b = np.ones((1, 8), np.float32), np.ones((4, 1), np.float32)
    factors = {"embed_tokens.lora_embedding_A": a, "embed_tokens.lora_embedding_B": b}
    copies = {"embed_tokens.base_layer.weight": OLD, "lm_head.weight": OLD}
    said = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    found = merged(tmp_path, {"embed_tokens.weight": OLD}, {**factors, **copies}, said)
    assert found.keys() == {"q.weight", "embed_tokens.weight"}
    np.testing.assert_array_equal(found["embed_tokens.weight"], NEW)


def test_a_head_that_the_base_has_twice(tmp_path: Path) -> None:
    """As the embedding once more, as torch saves it: what is added to one is added to both where they are tied."""
    base = {"embed_tokens.weight": OLD, "lm_head.weight": OLD}
    a, b = np.ones((1, 4), np.float32), np.ones((8, 1), np.float32)
    factors = {"lm_head.lora_A.weight": a, "lm_head.lora_B.weight": b}
    found = merged(tmp_path / "tied", base, factors, {"tie_word_embeddings": True})
    assert found.keys() == {"q.weight", "embed_tokens.weight"}
    np.testing.assert_array_equal(found["embed_tokens.weight"], NEW)
    found = merged(tmp_path / "untied", base, factors, {"tie_word_embeddings": False})
    np.testing.assert_array_equal(found["embed_tokens.weight"], OLD)
    np.testing.assert_array_equal(found["lm_head.weight"], NEW)
    with pytest.raises(PlanError, match="nothing tells whether what is added to one changes both"):
        merged(tmp_path / "unknown", base, factors, {})
    assert merged(tmp_path / "others", base, {}, {}).keys() == {"q.weight", *base}


def test_equal_codes_by_other_scales_are_no_head_that_the_base_has_twice(tmp_path: Path) -> None:
    codes = np.ones((8, 4), ml_dtypes.float8_e4m3fn)
    base = {"embed_tokens.weight": codes, "lm_head.weight": codes}
    base |= {f"{name}_scale_inv": np.full((1, 1), 2, np.float32) for name in base}
    factors = {"lm_head.lora_A.weight": NEW[:1], "lm_head.lora_B.weight": NEW[:, :1]}
    options = Options(naming=Naming(dequantize=True), dtype="float32")
    with pytest.raises(PlanError, match="nothing tells whether what is added to one changes both"):
        merged(tmp_path / "one", base, factors, {}, options)
    base["lm_head.weight_scale_inv"] = np.full((1, 1), 3, np.float32)
    found = merged(tmp_path / "two", base, factors, {}, options)
    np.testing.assert_array_equal(found["lm_head.weight"], NEW * 4)
    np.testing.assert_array_equal(found["embed_tokens.weight"], NEW * 2)


GROWN = np.ones((9, 4), np.float32)


@pytest.mark.parametrize("base", [{"embed_tokens.weight": OLD, "lm_head.weight": OLD}, {"embed_tokens.weight": OLD}])
def test_one_side_of_a_grown_vocabulary_is_refused(tmp_path: Path, base: Arrays) -> None:
    said: dict[str, object] = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": len(base) == 1}
    with pytest.raises(PlanError, match=r"would have 9 rows, and lm_head\.weight 8"):
        merged(tmp_path / "a", base, {"embed_tokens.weight": GROWN}, said)
    both = {"embed_tokens.weight": GROWN, "lm_head.weight": GROWN + 1}
    assert merged(tmp_path / "b", base, both, said)["lm_head.weight"].shape == (9, 4)


def test_what_nothing_tells_is_said_or_refused(tmp_path: Path) -> None:
    embedding = "bert.embeddings.word_embeddings.weight"
    with pytest.raises(PlanError, match="what the head that is tied to it is called is not known"):
        merged(tmp_path / "a", {embedding: OLD}, {embedding: NEW}, {"architectures": ["BertForMaskedLM"]})
    found = merged(tmp_path / "b", {embedding: OLD}, {embedding: NEW}, None)
    assert found.keys() == {"q.weight", embedding}
    assert "is not known without the base's config.json" in (tmp_path / "b" / "said").read_text()


@pytest.mark.parametrize("head", ["lm_head", "proj_out"])
def test_factors_of_a_head_change_both_sides(tmp_path: Path, head: str) -> None:
    a, b = np.ones((1, 4), np.float32), np.ones((8, 1), np.float32)
    factors = {f"{head}.lora_A.weight": a, f"{head}.lora_B.weight": b}
    found = merged(tmp_path, {"embed_tokens.weight": OLD}, factors, {"tie_word_embeddings": True})
    np.testing.assert_array_equal(found["embed_tokens.weight"], NEW)


def test_bases_that_are_told_otherwise_do_not_fill_one_target(tmp_path: Path) -> None:
    """The configuration beside the base decides which tensors there are: files of the same bytes are not enough."""
    merged(tmp_path, {"embed_tokens.weight": OLD}, {"embed_tokens.weight": NEW}, {"tie_word_embeddings": True})
    how = reshard.lora_config(adapter=str(tmp_path / "adapter"))

    def share(index: int) -> None:
        options = reshard.Options(to="parts", max_shard_nbytes=100, share=Share(index, 2))
        reshard.merge_lora(tmp_path / "base", tmp_path / "parts", how, options, adapter=tmp_path / "adapter")

    share(0)
    (tmp_path / "base" / "config.json").write_text(json.dumps({"tie_word_embeddings": False}))
    with pytest.raises(UsageError, match="what differs: tensors taken"):
        share(1)

"""Names of another kind than the target's are seen as that; a part of the same names is not."""

from __future__ import annotations

import pytest

from reshard.errors import PlanError
from reshard.planning.other_names import refuse_other_names

OURS = [f"model.layers.{n}.attention.{w}.weight" for n in range(4) for w in ("wq", "wk", "wv", "wo")] + [
    "lm_head.weight"
]
THEIRS = [f"model.layers.{n}.self_attn.{w}_proj.weight" for n in range(4) for w in "qkvo"] + ["lm_head.weight"]


@pytest.mark.parametrize(
    ("source", "kind"),
    [(THEIRS, "Hugging Face's names"), ([f"decoder.{n}" for n in OURS], "names of another kind")],
)
def test_refused_by_kind(source: list[str], kind: str) -> None:
    with pytest.raises(PlanError, match=kind) as caught:
        refuse_other_names(source, [*OURS, *(f"adam_m.{n}" for n in OURS)])
    assert "--missing" not in caught.value.hint
    assert "--dst-names mindformers" in caught.value.hint


def test_megatron_s_names_and_a_strategy_of_hugging_face_s() -> None:
    megatron = [f"decoder.layers.{n}.self_attention.linear_proj.weight" for n in range(4)]
    with pytest.raises(PlanError, match="names of another kind") as caught:
        refuse_other_names(["embedding.word_embeddings.weight", *megatron], THEIRS)
    assert "--dst-names hf" in caught.value.hint


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (OURS[:3], OURS),
        (OURS, OURS[:1]),
        ([*OURS[:8], *THEIRS], OURS),
        ([f"adam_m.{n}" for n in OURS], OURS),
        (OURS, []),
    ],
)
def test_a_part_of_the_same_is_no_other_kind(source: list[str], target: list[str]) -> None:
    refuse_other_names(source, target)

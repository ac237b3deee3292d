"""A source and a target that call their weights by names of different kinds: hardly one fits."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from itertools import islice

from reshard.errors import PlanError
from reshard.planning.names import is_lora, is_state

_HUGGING_FACE = re.compile(
    r"self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj|embed_tokens|input_layernorm|post_attention_layernorm"
    r"|self_attention\.(?:dense|query_key_value)|(?<!^embedding\.)(?<!^model\.embedding\.)word_embeddings\.weight"
)
_FEW = 0.1


def refuse_other_names(source: Collection[str], target: Collection[str]) -> None:
    """Raises PlanError where hardly a weight of either side has its name on the other.

    Args:
        source: the names that the source's tensors will have.
        target: names that the target's strategy has.
    """
    if _enough(source, target):
        return
    theirs = _weights(target)
    ours = _weights(source) if theirs else {}
    shared = sum(name in theirs for name in ours)
    fewest = min(len(ours), len(theirs))
    if fewest < 2 or shared > _FEW * fewest:  # one name is no kind: a part of a checkpoint may hold no more
        return
    first = next(name for name in ours if name not in theirs)
    other = next(name for name in theirs if name not in ours)
    kind = "Hugging Face's names" if of_hugging_face(ours) else "names of another kind"
    wanted = "hf" if of_hugging_face(theirs) else "mindformers or mcore, as the job's model is"
    raise PlanError(
        f"almost no name fits: the source has {kind} ({first}), the target's strategy {other}; "
        f"of {len(theirs):,} weights {shared:,} are in both",
        hint=f"--dst-names {wanted}, or --rename",
    )


def of_hugging_face(names: Iterable[str]) -> bool:
    """Whether some are as Hugging Face calls weights."""
    return any(map(_HUGGING_FACE.search, names))


def _enough(source: Collection[str], target: Collection[str]) -> bool:
    """Whether so many fit that they are more than a few of all names; then not all need be looked at."""
    fitting = (name for name in source if name in target and _is_weight(name))
    enough = int(_FEW * min(len(source), len(target))) + 1
    return len(list(islice(fitting, enough))) == enough


def _weights(names: Iterable[str]) -> dict[str, None]:
    return dict.fromkeys(filter(_is_weight, names))


def _is_weight(name: str) -> bool:
    return not is_state(name) and not is_lora(name)

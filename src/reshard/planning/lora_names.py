"""Names of what an adapter holds: PEFT's, MindFormers' and those of models with adapters in them."""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Literal

from msgspec import Struct

from reshard.planning.names import is_state

LoraPart = Literal["a", "b", "embedding_a", "embedding_b", "bias", "magnitude", "tokens", "times"]
"""A tensor's part in an adapter: the factors of a layer or an embedding, the bias of B, what DoRA scales by, the
rows of some tokens, and by what (IA)³ multiplies outputs or inputs.
"""

EXPERTS = (".weight1", ".weight2")
"""Ends of what MindFormers' PyNative trainer calls the weights of all experts of a layer."""
_PART = re.compile(
    r"(?P<experts>.+\.weight[12])_lora_(?P<order>[ab])"
    r"|(?P<module>.+?)\.(?:mindpet_delta_lora_(?P<mindpet>[ab])"
    r"|lora_(?P<factor>[ABab])(?:\.(?:[^.]+\.)?weight)?"
    r"|lora_embedding_(?P<embedding>[AB])(?:\.[^.]+)?"
    r"|lora_B(?:\.[^.]+)?\.(?P<bias>bias)"
    r"|lora_(?P<magnitude>magnitude_vector)(?:\.[^.]+){0,2}"
    r"|(?:token_adapter\.)?(?P<tokens>trainable_tokens_delta)(?:\.[^.]+)?"
    r"|(?P<times>ia3_l)(?:\.[^.]+)?)"
)
_FRONT = "base_model.model."
_WRAPPERS = re.compile(
    r"\.token_adapter(?=\.base_layer\.)|\.base_layer(?=\.|$)|\.(?:modules_to_save|ln_tuning_layers)(?:\.[^.]+)?(?=\.)|\.original_module(?=\.)"
)
_ORIGINAL = ".original_module."
_WHOLE = re.compile(r"\.(?:modules_to_save|ln_tuning_layers)(?=\.)")
_BESIDE = re.compile(r"\.token_adapter\.(?!trainable_tokens_delta|base_layer)")
_OTHER_STYLES = {
    re.compile(r"\.lora_(?:down|up|mid)\.weight$|^lora_(?:unet|te\d?|transformer)_"): "kohya's",
    re.compile(r"\.lora\.(?:down|up)\.weight$|\.lora_linear_layer\.|_lora\.(?:down|up)\.weight$"): "old diffusers'",
    re.compile(r"\.(?:hada_w|lokr_w|oft_[rRs]|boft_[rRs]|vera_lambda|randlora_)"): "of another method",
    re.compile(r"\.adapter\.linear_(?:in|out)\."): "Megatron Bridge's and NeMo's",
}
_ANY_LORA = re.compile("lora", re.IGNORECASE)


class LoraName(Struct, frozen=True):
    """A name taken apart. ``module`` is the layer that it belongs to, as the adapter calls it."""

    module: str
    kind: LoraPart

    @property
    def layer(self) -> str:
        """The layer as its model calls it, without what PEFT puts in front and between."""
        return model_name(self.module)


def lora_name(name: str) -> LoraName | None:
    """
    >>> lora_name("layers.0.wq.mindpet_delta_lora_a")
    LoraName(module='layers.0.wq', kind='a')
    >>> lora_name("base_model.model.q_proj.lora_B.default.weight").layer
    'q_proj'
    >>> lora_name("layers.0.mlp.experts.weight1_lora_a")
    LoraName(module='layers.0.mlp.experts.weight1', kind='b')
    >>> lora_name("base_model.model.q_proj.lora_magnitude_vector.default.weight").kind
    'magnitude'
    """
    found = _PART.fullmatch(name)
    if found is None or is_state(name):
        return None
    if found["experts"]:  # [expert, in, rank] @ [expert, rank, out], in the order of their names: B is what comes first
        return LoraName(found["experts"], "b" if found["order"] == "a" else "a")
    if factor := found["mindpet"] or found["factor"]:
        return LoraName(found["module"], "a" if factor in "aA" else "b")
    if found["embedding"]:
        return LoraName(found["module"], "embedding_a" if found["embedding"] == "A" else "embedding_b")
    alone: tuple[LoraPart, ...] = ("bias", "magnitude", "tokens", "times")
    return LoraName(found["module"], next(part for part in alone if found[part]))


def model_name(name: str) -> str:
    """A name as the model has it that no adapter is in.

    >>> model_name("base_model.model.lm_head.base_layer.weight"), model_name("h.modules_to_save.default.weight")
    ('lm_head.weight', 'h.weight')
    >>> model_name("norm.modules_to_save.bias")
    'norm.bias'
    """
    return _WRAPPERS.sub("", name.removeprefix(_FRONT))


def is_beside(name: str) -> bool:
    """Whether PEFT keeps it beside what an adapter is, and no weight is made of it."""
    return _BESIDE.search(name) is not None


def is_original(name: str) -> bool:
    """Whether it is the model's own that something trained whole stands in place of."""
    return _ORIGINAL in name


def is_whole(name: str) -> bool:
    """Whether it is of a layer that was trained whole."""
    return _WHOLE.search(name) is not None


def whole_module(name: str) -> str:
    """What a layer that was trained whole is called last; "" where the name tells of none.

    >>> whole_module("base_model.model.score.modules_to_save.default.weight"), whole_module("score.weight")
    ('score', '')
    """
    return _WHOLE.split(name)[0].rpartition(".")[2] if is_whole(name) else ""


def is_repeated(name: str, names: Container[str]) -> bool:
    """Whether what was trained whole is among ``names`` under its plain name, too: biases are, with ``bias: all``."""
    return is_whole(name) and _WHOLE.sub("", name) in names


def foreign_style(name: str) -> str:
    """Of whose adapters a name is, where they are not merged; "" for what seems to be no adapter's.

    >>> foreign_style("lora_unet_down_blocks_0.lora_up.weight"), foreign_style("q.lora_E"), foreign_style("q.weight")
    ("kohya's", 'of a kind that cannot be merged', '')
    """
    for pattern, whose in _OTHER_STYLES.items():
        if pattern.search(name):
            return whose
    return "of a kind that cannot be merged" if seems_lora(name) else ""


def seems_lora(name: str) -> bool:
    """Whether an adapter may be meant, and no state of an optimizer."""
    return _ANY_LORA.search(name) is not None and not is_state(name)

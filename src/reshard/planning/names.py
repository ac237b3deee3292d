"""What a tensor's name tells: optimizer state, accumulated gradient, LoRA, layer number."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from msgspec import Struct

from reshard.closest import closest_pattern, did_you_mean
from reshard.errors import UsageError

_STATE = re.compile(
    r"(?:(?:adam_[mv]|accu_grads|accum|moments?\d?|momentum(?:_buffer)?|exp_avg\w*|max_exp_avg_sq|muon_m|v_?hat|step|fp32)\."
    r"|exp_avg_(?:sq|insta)_(?:row_|col_)?)(.+)|(?:chained_\d+\.)?(?:optim|optimizers?)(?:_states?(?:_dicts?)?)?\..+"
    r"|(?:.+\.)?(?:optim|optimizers?)(?:_\d+)?\.(?:[^.]+\.)?(?:state|param_groups)\..+"
    # what torch's optimizers call the states of a parameter, by its name or its number, under whatever name they lie
    r"|(?:.+\.)?state\..+\.(?:step|(?:max_)?exp_avg\w*|exp_inf|momentum_buffer|square_avg)"
    r"|(?:.+\.)?state\.\d+\.(?:step_size|grad_avg|acc_delta|sum|prev|mu(?:_product)?|eta|ax|(?:row|col)_var|variance)"
)
_NUMBERS = frozenset({"global_step", "learning_rate", "beta1_power", "beta2_power"})
_LORA = re.compile(r"(?:^|[._])lora_[abAB](?:$|[._])|mindpet_delta_lora")
_OF_PEFT = "base_model.model."
_WITHOUT_FACTORS = re.compile(r"\.(?:ia3_l|ln_tuning_layers|trainable_tokens_delta)(?:$|\.)")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def is_state(name: str) -> bool:
    """Whether the name is that of an optimizer state or accumulated gradient.

    >>> is_state("adam_m.lm_head.weight"), is_state("exp_avg_sq_row_w"), is_state("lm_head.weight")
    (True, True, False)
    """
    return _STATE.fullmatch(name) is not None


def is_of_optimizer(name: str) -> bool:
    """Whether the optimizer has it and the model has not: states, and numbers as its step.

    >>> is_of_optimizer("adam_m.lm_head.weight"), is_of_optimizer("global_step"), is_of_optimizer("step.weight.w")
    (True, True, True)
    """
    return name in _NUMBERS or is_state(name)


def weight_of_state(name: str) -> str:
    """The weight that a state belongs to; the name itself when it is no state.

    >>> weight_of_state("adam_m.lm_head.weight")
    'lm_head.weight'
    """
    found = _STATE.fullmatch(name)
    return found[1] or name if found else name


def is_lora(name: str) -> bool:
    """
    >>> is_lora("layers.0.wq.mindpet_delta_lora_a"), is_lora("explora_a.weight")
    (True, False)
    """
    return _LORA.search(name) is not None


def is_adapter(names: Collection[str]) -> bool:
    """Whether these are of an adapter alone: its factors, or what other kinds train, and what it trained whole under
    PEFT's prefix.

    >>> is_adapter(["base_model.model.q.lora_A.weight", "base_model.model.norm.weight"]), is_adapter(["q.lora_A", "q"])
    (True, False)
    """
    trained = any(is_lora(name) or _WITHOUT_FACTORS.search(name) for name in names)
    return trained and all(name.startswith(_OF_PEFT) or is_lora(name) for name in names)


def compiled(pattern: str) -> re.Pattern[str]:
    """Raises UsageError for what is no regular expression."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"{pattern!r} is not a regular expression: {error}", hint="a \\ before [ ( + * means the character itself"
        ) from None


def call(taken: dict[str, str], renamed: str, name: str) -> None:
    """Note what a name becomes. Raises UsageError where another becomes the same."""
    if renamed in taken:
        raise UsageError(f"{taken[renamed]} and {name} would both be called {renamed}", hint="check --rename")
    taken[renamed] = name


def no_match(pattern: str, names: Collection[str]) -> str:
    """What to say of a regular expression that matches no name; "" where it matches one.

    >>> no_match("querry", ["layers.0.query.weight"])
    "'querry' matches none of 1 names; did you mean 'query'?"
    """
    if any(re.search(pattern, name) for name in names):
        return ""
    meant = closest_pattern(pattern, names)
    return f"{pattern!r} matches none of {len(names):,} names" + (f"; {did_you_mean([meant])}" if meant else "")


def layer_pattern(name: str) -> str:
    """The name with its numbers replaced, so that layers of a kind look alike.

    >>> layer_pattern("model.layers.7.wq.weight")
    'model.layers.#.wq.weight'
    """
    return _NUMBER.sub("#", name)


def layer_numbers(name: str) -> list[str]:
    """The numbers that ``layer_pattern`` replaces, as they are written.

    >>> layer_numbers("model.layers.7.experts.12.w")
    ['7', '12']
    """
    return _NUMBER.findall(name)


def folded(lines: Iterable[str]) -> list[str]:
    """Lines that differ only in a layer's number as one, with how many they are.

    >>> folded(["a.0.w: cut", "a.1.w: cut", "b: whole"])
    ['a.#.w: cut  (2 layers)', 'b: whole']
    """
    kinds: dict[str, list[str]] = {}
    for line in lines:
        kinds.setdefault(layer_pattern(line), []).append(line)
    return [same[0] if len(same) == 1 else f"{kind}  ({len(same)} layers)" for kind, same in kinds.items()]


class NameRules(Struct, frozen=True):
    """Which tensors to take (``include``, ``exclude``: searched as regular expressions) and what to call them.

    ``rename`` holds (regular expression, replacement) pairs, applied in order, as ``re.sub`` does. ``weights_only``
    takes no optimizer states.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()
    weights_only: bool = False

    def __post_init__(self) -> None:
        for pattern in (*self.include, *self.exclude, *(p for p, _ in self.rename)):
            compiled(pattern)

    @property
    def narrow(self) -> bool:
        """Whether they leave anything out."""
        return bool(self.include or self.exclude or self.weights_only)

    def takes(self, name: str, *, weight: bool = False) -> bool:
        return not self.why_not(name, weight=weight)

    def why_not(self, name: str, *, weight: bool = False) -> str:
        """What leaves a tensor out; "" for one that is taken.

        Args:
            weight: it is known to be no state of an optimizer.
        """
        if self.weights_only and not weight and is_of_optimizer(name):
            return "optimizer states, by --weights-only"
        taken = not self.include or any(re.search(p, name) for p in self.include)
        if taken and not any(re.search(p, name) for p in self.exclude):
            return ""
        return "by --include / --exclude"

    def idle(self, names: Collection[str]) -> tuple[str, ...]:
        """A warning for each pattern that matches no name: it does not do what somebody wrote it for."""
        given = [("--include", p) for p in self.include] + [("--exclude", p) for p in self.exclude]
        given += [("--rename", p) for p, _ in self.rename]
        return tuple(f"{option}: {no_match(p, names)}" for option, p in given if no_match(p, names))

    def called(self, names: Iterable[str]) -> dict[str, str]:
        """Those of the names that are taken, by what they become. Raises UsageError for two that become one."""
        taken: dict[str, str] = {}
        for name in filter(self.takes, names):
            call(taken, self.renamed(name), name)
        return taken

    def renamed(self, name: str) -> str:
        for pattern, replacement in self.rename:
            try:
                name = re.sub(pattern, replacement, name)
            except (re.error, IndexError) as error:
                raise UsageError(f"rename {pattern!r} => {replacement!r}: {error}") from None
        return name

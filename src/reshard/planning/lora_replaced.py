"""Weights of the base that an adapter replaces: layers trained whole, biases, copies of embeddings and heads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from msgspec.structs import replace

from reshard.dtypes import FLOATING
from reshard.planning.catalog import Loose, Shard, Tensor, part_of
from reshard.planning.lora_names import is_original, is_repeated, lora_name, model_name
from reshard.planning.lora_values import Adapter, How

_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "tok_embeddings.weight",
    "shared.weight",
    "tok_embeddings.embedding_weight",
)
_COPY = ".base_layer."
_HEAD = "lm_head.weight"
_HEADS = (_HEAD, "proj_out.weight", "embed_out.weight")


class Replacing:
    """The base's tensors while an adapter's take the place of some.

    Attributes:
        tensors: by the names that the model gives them.
        replaced: names whose first tensor is the base's no more.
        config: what the model's configuration has to say from now on.
        stays_tied: the head is the adapter's embedding, too.
    """

    def __init__(self, base: Mapping[str, Tensor], how: How) -> None:
        self.tensors = {name: replace(t, name=name) for t in base.values() if (name := model_name(t.name))}
        self.replaced: dict[str, None] = {}
        self._copies: dict[str, Tensor] = {}
        self._copied: set[str] = set()
        self.warnings: list[str] = []
        self.config: dict[str, int] = {}
        self._base = dict(self.tensors)
        self._model = how.model
        self._of_others = not how.own_names
        self._untied = False
        self.stays_tied = False

    def replace(self, wanted: str, name: str, tensor: Tensor, module: str) -> str:
        """Put the adapter's ``tensor`` in place of ``wanted``; gives what does not fit, or "".

        Args:
            module: that was trained whole and has it; "" for none. One that the base has not, under whatever name, is
                written as it is: a classifier on a model of language.
        """
        copied = is_copy(name)
        if copied and self.is_tied(wanted):
            wanted = self.embedding  # what a tied head is added to
        base = self._base.get(wanted)
        if base is None:
            if not (said := self._anew(wanted, module)):
                return f"{name}: the base has no {wanted} that it would replace"
            self.warnings.append(said)
            base = tensor
        shape, old = tensor.spec.shape, base.spec.shape
        if len(shape) != len(old) or shape[1:] != old[1:]:
            return f"{name}: {list(shape)} would replace {wanted} {list(old)}"
        if {tensor.spec.dtype, base.spec.dtype} - FLOATING and tensor.spec.dtype != base.spec.dtype:
            return f"{name}: {tensor.spec} would replace {wanted} of {base.spec.dtype}"
        if wanted in self._copied and copied and self.tensors[wanted].spec == tensor.spec:
            self._compare(wanted, tensor)
            return ""
        if wanted in self.replaced:
            return f"{name}: a second replacement of {wanted}"
        if shape != old:
            self._grow(wanted, old[0], shape[0])
        elif copied:
            self._compare(wanted, tensor)
        self.replaced[wanted] = None
        self._copied |= {wanted} if copied else set()
        self._untied |= not copied and wanted == self.embedding
        self.tensors[wanted] = replace(tensor, name=wanted, known=base.known, compared=False, cast_to=base.wanted_dtype)
        return ""

    @property
    def instead(self) -> tuple[str, ...]:
        """Names of the base's weights that others stand in place of."""
        return tuple(name for name in self.replaced if name in self._base)

    def _anew(self, wanted: str, module: str) -> str:
        """What to say of a weight that the base does not have and that is written; "" for one that is not."""
        if self.is_tied(wanted):
            self.config["tie_word_embeddings"] = False
            return (
                f"{wanted} is written, and the base has none: its head is tied to {self.embedding}, which stays "
                "as it is; config.json must say tie_word_embeddings: false"
            )
        if not module or is_head(wanted) or any(f"{module}." in name for name in self._base):
            return ""
        return (
            f"{wanted} is the adapter's, and the base has none: config.json must name the class that it was trained in"
        )

    def _grow(self, wanted: str, old: int, new: int) -> None:
        said = "vocab_size in config.json has to say so, where it is a vocabulary"
        self.warnings.append(f"{wanted}: {old:,} rows become {new:,}; {said}")
        if wanted.endswith((*_EMBEDDINGS, *_HEADS)):
            self.config["vocab_size"] = new

    def _compare(self, wanted: str, tensor: Tensor) -> None:
        """Note what both hold, where their bytes can tell whether it is the same."""
        base = self._copies.get(wanted, self._base[wanted])
        shards, itemsize = [], base.spec.itemsize
        (whole, *others) = tensor.shards
        plain = not others and whole.held and not whole.held[0].order
        if base.spec != tensor.spec or base.view or not plain:
            return
        for shard in base.shards:
            if not shard.held or shard.held[0].order:
                return
            held = shard.held if wanted in self._copies else shard.held[:1]
            shards.append(Shard(shard.box, (*held, part_of(whole.held[0], whole.box, shard.box, itemsize))))
        self._copies[wanted] = replace(base, shards=Loose(tuple(shards)))

    @property
    def copies(self) -> tuple[Tensor, ...]:
        """Weights of which the adapter has a copy in the same shape and dtype, held by both."""
        return tuple(self._copies.values())

    def is_tied(self, name: str) -> bool:
        """Whether it is a head's weight that the base does not have, as it is its embedding."""
        return name in _HEADS and bool(self.embedding)

    @cached_property
    def embedding(self) -> str:
        """The base's one embedding that a head may be tied to; "" where it has a head, or no such embedding."""
        if any(head in self._base for head in _HEADS):
            return ""
        found = [name for name in self._base if name.endswith(_EMBEDDINGS)]
        return found[0] if len(found) == 1 else ""

    def ends(self) -> Iterator[str]:
        """Leave the head as it was where its embedding is replaced; gives what does not fit of the two."""
        if fault := self._untie():
            yield fault
        heads = [name for name in self.tensors if name in _HEADS]
        embeddings = [name for name in self.tensors if name.endswith(_EMBEDDINGS)]
        if len(heads) == len(embeddings) == 1:
            rows, before = (
                [tensors[name].spec.shape[0] for name in (*embeddings, *heads) if name in tensors]
                for tensors in (self.tensors, self._base)
            )
            if len(set(rows)) > 1 and len(set(before)) == 1:
                differ = f"{embeddings[0]} would have {rows[0]:,} rows, and {heads[0]} {rows[1]:,}"
                yield f"{differ}: of a vocabulary that the training changed the adapter has one side alone"

    def _untie(self) -> str:
        """Where the adapter's embedding replaces one that a head is tied to, the head stays as it was, as in PEFT.

        Gives why that cannot be, or "".
        """
        embedding = self.embedding
        has_head = self.stays_tied or any(head in self.tensors for head in _HEADS)
        if not self._untied or has_head or not self._model.has_tied_head:
            return ""
        if self._model.is_unknown:
            self.warnings.append(
                f"{embedding} is the adapter's: whether a head is tied to it, which PEFT would leave as it was, is not "
                "known without the base's config.json"
            )
            return ""
        if self._of_others or embedding.endswith("embeddings.word_embeddings.weight"):
            return f"{embedding} is replaced, and what the head that is tied to it is called is not known"
        head = _HEAD
        if self._model.architecture.startswith("Whisper"):
            head = "proj_out.weight"
        elif embedding.endswith("embed_in.weight"):
            head = "embed_out.weight"
        self.tensors[head] = replace(self._base[embedding], name=head)
        self.config["tie_word_embeddings"] = False
        self.warnings.append(
            f"{embedding} is the adapter's, and {head}, which was tied to it, is written as the base's "
            "embedding: config.json must say tie_word_embeddings: false"
        )
        return ""


def both_ends(tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """An embedding, or rows of it, as held by its head, too, where both are of one shape, and so what their codes are
    multiplied by: bytes tell whether they are one. The embedding may be a copy beside factors, which are the head's,
    too, where it is tied. Nothing where they cannot be one.
    """
    aside = [name for name in tensors if is_original(name) or is_repeated(name, tensors) or lora_name(name) is not None]
    whole = {name: model_name(name) for name in tensors.keys() - set(aside)}
    parts = ((name, lora_name(name)) for name in tensors)
    whole |= {name: f"{part.layer}.weight" for name, part in parts if part is not None and part.kind == "tokens"}
    heads = [tensors[name] for name, model in whole.items() if model in _HEADS and not is_copy(name)]
    embeddings = [tensors[name] for name, model in whole.items() if model.endswith(_EMBEDDINGS)]
    if len(heads) != 1 or len(embeddings) != 1:
        return ()
    (head,), (embedding,) = heads, embeddings
    both = [_held_by_both(head, embedding)]
    if head.scales and embedding.scales:
        both.append(_held_by_both(head.scales.of, embedding.scales.of))
    blocks = {each.scales.block if each.scales else None for each in (head, embedding)}
    return tuple(each for each in both if each) if all(both) and len(blocks) == 1 else ()


def _held_by_both(one: Tensor, two: Tensor) -> Tensor | None:
    ones, twos = list(one.shards), list(two.shards)
    pairs = list(zip(ones, twos, strict=False))
    if one.spec != two.spec or len(ones) != len(twos):
        return None
    if not all(a.box == b.box and a.held and b.held for a, b in pairs):
        return None
    shards = tuple(Shard(a.box, (a.held[0], b.held[0])) for a, b in pairs)
    return replace(two, shards=Loose(shards))


def is_head(name: str) -> bool:
    return name in _HEADS


def head_of(tensors: Iterable[str]) -> str:
    """The name of a head's weight; "" without one."""
    return next((name for name in tensors if name in _HEADS), "")


def changes_an_end(adapter: Adapter) -> bool:
    """Whether an adapter has anything for an embedding or a head."""
    found = ((name, lora_name(name)) for name in adapter.tensors)
    names = (f"{of.layer}.weight" if of else model_name(name) for name, of in found)
    return any(name in _HEADS or name.endswith(_EMBEDDINGS) for name in map(adapter.rules.rename, names))


def is_copy(name: str) -> bool:
    """Whether it is a copy of the weight that factors are added to, which PEFT keeps beside them."""
    return _COPY in name

"""What a user says of names: values alone, for every conversion has one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from reshard.errors import UsageError
from reshard.planning.names import NameRules

HUB = "hf"
MEGATRON = "megatron"
MINDFORMERS = ("mindformers", "mcore")
"""Those of a job of MindFormers."""
CONVENTIONS = (HUB, *MINDFORMERS, MEGATRON, "torchtitan")
TOLD_BY_NAMES = (HUB, *MINDFORMERS, "torchtitan")
"""Megatron's are those of MindFormers' core: folders tell them, or stacks."""
Tied = Literal["", "keep", "copy", "drop"]
LayerSpec = Literal["", "local", "transformer_engine"]
"""Megatron's word: of whose layers a model is built."""


class Excluded(Struct, frozen=True):
    """What the user leaves out: tensors of the source by name, and whatever the rules leave out of what is missed."""

    names: frozenset[str] = frozenset()
    rules: NameRules = NameRules()

    def __contains__(self, name: object) -> bool:
        return name in self.names or not self.rules.takes(str(name))


class Asked(Struct, frozen=True):
    """What the user says of one side: values of styles by option.

    Attributes:
        of_source: whether options say it that are of the source alone, where both sides fuse.
    """

    options: Mapping[str, str] = {}
    of_source: bool = False

    def of(self, style: str) -> str:
        return self.options.get(style, "")

    def option(self, style: str) -> str:
        """What says it on the command line."""
        return f"--{'src-' if self.of_source else ''}{style.replace('_', '-')}"


class Naming(Struct, frozen=True):
    """What a user says of names.

    Attributes:
        src, dst: conventions; "" for the one that the names show, and for the same as the source's.
        model, src_model, dst_model: paths of model files: of either side, of one.
        asked, src_asked: values of styles by name, of the side that is not the hub; of the source where neither is.
        release: of MindFormers.
        vocab_rows: rows of the vocabulary that the target gets.
        tied: what becomes of an output layer that is the embedding's.
        dequantize: codes are multiplied by their scales.
        files: configuration and tokenizer go along.
        ranks: for how many tensor-parallel ranks of Megatron its layers are laid out; 0 for its distributed form.
        transformer_impl: the layer spec whose names Megatron gets; "" for the one that its arguments tell.
    """

    src: str = ""
    dst: str = ""
    model: str = ""
    src_model: str = ""
    dst_model: str = ""
    asked: Asked = Asked()
    src_asked: Asked = Asked()
    release: str = ""
    vocab_rows: int | None = None
    tied: Tied = ""
    dequantize: bool = False
    files: bool = False
    ranks: int = 0
    transformer_impl: LayerSpec = ""

    def __post_init__(self) -> None:
        for option, convention in (("--src-names", self.src), ("--dst-names", self.dst)):
            if convention and convention not in CONVENTIONS:
                raise UsageError(f"{option} {convention!r}", hint=f"one of: {', '.join(CONVENTIONS)}")
        if self.tied not in ("", "keep", "copy", "drop"):
            raise UsageError(f"--tied {self.tied!r}", hint="one of: keep, copy, drop")
        if self.transformer_impl not in ("", "local", "transformer_engine"):
            raise UsageError(f"--transformer-impl {self.transformer_impl!r}", hint="one of: local, transformer_engine")
        if self.vocab_rows is not None and self.vocab_rows < 1:
            raise UsageError(f"--vocab-rows {self.vocab_rows}", hint="a number from 1")
        said = (self.src_model, self.dst_model, self.asked, self.src_asked, self.release)
        if not (self.dst or self.fits_vocabulary) and said != ("", "", Asked(), Asked(), ""):
            raise UsageError("how names are changed was told, and not that they are", hint="--dst-names hf")

    @property
    def changes(self) -> bool:
        """Whether anything is done."""
        return bool(self.dst) or self.dequantize or self.fits_vocabulary or self.files

    @property
    def asked_of_source(self) -> Asked:
        """How the source fuses: of both sides where the hub's is the other."""
        if self.dst in (HUB, ""):
            return Asked({**self.src_asked.options, **self.asked.options})
        return Asked(self.src_asked.options, of_source=True)

    @property
    def fits_vocabulary(self) -> bool:
        """Whether embedding and output layer change, whatever they are called."""
        return bool(self.tied or self.vocab_rows)

    @property
    def release_number(self) -> int | None:
        """As ``105`` for r1.5."""
        from reshard.strategy.job import as_release  # with all that reads strategies of jobs

        given = as_release(self.release)
        return given[0] * 100 + (given[1] if len(given) > 1 else 0) if given else None

"""A plan while it is drawn up: what a family needs to say which files there are."""

from __future__ import annotations

from reshard.layout.tensor import Layout
from reshard.planning.assembly import ANY_RANK, Assembler
from reshard.planning.catalog import Catalog
from reshard.planning.decide import Decisions, Kept
from reshard.planning.forms import Forms, Texts
from reshard.planning.plan import PlannedFile
from reshard.planning.shares import Group, Share, divided
from reshard.planning.target import Choices, Target


class Draft:
    """Source and target of a plan, what was decided, and what is planned so far."""

    def __init__(self, source: Catalog, target: Target, choices: Choices, decisions: Decisions) -> None:
        self.source = source
        self.target = target
        self.kept = decisions.kept
        self.assembler = Assembler(source, target.dtype, choices.lora)
        self.forms = Forms(self.assembler.tensors, target.format, _notes(source, target))
        self.warnings: dict[str, None] = dict.fromkeys((*source.warnings, *decisions.warnings))
        self._texts = []
        for name, by_rank in source.texts.items():
            if choices.rules.takes(name):
                if len(set(by_rank.values())) > 1:
                    self.warnings[f"{name}: ranks hold different strings; each target rank takes its source rank's"] = (
                        None
                    )
                self._texts.append((choices.rules.renamed(name), by_rank, next(iter(by_rank.values()))))

    def source_rank(self, rank: int) -> int:
        """The rank from which the reference takes a value that differs from rank to rank."""
        ranks, target = self.source.ranks, self.target
        stage, local = divmod(rank, target.devices)
        return stage * ranks.stages // target.stages * ranks.devices + local % ranks.devices

    def texts(self, rank: int) -> Texts:
        """Strings go to every rank; where ranks disagree each takes its source rank's."""
        source_rank = self.source_rank(rank)
        return tuple((name, by_rank.get(source_rank, fallback)) for name, by_rank, fallback in self._texts)

    def cut(self, kept: Kept, layout: Layout, source_rank: int) -> tuple[int, int]:
        """The numbers of tensor and layout; ``source_rank`` counts where the tensor's value varies."""
        return self.assembler.number(kept, source_rank if kept.varied else ANY_RANK), self.forms.layout(layout)


def of_share(draft: Draft, files: list[PlannedFile], share: Share) -> list[PlannedFile]:
    """The files of one share, of files that hold different tensors: each is a group of its own."""
    sizes = [draft.forms.made[file.form].nbytes for file in files]
    mine = divided([Group((nbytes,), nbytes) for nbytes in sizes], share.count)[share.index]
    return [files[group] for group, _ in mine]


def _notes(source: Catalog, target: Target) -> dict[str, str]:
    """What a safetensors file says of itself: whether every rank's shards are all there."""
    if target.format.name != "safetensors":
        return {}
    hugging_face = target.parts is not None and target.parts.names == "hf"
    from_mindspore = source.files[0].format == "ckpt" and not hugging_face
    # MindSpore reads a file whatever it is for; loaders for PyTorch refuse one that is for MindSpore
    notes = {"format": source.notes.get("format", "ms" if from_mindspore else "pt")}
    if target.drop_redundancy or "remove_redundancy" in source.notes:
        notes["remove_redundancy"] = str(target.drop_redundancy)
    return notes

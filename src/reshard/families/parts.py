"""A full checkpoint in several files of a largest size, with an index, as Hugging Face or MindSpore lays them out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import msgspec
from msgspec import Struct

from reshard.errors import UsageError
from reshard.families.index_files import EXTRAS_NAME
from reshard.families.targets import AskedTarget, format_asked
from reshard.formats.registry import format_named
from reshard.planning.catalog import Catalog
from reshard.planning.plan import PlannedFile, SmallFile
from reshard.planning.target import Draft, Files

PartNaming = Literal["hf", "torch", "mindspore"]
_HUGGING_FACE = {"hf": ("model", ".safetensors"), "torch": ("pytorch_model", ".bin")}
_FORMATS = ("safetensors", "torch")
_DEFAULT_NBYTES = 5 << 30


class Parts(Struct, frozen=True):
    """Parts of at most ``max_nbytes``, called as ``names`` does.

    ``hf``: ``model-0000i-of-0000n.safetensors`` and ``model.safetensors.index.json``.
    ``torch``: ``pytorch_model-0000i-of-0000n.bin`` and ``pytorch_model.bin.index.json``.
    ``mindspore``: ``part{i}.safetensors`` and ``param_name_map.json``; what no strategy knows is kept beside them, in
    ``hyper_param.safetensors``. ``along`` are files that lie beside.
    """

    max_nbytes: int = _DEFAULT_NBYTES
    names: PartNaming = "hf"
    along: tuple[SmallFile, ...] = ()

    name: ClassVar[str] = "parts"
    strategy: ClassVar[None] = None

    def file_names(self, count: int) -> list[str]:
        """
        >>> Parts(1).file_names(2)
        ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
        """
        if self.names == "mindspore":
            return [f"part{i}.safetensors" for i in range(count)]
        stem, suffix = _HUGGING_FACE[self.names]
        if count == 1:
            return [stem + suffix]
        return [f"{stem}-{i + 1:05d}-of-{count:05d}{suffix}" for i in range(count)]

    def index(self, parts: Mapping[str, str], total_nbytes: int) -> tuple[SmallFile, ...]:
        """The file that says which part holds each tensor; none where one part needs none."""
        if self.names != "mindspore" and len(set(parts.values())) < 2:
            return ()
        content = {"metadata": {"total_size": total_nbytes}, "weight_map": dict(sorted(parts.items()))}
        name = (
            "param_name_map.json" if self.names == "mindspore" else f"{''.join(_HUGGING_FACE[self.names])}.index.json"
        )
        return (SmallFile(name, msgspec.json.format(msgspec.json.encode(content), indent=2)),)

    def files(self, draft: Draft) -> Files:
        apart = self.names == "mindspore"
        cuts = dict(draft.cut(kept, kept.layouts[0], 0) for kept in draft.kept if not (apart and kept.tensor.compared))
        tensors = draft.assembler.tensors
        sizes = {number: tensors[number].spec.nbytes for number in cuts}
        split = split_parts(sizes, self.max_nbytes)
        groups = dict(zip(self.file_names(len(split)), split, strict=True))
        where = {tensors[number].name: name for name, numbers in groups.items() for number in numbers}
        extras = dict(draft.cut(kept, kept.layouts[0], 0) for kept in draft.kept if apart and kept.tensor.compared)
        if extras:
            groups[EXTRAS_NAME] = list(extras)
            cuts |= extras
        form = format_named("torch" if self.names == "torch" else "safetensors")
        notes = draft.notes(form, hugging_face=self.names == "hf")
        files = []
        for i, (path, numbers) in enumerate(groups.items()):
            texts = draft.texts(0) if i == 0 else ()
            files.append(
                PlannedFile(i, path, 0, 0, draft.form(tuple((n, cuts[n]) for n in numbers), texts, form, notes), i)
            )
        closing = (*self.index(where, sum(sizes.values())), *self.along)
        return Files(draft.asked_for(files), len(files), closing)


def parts_asked(asked: AskedTarget, source: Catalog) -> Parts:
    """Raises UsageError for a format that has no parts."""
    unsaid = asked.to and not asked.format and source.files[0].format not in _FORMATS
    form = format_named("safetensors") if unsaid else format_asked(asked, source)
    if form.name not in _FORMATS:
        raise UsageError(
            f"parts with an index are of safetensors or torch files, and the target would be {form.name}",
            hint="give --format safetensors, or leave --max-shard-size out",
        )
    return Parts(asked.max_shard_nbytes or _DEFAULT_NBYTES, "torch" if form.name == "torch" else "hf", asked.along)


def split_parts(sizes: Mapping[int, int], max_nbytes: int) -> list[list[int]]:
    """Fill parts in order; a tensor larger than ``max_nbytes`` has a part of its own. Sizes in bytes.

    >>> split_parts({0: 4, 1: 4, 2: 9, 3: 1}, 8)
    [[0, 1], [2], [3]]
    """
    groups: list[list[int]] = [[]]
    room = max_nbytes
    for number, nbytes in sizes.items():
        if nbytes > room and groups[-1]:
            groups.append([])
            room = max_nbytes
        groups[-1].append(number)
        room -= nbytes
    return groups

"""What is known of one .ckpt is taken for another only where every header byte is the same."""

from __future__ import annotations

import pytest

from making import array, ckpt_bytes
from reshard.errors import FormatError
from reshard.formats.header_cache import Kinds
from reshard.formats.mindspore_ckpt import MindSporeCkpt
from reshard.index import Contents
from reshard.testing.formats import MemoryFile

CKPT = MindSporeCkpt()
SHAPES = {"a": (3, 5), "b": (40_000,), "c": (7,)}


def made(seed: int, names: str = "abc", slice_nbytes: int = 1 << 29) -> MemoryFile:
    arrays = {name: array(shape, seed=seed) for name, shape in zip(names, SHAPES.values(), strict=True)}
    return MemoryFile(ckpt_bytes(arrays, {}, slice_nbytes))


@pytest.mark.parametrize("slice_nbytes", [1 << 29, 50_000])
def test_another_rank_s_file_is_not_understood_again(slice_nbytes: int) -> None:
    first, second = (CKPT.read_index(made(seed, slice_nbytes=slice_nbytes)) for seed in (1, 2))
    assert second is first
    assert [s.spec.shape for s in second.tensors.values()] == list(SHAPES.values())


def test_names_of_the_same_length_are_told_apart() -> None:
    for names in ("abc", "abd", "xbc"):
        assert list(CKPT.read_index(made(1, names)).tensors) == list(names)
    assert list(CKPT.read_index(made(2, "abc")).tensors) == list("abc")


def test_any_changed_byte_of_a_header_is_seen() -> None:
    whole = made(1)
    known = CKPT.read_index(whole)
    inside = {at for s in known.tensors.values() for e in s.extents for at in range(e.offset, e.end)}
    for at in set(range(len(whole.content))) - inside:
        changed = MemoryFile(whole.content[:at] + bytes([whole.content[at] ^ 1]) + whole.content[at + 1 :])
        try:
            assert CKPT.read_index(changed) is not known
        except FormatError:
            continue


def test_few_bytes_are_read_to_know_a_file_again() -> None:
    CKPT.read_index(made(1))
    again = made(3)
    CKPT.read_index(again)
    assert again.read_nbytes < 1000


def test_files_with_texts_are_read_each() -> None:
    found = [CKPT.read_index(MemoryFile(ckpt_bytes({"w": array((4,))}, {"note": text}))) for text in ("one", "two")]
    assert [dict(f.texts) for f in found] == [{"note": "one"}, {"note": "two"}]


def test_only_the_last_kinds_are_kept() -> None:
    kinds = Kinds(most=2)
    for length in (4, 5, 6):
        kinds.add(length, ((0, b"head"),), Contents({}))
    assert [kinds.find(MemoryFile(b"head" + bytes(n))) is not None for n in range(3)] == [False, True, True]
    assert kinds.find(MemoryFile(b"Head.")) is None

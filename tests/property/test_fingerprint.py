"""The fingerprint is that of the content: the same however it is cut and stored, another one when a bit changes."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace
from random_layouts import Case, cases
from test_reshard import EXAMPLES, on_disk

import reshard
from making import array, counted, shard_of, write_file, write_ranks, write_strategy
from reshard.errors import CheckpointError
from reshard.layout.tensor import Sharding
from reshard.moving import fingerprint as of_bytes
from reshard.moving.fingerprint import Hashing, Stretch
from reshard.planning.names import NameRules
from thorough import examples

FEWER = examples(13)
LAYOUTS = examples(50)


def number(folder: Path, arrays: dict[str, np.ndarray], suffix: str = ".safetensors") -> str:
    return reshard.fingerprint(write_file(folder / f"full{suffix}", arrays)).number


def by_hand(data: bytes, block_nbytes: int) -> str:
    """The definition."""
    blocks = [data[i : i + block_nbytes] for i in range(0, len(data), block_nbytes)]
    return xxhash.xxh3_128_hexdigest(b"".join(map(xxhash.xxh3_128_digest, blocks)))


def stretch(data: bytes, offset: int, pieces: list[int]) -> Stretch:
    """Bytes from ``offset`` on, that come in pieces."""
    hashing = Hashing(offset)
    for start, stop in pairwise(sorted({0, len(data), *(p for p in pieces if p < len(data))})):
        hashing.add(memoryview(data)[start:stop])
    return hashing.so_far()


# --- the bytes of a tensor


@EXAMPLES
@given(st.integers(0, 3000), st.integers(1, 700), st.lists(st.integers(0, 3000), max_size=8), st.integers(0, 9))
def test_whatever_pieces_bytes_come_in(nbytes: int, block_nbytes: int, cuts: list[int], seed: int) -> None:
    data = array((nbytes,), "uint8", seed).tobytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of_bytes, "BLOCK_NBYTES", block_nbytes)
        whole = Hashing()
        for start, stop in pairwise(sorted({0, nbytes, *(c for c in cuts[::2] if c < nbytes)})):
            whole.join(stretch(data[start:stop], start, cuts[1::2]))
        assert whole.end() == by_hand(data, block_nbytes)


def test_numbers_never_change(tmp_path: Path) -> None:
    values = (np.arange(3 << 18) * 2_654_435_761).astype(np.uint32).reshape(3, 512, 512)
    assert number(tmp_path, {"w": values}) == "bd5442da5b8b667918ea682931bcb8ac"


def test_the_number_is_that_of_the_definition(tmp_path: Path) -> None:
    values = array((700, 1000), "float32")
    content = by_hand(values.tobytes(), 1 << 20)
    told = json.dumps([2, "w", "float32", [700, 1000], content], separators=(",", ":")).encode()
    one = xxhash.xxh3_128_hexdigest(told)
    wanted = xxhash.xxh3_128_hexdigest(json.dumps([2, [one]], separators=(",", ":")).encode())
    assert number(tmp_path, {"w": values}) == wanted


# --- of a checkpoint


@LAYOUTS
@given(cases(), st.sampled_from([7, 64, 1 << 20]))
def test_layout_and_format_do_not_count(case: Case, block_nbytes: int) -> None:
    with on_disk(case, 64) as disk, pytest.MonkeyPatch.context() as patch:
        patch.setattr(of_bytes, "BLOCK_NBYTES", block_nbytes)
        whole = write_file(disk.folder / "whole.safetensors", disk.full)
        wanted = reshard.fingerprint(whole)
        reshard.convert(disk.src, disk.folder / "out", disk.options())
        before = reshard.fingerprint(disk.src, disk.src_strategy)
        after = reshard.fingerprint(disk.folder / "out", disk.dst_strategy)
        assert wanted.number == before.number == after.number
        assert {t.name: t for t in wanted.tensors} == {t.name: t for t in before.tensors}
        assert {t.name: t for t in wanted.tensors} == {t.name: t for t in after.tensors}
        assert before.nbytes == sum(a.nbytes for a in disk.full.values())


@FEWER
@given(cases(), st.data())
def test_any_bit_counts(case: Case, data: st.DataObject) -> None:
    with on_disk(case) as disk:
        name = data.draw(st.sampled_from(sorted(disk.full)))
        assume(disk.full[name].size)
        before = reshard.fingerprint(disk.src, disk.src_strategy)
        content = bytearray(disk.full[name].tobytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        changed = np.frombuffer(content, disk.full[name].dtype).reshape(disk.full[name].shape)
        after = reshard.fingerprint(write_file(disk.folder / "b.safetensors", {**disk.full, name: changed}))
        assert before.number != after.number
        differ = {t.name for t in before.tensors} - {t.name for t in before.tensors if t in after.tensors}
        assert differ == {name}


@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "float32", "int64"])
def test_any_transposition_counts(tmp_path: Path, dtype: str) -> None:
    values = counted(3, 4, dtype=dtype)
    seen = {number(tmp_path, {"w": values})}
    for i in range(12):
        for j in range(i):
            swapped = values.copy().reshape(-1)
            swapped[[i, j]] = swapped[[j, i]]
            seen.add(number(tmp_path, {"w": swapped.reshape(3, 4)}))
    assert len(seen) == 1 + 12 * 11 // 2


def test_name_dtype_and_shape_count(tmp_path: Path) -> None:
    zeros = np.zeros((4, 2), np.float32)
    kinds = [
        {"w": zeros},
        {"v": zeros},
        {"w": zeros.reshape(2, 4)},
        {"w": zeros.reshape(8)},
        {"w": zeros.view(np.int32)},
        {"w": zeros, "v": zeros},
        {"w": zeros[:0]},
        {"w": zeros[:0], "v": zeros},
        {"w": zeros.reshape(-1)[0].reshape(())},
        {"w": zeros.reshape(-1)[:1]},
    ]
    assert len({number(tmp_path, kind) for kind in kinds}) == len(kinds)


def test_contents_that_change_places_count(tmp_path: Path) -> None:
    a, b = array((4,), seed=1), array((4,), seed=2)
    assert number(tmp_path, {"a": a, "b": b}) != number(tmp_path, {"a": b, "b": a})


def test_payloads_of_nan_and_the_sign_of_zero_count(tmp_path: Path) -> None:
    bits = [0x7FC00000, 0x7FC00001, 0xFFC00000, 0x00000000, 0x80000000]
    assert len({number(tmp_path, {"w": np.array([b], np.uint32).view(np.float32)}) for b in bits}) == len(bits)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_strings_do_not_count(tmp_path: Path, suffix: str) -> None:
    plain = write_file(tmp_path / f"a{suffix}", {"w": array((4,))})
    noted = write_file(tmp_path / f"b{suffix}", {"w": array((4,))}, {"author": "me"})
    assert reshard.fingerprint(noted).number == reshard.fingerprint(plain).number
    assert reshard.fingerprint(noted).not_counted == ("author",)


def test_states_have_no_part_in_the_number_of_the_weights(tmp_path: Path) -> None:
    w, m = array((4,), seed=1), array((4,), seed=2)
    plain = reshard.fingerprint(write_file(tmp_path / "a.ckpt", {"w": w}))
    trained = reshard.fingerprint(write_file(tmp_path / "b.ckpt", {"w": w, "adam_m.w": m}))
    assert plain.number == plain.weights == trained.weights != trained.number


def test_names_may_be_chosen_and_changed(tmp_path: Path) -> None:
    w, m = array((4,), seed=1), array((4,), seed=2)
    plain = reshard.fingerprint(write_file(tmp_path / "a.ckpt", {"w": w}))
    other = write_file(tmp_path / "b.ckpt", {"x.w": w, "m": m})
    rules = NameRules(exclude=("^m$",), rename=((r"^x\.", ""),))
    assert reshard.fingerprint(other, rules=rules).number == plain.number
    with pytest.raises(reshard.ReshardError, match="would both be called"):
        reshard.fingerprint(other, rules=NameRules(rename=((".*", "w"),)))


CUT = Sharding((2, 2), ((0,), ()))


def test_replicas_are_read_once_and_one_may_be_absent(tmp_path: Path) -> None:
    full = {"w": array((4, 6))}
    strategy = write_strategy(tmp_path / "s", [{"w": CUT}])
    src = write_ranks(tmp_path / "src", full, [{"w": CUT}])
    (src / "rank_1" / "model_1.ckpt").unlink()
    found = reshard.fingerprint(src, strategy)
    assert (found.number, found.nbytes) == (number(tmp_path, full), 96)
    assert "rank_1" in found.warnings[0]
    (src / "rank_3" / "model_3.ckpt").unlink()
    with pytest.raises(CheckpointError, match="w: 1 shard missing; ranks 1, 3 should hold them"):
        reshard.fingerprint(src, strategy)


def test_what_ranks_disagree_on_is_named_and_not_counted(tmp_path: Path) -> None:
    full = {"w": array((4, 6)), "seed": array((3,))}
    strategy = write_strategy(tmp_path / "s", [{"w": CUT}])
    for rank in range(4):
        shards = {"w": shard_of(full["w"], CUT, rank), "seed": array((3,), seed=rank), "step": array((), seed=7)}
        write_file(tmp_path / "src" / f"rank_{rank}" / "m.ckpt", shards)
    found = reshard.fingerprint(tmp_path / "src", strategy)
    assert found.not_counted == ("seed",)
    assert found.warnings == ("seed: ranks hold different values; it is not counted",)
    assert found.number == number(tmp_path, {"w": full["w"], "step": array((), seed=7)})


def test_many_lots_and_blocks_give_the_same_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = {"a": array((37, 50), "bfloat16", 1), "b": array((3, 11, 7), "int8", 2), "c": array((), "float64", 3)}
    wanted = number(tmp_path, full)
    for read, lot in [(1, 1), (64, 1000), (333, 100)]:
        monkeypatch.setattr(of_bytes, "_READ_NBYTES", read)
        monkeypatch.setattr(of_bytes, "_LOT_NBYTES", lot)
        assert number(tmp_path, full) == wanted


def test_the_result_is_a_value(tmp_path: Path) -> None:
    found = reshard.fingerprint(write_file(tmp_path / "a.ckpt", {"w": array((4,))}))
    assert replace(found) == found

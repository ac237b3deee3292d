"""Options of a conversion, each with what it changes in the files."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from msgspec.structs import replace

import reshard
from making import (
    array,
    counted,
    dtype_named,
    read_file,
    read_rank,
    same,
    shard_of,
    tree,
    write_file,
    write_ranks,
    write_strategy,
)
from reshard.errors import CheckpointError, DifferenceError, FormatError, PlanError, UsageError
from reshard.layout.tensor import Sharding
from reshard.ops.options import Options
from reshard.planning.names import NameRules

CUT = Sharding((2,), ((0,), ()))
REPLICATED = Sharding((2, 2), ((0,), ()))
FULL = {"a": array((4, 6), seed=1), "b": array((8, 2), "bfloat16", seed=2)}
PLAIN = Options(fsync=False)


@pytest.fixture
def full(tmp_path: Path) -> Path:
    return write_file(tmp_path / "full.safetensors", FULL)


@pytest.fixture
def replicas(tmp_path: Path) -> Options:
    """Options to read ``tmp_path / "src"``, in which ranks 0 and 2 hold the same, and 1 and 3."""
    stages = [dict.fromkeys(FULL, REPLICATED)]
    write_ranks(tmp_path / "src", FULL, stages)
    return Options(src_strategy=str(write_strategy(tmp_path / "old", stages)), fsync=False)


# --- formats and dtypes


@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors"])
def test_the_target_s_name_says_the_format(full: Path, tmp_path: Path, name: str) -> None:
    reshard.convert(full, tmp_path / name, PLAIN)
    found = read_file(tmp_path / name)
    assert all(same(found[n], FULL[n]) for n in FULL)


def test_a_folder_gets_the_source_s_format_unless_told(full: Path, tmp_path: Path) -> None:
    reshard.convert(full, tmp_path / "a", PLAIN)
    reshard.convert(full, tmp_path / "b", replace(PLAIN, format="ckpt"))
    assert list(tree(tmp_path / "a")) == ["rank_0/checkpoint_0.safetensors"]
    assert list(tree(tmp_path / "b")) == ["rank_0/checkpoint_0.ckpt"]


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16", "float64"])
def test_a_cast_rounds_as_ml_dtypes_does(tmp_path: Path, dtype: str) -> None:
    values = np.array([0.0, -0.0, 1.0, 1 / 3, 65519.9, 65520.0, 1e-8, -1e38, np.inf, -np.inf, 3.3895e38], np.float32)
    half = np.array([1 / 3, -2.0, np.inf], ml_dtypes.bfloat16)
    write_file(tmp_path / "x.ckpt", {"w": values, "h": half, "i": counted(3, dtype="int32"), "adam_m.w": values})
    reshard.convert(tmp_path / "x.ckpt", tmp_path / "y.ckpt", replace(PLAIN, dtype=dtype))
    found = read_file(tmp_path / "y.ckpt")
    with np.errstate(over="ignore"):
        assert same(found["w"], values.astype(dtype_named(dtype)))
        assert same(found["h"], half.astype(dtype_named(dtype)))
    assert found["i"].dtype == np.int32
    assert same(found["adam_m.w"], values)


@pytest.mark.parametrize(
    ("source", "target"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "float32")]
)
def test_a_cast_of_any_bits_is_numpys_apart_from_the_payload_of_nans(tmp_path: Path, source: str, target: str) -> None:
    values = array((40_000,), source, 3)
    write_file(tmp_path / "x.ckpt", {"w": values})
    reshard.convert(tmp_path / "x.ckpt", tmp_path / "y.ckpt", replace(PLAIN, dtype=target))
    found = read_file(tmp_path / "y.ckpt")["w"]
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = values.astype(dtype_named(target))
    nan = np.isnan(wanted.astype(np.float32))
    assert np.array_equal(np.isnan(found.astype(np.float32)), nan)
    assert same(found[~nan], wanted[~nan])


def test_halfway_between_two_values_rounds_to_the_even_one(tmp_path: Path) -> None:
    high = np.arange(0, 0x10000, 37, dtype=np.uint32) << 16
    bits = (high[:, None] | np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)).reshape(-1)
    values = bits.view(np.float32)[~np.isnan(bits.view(np.float32))]
    write_file(tmp_path / "x.ckpt", {"w": values})
    reshard.convert(tmp_path / "x.ckpt", tmp_path / "y.ckpt", replace(PLAIN, dtype="bfloat16"))
    with np.errstate(over="ignore"):
        assert same(read_file(tmp_path / "y.ckpt")["w"], values.astype(ml_dtypes.bfloat16))


# --- names


def test_include_exclude_and_rename(full: Path, tmp_path: Path) -> None:
    rules = NameRules(include=("a",), rename=(("^a$", "model.a"),))
    reshard.convert(full, tmp_path / "x.safetensors", replace(PLAIN, names=rules))
    found = read_file(tmp_path / "x.safetensors")
    assert list(found) == ["model.a"]
    assert same(found["model.a"], FULL["a"])


def test_strings_follow_the_tensors_in_both_directions(tmp_path: Path) -> None:
    write_file(tmp_path / "x.ckpt", FULL, {"note": "é"})
    reshard.convert(tmp_path / "x.ckpt", tmp_path / "y.safetensors", PLAIN)
    reshard.convert(tmp_path / "y.safetensors", tmp_path / "z.ckpt", PLAIN)
    assert reshard.open(tmp_path / "y.safetensors").texts == {"note": "é"}
    assert reshard.open(tmp_path / "z.ckpt").texts == {"note": "é"}


# --- parts


def test_parts_of_a_largest_size_with_an_index(full: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    reshard.convert(full, out, replace(PLAIN, max_shard_nbytes=100))
    parts = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert list(tree(out)) == [*parts, "model.safetensors.index.json"]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 96 + 32}
    assert set(index["weight_map"]) == set(FULL)
    for name, part in index["weight_map"].items():
        assert same(read_file(out / part)[name], FULL[name])
    assert reshard.verify(out).files == 3
    again = reshard.open(out)
    assert set(again) == set(FULL)
    assert same(np.asarray(again["a"].read()), FULL["a"])


def test_one_part_needs_no_index(full: Path, tmp_path: Path) -> None:
    reshard.convert(full, tmp_path / "out", replace(PLAIN, max_shard_nbytes=1 << 20))
    assert list(tree(tmp_path / "out")) == ["model.safetensors"]


@pytest.mark.parametrize("more", [{"format": "ckpt"}, {"dst_strategy": "new"}])
def test_only_a_full_checkpoint_is_parted(full: Path, tmp_path: Path, more: dict[str, str]) -> None:
    write_strategy(tmp_path / "new", [dict.fromkeys(FULL, CUT)])
    more = {k: str(tmp_path / v) if k == "dst_strategy" else v for k, v in more.items()}
    with pytest.raises(UsageError, match="max-shard-size"):
        reshard.convert(full, tmp_path / "out", replace(PLAIN, max_shard_nbytes=100, **more))


# --- what is replaced


def test_files_of_others_that_go_with_an_old_target_are_told(full: Path, tmp_path: Path) -> None:
    write_strategy(tmp_path / "two", [{"a": CUT, "b": CUT}])
    options = replace(PLAIN, dst_strategy=str(tmp_path / "two"), format="ckpt", overwrite=True)
    out = tmp_path / "out"
    assert reshard.convert(full, out, options).warnings == ()
    assert reshard.convert(full, out, options).warnings == ()  # nothing but what the first has written
    (out / "rank_1/notes.txt").write_text("mine")
    (out / "config.json").write_text("{}")
    (told,) = reshard.convert(full, out, options).warnings
    assert told == "2 files of others went with the old target:\nconfig.json\nrank_1/notes.txt"
    assert not (out / "config.json").exists()


# --- CRC


def test_crc_is_written_behind_a_ckpt_and_checked(full: Path, tmp_path: Path) -> None:
    sealed = tmp_path / "x.ckpt"
    reshard.convert(full, sealed, replace(PLAIN, crc=True))
    data = sealed.read_bytes()
    assert data[-17:] == b"crc_num" + zlib.crc32(data[:-17]).to_bytes(10, "big")
    reshard.convert(sealed, tmp_path / "y.ckpt", replace(PLAIN, crc=True))
    place = data.index(FULL["a"].tobytes())
    sealed.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    reshard.convert(sealed, tmp_path / "z.ckpt", PLAIN)
    with pytest.raises(CheckpointError, match="CRC-32 does not fit") as caught:
        reshard.convert(sealed, tmp_path / "u.ckpt", replace(PLAIN, crc=True))
    assert str(sealed) in caught.value.message


# --- replicas


@pytest.mark.parametrize(("element", "probed"), [(3, True), (6000, False)])
def test_replicas_that_differ(tmp_path: Path, element: int, probed: bool) -> None:
    """The beginning of each is always compared, and a lone difference is said; all is compared when asked."""
    w = {"w": array((16384,))}
    stages = [{"w": Sharding((2, 2), ((0,),))}]
    src = write_ranks(tmp_path / "src", w, stages)
    options = Options(src_strategy=str(write_strategy(tmp_path / "old", stages)), fsync=False)
    wrong = w["w"][:8192].copy()
    wrong.view(np.uint32)[element] ^= 1
    write_file(src / "rank_2" / "model_2.ckpt", {"w": wrong})
    said = [s for s in reshard.plan(src, tmp_path / "x.ckpt", options).warnings if "hold the same of w" in s]
    assert len(said) == probed
    with pytest.raises(DifferenceError, match=rf"w\[{element}\]: .* in rank 0; .* in rank 2"):
        reshard.convert(src, tmp_path / "y.ckpt", replace(options, check_replicas=True))


def two_tensors(folder: Path, sharding: Sharding) -> Path:
    full = {f"w{i}": array((64, 8), seed=i) for i in range(2)}
    return write_ranks(folder, full, [dict.fromkeys(full, sharding)])


@pytest.mark.parametrize(
    ("true", "claimed", "message"),
    [
        (Sharding((2, 4), ((0,), ())), Sharding((4, 2), ((0,), ())), "hold the same of w0, and they do not"),
        (Sharding((8,), ((), ())), Sharding((8,), ((0,), ())), "cut finer than they are"),
        (Sharding((2, 4), ((0,), ())), Sharding((8,), ((0,), ())), "cut finer than they are"),
    ],
    ids=["dp2mp4 read as dp4mp2", "dp8 read as mp8", "dp2mp4 read as mp8"],
)
def test_a_strategy_of_as_many_ranks_that_is_wrong(
    tmp_path: Path, true: Sharding, claimed: Sharding, message: str
) -> None:
    src = two_tensors(tmp_path / "src", true)
    strategy = write_strategy(tmp_path / "old", [{f"w{i}": claimed for i in range(2)}])
    with pytest.raises(CheckpointError, match=message):
        reshard.plan(src, tmp_path / "x.ckpt", Options(src_strategy=str(strategy)))


def test_a_strategy_that_cuts_some_finer_than_they_are_is_told(tmp_path: Path) -> None:
    """Not refused: experts that were all made of one are alike in a checkpoint that is right."""
    full = {f"w{i}": array((64, 8), seed=i) for i in range(3)}
    true = {"w0": Sharding((8,), ((0,), ())), "w1": Sharding((2, 4), ((0,), ())), "w2": Sharding((8,), ((0,), ()))}
    src = write_ranks(tmp_path / "src", full, [true])
    said = []
    for name, strategy in (("true", true), ("wrong", dict.fromkeys(full, true["w0"]))):
        options = Options(src_strategy=str(write_strategy(tmp_path / name, [strategy])))
        said.append([s for s in reshard.plan(src, tmp_path / "x.ckpt", options).warnings if "slices of" in s])
    (warning,) = said[1]
    assert said[0] == []
    assert warning.startswith("by the strategy slices of w1 differ, and they hold the same bytes: is this the strategy")


def test_equal_replicas_pass(tmp_path: Path, replicas: Options) -> None:
    reshard.convert(tmp_path / "src", tmp_path / "y.ckpt", replace(replicas, check_replicas=True))
    found = read_file(tmp_path / "y.ckpt")
    assert all(same(found[n], FULL[n]) for n in FULL)


# --- what only bytes can settle


def extra(folder: Path, values: list[np.ndarray]) -> Options:
    """Two ranks with an extra tensor ``x`` that the strategy does not know."""
    for rank, value in enumerate(values):
        shards = {n: shard_of(a, CUT, rank) for n, a in FULL.items()}
        write_file(folder / "src" / f"rank_{rank}" / "m.ckpt", {**shards, "x": value})
    strategy = write_strategy(folder / "old", [dict.fromkeys(FULL, CUT)])
    new = write_strategy(folder / "new", [dict.fromkeys(FULL, Sharding((4,), ((0,), ())))])
    return Options(src_strategy=str(strategy), dst_strategy=str(new), fsync=False)


def test_an_unknown_tensor_that_all_ranks_share_goes_to_every_rank(tmp_path: Path) -> None:
    x = array((5,), seed=9)
    reshard.convert(tmp_path / "src", tmp_path / "out", extra(tmp_path, [x, x]))
    assert all(same(read_rank(tmp_path / "out", r)["x"], x) for r in range(4))


@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_value_that_differs_comes_from_the_source_rank(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = [np.full(shape, v, np.int32) for v in (7, 8)]
    options = extra(tmp_path, values)
    reshard.convert(tmp_path / "src", tmp_path / "out", options)
    assert [int(read_rank(tmp_path / "out", r)["x"].item()) for r in range(4)] == [7, 8, 7, 8]


def test_a_tensor_that_differs_is_refused(tmp_path: Path) -> None:
    options = extra(tmp_path, [counted(5), counted(5) + 1])
    with pytest.raises(reshard.ReshardError, match="x: no strategy knows it and its ranks disagree"):
        reshard.convert(tmp_path / "src", tmp_path / "out", options)
    reshard.convert(tmp_path / "src", tmp_path / "out", replace(options, missing="drop"))
    assert all(set(read_rank(tmp_path / "out", r)) == set(FULL) for r in range(4))


# --- what is told


def test_the_result_says_what_was_done(full: Path, tmp_path: Path) -> None:
    done = reshard.convert(full, tmp_path / "x.ckpt", replace(PLAIN, verify=True))
    size = (tmp_path / "x.ckpt").stat().st_size
    assert (done.written_nbytes, done.read_nbytes, done.verified_nbytes) == (size, 96 + 32, size)
    assert done.skipped_files == 0


def test_progress_adds_up(full: Path, tmp_path: Path) -> None:
    class Counting(reshard.ops.observer.Observer):
        def __init__(self) -> None:
            self.told: list[object] = []
            self.nbytes = 0

        def start(self, what: str, nbytes: int) -> None:
            self.told.append((what, nbytes))

        def advance(self, nbytes: int) -> None:
            self.nbytes += nbytes

        def end(self) -> None:
            self.told.append("end")

    observer = Counting()
    reshard.convert(full, tmp_path / "x.ckpt", PLAIN, observer)
    assert observer.told == [("writing", 128), "end"]
    assert observer.nbytes == 128


def test_what_the_format_cannot_hold_writes_nothing(full: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"tensor 'a' is float8_e5m2, which \.ckpt cannot hold"):
        reshard.convert(full, tmp_path / "x.ckpt", replace(PLAIN, dtype="float8_e5m2"))
    assert not (tmp_path / "x.ckpt").exists()


# --- dropped replicas


def test_dropped_replicas_are_held_once_and_read_back(full: Path, tmp_path: Path) -> None:
    strategy = str(write_strategy(tmp_path / "new", [dict.fromkeys(FULL, REPLICATED)]))
    out = tmp_path / "out"
    reshard.convert(full, out, replace(PLAIN, dst_strategy=strategy, drop_redundancy=True))
    holders = {n: [r for r in range(4) if n in read_rank(out, r)] for n in FULL}
    assert {n: len(h) for n, h in holders.items()} == {"a": 2, "b": 2}
    assert holders["a"] != holders["b"]
    again = reshard.open(out, strategy)
    assert all(same(np.asarray(again[n].read()), FULL[n]) for n in FULL)


def test_a_rank_that_keeps_nothing_does_not_spoil_the_rest(tmp_path: Path) -> None:
    full = write_file(tmp_path / "one.ckpt", {"a": FULL["a"]})
    strategy = str(write_strategy(tmp_path / "new", [{"a": REPLICATED}]))
    out = tmp_path / "out"
    thinned = replace(PLAIN, dst_strategy=strategy, drop_redundancy=True)
    with pytest.raises(FormatError, match="which nothing loads"):
        reshard.convert(full, out, replace(thinned, format="ckpt"))
    reshard.convert(full, out, replace(thinned, format="safetensors"))
    assert same(np.asarray(reshard.open(out, strategy)["a"].read()), FULL["a"])


@pytest.mark.parametrize(("code", "nbytes"), [("F4", 1), ("F6_E2M3", 3), ("F6_E3M2", 3)])
@pytest.mark.parametrize("cut", [Sharding((2,), ((0,), ())), Sharding((2,), ((), (0,)))], ids=["rows", "columns"])
def test_elements_of_less_than_a_byte_are_cut_and_put_together(
    tmp_path: Path, code: str, nbytes: int, cut: Sharding
) -> None:
    """Of the official library's file nothing changes on the way there and back but the note."""
    values = 2 if code == "F4" else 4
    content = bytes(range(4 * 2 * nbytes))
    entry = {"dtype": code, "shape": [4, 2 * values], "data_offsets": [0, len(content)]}
    head = json.dumps({"w": entry}).encode()
    src = tmp_path / "full.safetensors"
    src.write_bytes(len(head).to_bytes(8, "little") + head + content)
    strategy = str(write_strategy(tmp_path / "s", [{"w": cut}]))
    reshard.convert(src, tmp_path / "ranks", replace(PLAIN, dst_strategy=strategy))
    reshard.convert(tmp_path / "ranks", tmp_path / "back.safetensors", replace(PLAIN, src_strategy=strategy))
    back = (tmp_path / "back.safetensors").read_bytes()
    length = int.from_bytes(back[:8], "little")
    assert json.loads(back[8 : 8 + length])["w"] == entry
    assert back[8 + length :] == content


def test_a_tensor_that_nobody_can_know_says_so_when_it_is_read(tmp_path: Path) -> None:
    full = {"w": array((4, 2)), "x": array((4, 2), seed=1)}
    cut = Sharding((2,), ((0,), ()))
    src = write_ranks(tmp_path / "src", full, [{"w": cut, "x": cut}])
    opened = reshard.open(src, write_strategy(tmp_path / "s", [{"w": cut}]))
    assert same(opened["w"].read(), full["w"])
    with pytest.raises(PlanError, match="x: no strategy knows it and its ranks disagree"):
        opened["x"].read()

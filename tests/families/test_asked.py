"""What is asked of a source reaches every command; what its family has no use for is refused; bytes that lie in
different orders are compared as they are meant.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

import reshard
from families.rows import FAMILIES
from forks import forks
from golden_families.test_recorded import unpacked
from making import counted, write_file, write_ranks, write_strategy
from reshard import Options
from reshard.cli.main import main
from reshard.errors import InputError, UsageError
from reshard.families import registry
from reshard.families.open_checkpoint import open_source
from reshard.families.probe import agreements, probe
from reshard.families.replicas import replica_faults
from reshard.families.source import Source
from reshard.index import ZEROS, Coding, Extent, TensorSpec
from reshard.layout.box import Box
from reshard.layout.tensor import Sharding
from reshard.ops.inspect import opened
from reshard.planning.catalog import Catalog, Held, Shard, tensor_of_shards


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two saves of DeepSpeed, of which ``latest`` names one, and rank folders beside them."""
    folder = unpacked("cases", "z2_fp16_r3_tied", tmp_path_factory.mktemp("case")) / "src"
    (tag,) = (path for path in folder.iterdir() if path.is_dir())
    shutil.copytree(tag, folder / "global_step77")
    (folder / "latest").write_text("global_step77")
    write_file(folder / "rank_0" / "m.safetensors", {"w": counted(2)})
    reshard.convert(
        Source(str(folder), family="deepspeed").path, folder.parent / "m.safetensors", Options(family="deepspeed")
    )
    return folder


@pytest.mark.parametrize("name", [entry.name for entry in registry.FAMILIES if entry.place])
def test_a_folder_of_another_family_than_is_said_is_told(name: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no weights")
    with pytest.raises((InputError, UsageError)):
        open_source(Source(str(tmp_path), family=name))


@pytest.mark.parametrize("words", ["convert '' out", "convert . ''", "inspect ''", "diff . ''", "doctor ''"])
def test_an_empty_path_is_not_the_current_folder(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_file(tmp_path / "m.safetensors", {"w": counted(2)})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(words))
    assert (ended.value.code, "an empty path" in capsys.readouterr().err) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


COMMANDS = [
    ("convert {} out --from deepspeed --iteration 77", 0),
    ("plan {} --from deepspeed --iteration 77", 0),
    ("merge {} m2.safetensors --from deepspeed --iteration 77", 0),
    ("unify {} u --from deepspeed --iteration 77", 0),
    ("inspect {} --from deepspeed --iteration 77", 0),
    ("inspect {} --from deepspeed --iteration 77 --fingerprint", 0),
    ("fingerprint {} --from deepspeed --iteration 77 --weights-only", 0),
    ("explain lm_head.weight {} --from deepspeed --iteration 77", 0),
    ("verify {} m.safetensors --from deepspeed --iteration 77", 0),
    ("verify m.safetensors {} --dst-from deepspeed", 0),
    ("diff {} m.safetensors --a-from deepspeed --a-iteration 77", 0),
    ("diff m.safetensors {} --b-from deepspeed --b-iteration 77", 0),
]


@pytest.mark.parametrize("command", [command for command, _ in COMMANDS])
def test_every_command_is_told_what_is_meant(several: Path, tmp_path: Path, command: str) -> None:
    shutil.copyfile(several.parent / "m.safetensors", tmp_path / "m.safetensors")
    ended = forks().run(*command.format(several).split(), cwd=tmp_path)
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("command", [command for command, _ in COMMANDS])
def test_every_command_asks_which_is_meant(several: Path, tmp_path: Path, command: str) -> None:
    shutil.copyfile(several.parent / "m.safetensors", tmp_path / "m.safetensors")
    words = command.replace("--weights-only", "").replace("--fingerprint", "").split(" --")[0]
    ended = forks().run(*words.format(several).split(), cwd=tmp_path)
    assert ended.code == 2
    assert "deepspeed, ranks" in ended.err
    assert "from deepspeed" in ended.err


def test_open_takes_a_source(several: Path) -> None:
    opened = reshard.open(Source(str(several), family="deepspeed", iteration=77))
    assert set(opened) == set(reshard.open(several.parent / "m.safetensors"))
    assert reshard.open(Source(str(several), family="ranks"))["w"].shape == (2,)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"iteration": 3}, "no iterations"),
        ({"family": "deepspeed", "strategy": "s"}, "deepspeed describes itself"),
        ({"family": "deepspeed", "select": "name"}, "--select chooses"),
        ({"family": "deepspeed", "suffix": "1_1"}, "--suffix chooses"),
        ({"family": "tape"}, "no family 'tape'"),
        ({"family": "fsdp?"}, "no family"),
    ],
)
def test_what_a_family_does_not_take(tmp_path: Path, asked: dict[str, object], told: str) -> None:
    source = Source(str(write_file(tmp_path / "m.safetensors", {"w": counted(2)})))
    with pytest.raises(UsageError, match=told.replace("?", r"\?")):
        open_source(replace(source, **asked))


@pytest.mark.parametrize(("family", "whose"), [("dcp", "PyTorch DCP"), ("deepspeed", "DeepSpeed"), ("fsdp", "FSDP")])
def test_a_folder_of_another_family_than_is_said(tmp_path: Path, family: str, whose: str) -> None:
    write_file(tmp_path / "m.safetensors", {"w": counted(2)})
    with pytest.raises(UsageError, match=f"nothing of {whose}'s: "):
        open_source(Source(str(tmp_path), family=family))


def test_one_rank_is_of_rank_folders(tmp_path: Path) -> None:
    made = FAMILIES["DeepSpeed, stage 1"](tmp_path)
    with pytest.raises(UsageError, match="--on-rank is of rank folders"):
        opened(str(made.path), rank=0)


# --- bytes as they are meant


class Coded:
    """Two ranks that hold the same, of which one stores its numbers the other way round; and a third of zeros."""

    def __init__(self, folder: Path, odd: float | None = None) -> None:
        full = {"w": counted(8, 6)}
        cuts = dict.fromkeys(full, Sharding((2,), ((), ())))
        self.strategy = str(write_strategy(folder / "s", [cuts]))
        src = write_ranks(folder / "src", full, [cuts], suffix=".safetensors")
        path = src / "rank_1" / "model_1.safetensors"
        other = full["w"].copy()
        if odd is not None:
            other[7, 5] = odd
        write_file(path, {"w": other.astype(">f4").view("<f4")})
        self.source = self._coded(open_source(Source(str(src), self.strategy)))

    @staticmethod
    def _coded(source: Catalog) -> Catalog:
        tensor = source.tensors["w"]
        (shard,) = tensor.shards
        held = [
            replace(h, extents=tuple(Extent(e.offset, e.nbytes, Coding(4)) for e in h.extents))
            if source.rank_of(h) == 1
            else h
            for h in shard.held
        ]
        spec = TensorSpec("float32", (8, 6))
        made = tensor_of_shards("w", spec, [Shard(shard.box, tuple(held))])
        return replace(source, tensors={"w": replace(made, compared=True)})


def test_replicas_are_compared_as_they_are_meant(tmp_path: Path) -> None:
    source = Coded(tmp_path / "same").source
    assert replica_faults(source) == []
    assert agreements(source, source.compared()) == {"w": True}
    assert probe(source) == ()
    other = Coded(tmp_path / "other", odd=0.5).source
    assert replica_faults(other) == ["w[7, 5]: 47.0 in rank 0; 0.5 in rank 1"]
    assert agreements(other, other.compared()) == {"w": False}


def test_zeros_that_no_file_holds_are_of_no_rank(tmp_path: Path) -> None:
    coded = Coded(tmp_path)
    spec = TensorSpec("float32", (16, 6))
    (shard,) = coded.source.tensors["w"].shards
    zeros = Shard(Box((8, 0), (16, 6)), (Held(ZEROS, ()),))
    padded = replace(coded.source, tensors={"w": tensor_of_shards("w", spec, [shard, zeros])})
    assert replica_faults(padded) == []
    assert agreements(padded, padded.tensors.values()) == {"w": True}
    assert probe(padded) == ()
    assert [padded.rank_of(held) for s in padded.tensors["w"].shards for held in s.held] == [0, 1, -1]

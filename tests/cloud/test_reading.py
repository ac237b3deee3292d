"""Sources in object storage: every command that takes a checkpoint takes a URL, and says what it says of a disk."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from servers import S3, Request, told

import reshard
from making import array, same, tree, write_file, write_ranks, write_strategy
from reshard.errors import CheckpointError, UsageError
from reshard.families.open_checkpoint import open_source
from reshard.families.probe import probe
from reshard.families.source import Source
from reshard.families.strategies import merged_file
from reshard.layout.tensor import Sharding
from reshard.ops.options import Options
from reshard.planning.catalog import Catalog

ROWS, COLUMNS, BOTH = Sharding((2,), ((0,), ())), Sharding((2,), ((), (0,))), Sharding((2, 2), ((1,), (0,)))
FULL = {f"layers.{i}.{w}": array((16, 24), seed=10 * i + j) for i in range(3) for j, w in enumerate("ab")}
SUFFIXES = (".ckpt", ".safetensors")


class Work:
    """One checkpoint of two ranks and one full one, here and there."""

    def __init__(self, folder: Path, s3: S3, suffix: str) -> None:
        self.folder, self.s3, self.suffix = folder, s3, suffix
        cuts = dict.fromkeys(FULL, ROWS)
        self.ranks = write_ranks(folder / "ranks", FULL, [cuts], suffix)
        self.strategy = write_strategy(folder / "old", [cuts])
        self.new = write_strategy(folder / "new", [dict.fromkeys(FULL, COLUMNS)])
        self.full = write_file(folder / f"full{suffix}", FULL)
        for path in (self.ranks, self.strategy, self.new, self.full):
            s3.put(path, path.name)
        for folder in ("ranks/", "ranks/rank_0/", "old/"):
            s3.put_bytes(folder, b"")  # as consoles make folders

    def there(self, path: Path) -> str:
        return f"{self.s3.url}/{path.name}"


@pytest.fixture(params=SUFFIXES)
def work(tmp_path: Path, s3: S3, request: pytest.FixtureRequest) -> Work:
    return Work(tmp_path, s3, request.param)


@pytest.mark.parametrize("work", [".safetensors"], indirect=True)
def test_every_command_reads_a_url_as_it_reads_a_disk(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    ranks, full, old, new = work.ranks, work.full, work.strategy, work.new
    commands: list[tuple[object, ...]] = [
        ("inspect", ranks, "--strategy", old),
        ("inspect", ranks, "--on-rank", "1"),
        ("inspect", full),
        ("diff", full, ranks, "--b-strategy", old),
        ("fingerprint", ranks, "--strategy", old),
        ("strategy", "show", old),
        ("strategy", "diff", old, new),
        ("verify", full, ranks, "--dst-strategy", old),
        ("plan", ranks, "out", "--src-strategy", old, "--dst-strategy", new, "--workers", "4"),
        ("convert", ranks, "out", "--src-strategy", old, "--dst-strategy", new, "--dry-run", "--workers", "4"),
    ]
    for words in commands:
        here = told(capsys, *words)
        there = told(capsys, *(work.there(w) if isinstance(w, Path) else w for w in words))
        assert (there.code, there.err) == (here.code, here.err), words
        assert _lines(there.out.replace(work.s3.url, str(work.folder))) == _lines(here.out), words
        assert here.code == 0 or words[:2] == ("strategy", "diff")


@pytest.mark.parametrize("work", [".safetensors"], indirect=True)
def test_a_strategy_in_the_store_is_merged_as_one_on_a_disk_is(work: Work) -> None:
    (file,) = sorted(work.strategy.iterdir())
    assert merged_file(work.there(work.strategy)) == merged_file(work.strategy)
    assert merged_file(f"{work.there(work.strategy)}/{file.name}") == (".ckpt", file.read_bytes())


def _lines(text: str) -> list[str]:
    """Without what connections need beside blocks, and what the disk has free just now."""
    return [line for line in text.splitlines() if not line.startswith("memory") and " free" not in line]


@pytest.mark.parametrize(
    ("work", "more"),
    [(".ckpt", ("--crc", "--check-replicas")), (".safetensors", ()), (".safetensors", ("--dtype", "bfloat16"))],
    indirect=["work"],
)
def test_conversions_from_a_url_give_the_same_bytes(
    work: Work, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*more, "--max-shard-size", "2KiB") if work.suffix == ".safetensors" and not more else more
    jobs: list[tuple[object, ...]] = [
        ("convert", work.ranks, "--src-strategy", work.strategy, "--dst-strategy", work.new, *more),
        ("merge", work.ranks, "--src-strategy", work.strategy, *words),
        ("split", work.full, "--dst-strategy", work.new, *more),
        ("unify", work.ranks, "--src-strategy", work.strategy),
    ]
    for number, (command, *rest) in enumerate(jobs):
        here, there = work.folder / f"here{number}", work.folder / f"there{number}"
        for out, place in ((here, lambda p: p), (there, work.there)):
            source, *others = (place(w) if isinstance(w, Path) else w for w in rest)
            assert told(capsys, command, source, out, *others, "--no-fsync", "--quiet").code == 0
        assert tree(there) == tree(here)
        assert tree(here)


def test_a_lora_merge_from_urls(tmp_path: Path, s3: S3, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(3)
    base = write_file(tmp_path / "base.safetensors", {"w.weight": rng.standard_normal((8, 6)).astype(np.float32)})
    factors = {
        "base_model.model.w.lora_A.weight": rng.standard_normal((2, 6)).astype(np.float32),
        "base_model.model.w.lora_B.weight": rng.standard_normal((8, 2)).astype(np.float32),
    }
    write_file(tmp_path / "adapter" / "adapter_model.safetensors", factors)
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4}))
    urls = s3.put(base, base.name), s3.put(tmp_path / "adapter", "adapter")
    made = []
    for source, adapter in ((base, tmp_path / "adapter"), urls):
        out = tmp_path / f"out{len(made)}.safetensors"
        said = told(capsys, "lora", "merge", source, out, "--adapter", adapter, "--quiet")
        assert said.code == 0, said.err
        made.append(out.read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize("work", [".safetensors"], indirect=True)
def test_python_reads_a_url(work: Work) -> None:
    checkpoint = reshard.open(work.there(work.ranks), work.there(work.strategy))
    assert all(same(checkpoint[name].read(), full) for name, full in FULL.items())
    assert same(
        checkpoint.load(1, work.there(work.new))["layers.0.a"], np.ascontiguousarray(FULL["layers.0.a"][:, 12:])
    )


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # which is what is tried
def test_a_fork_of_a_process_that_has_read_is_refused_and_does_not_hang(s3: S3, tmp_path: Path) -> None:
    """The threads of the client are not in it; and where it waited for them, the reads of its parent hung, too."""
    url = s3.put(write_file(tmp_path / "m.safetensors", FULL), "m.safetensors")
    checkpoint = reshard.open(url)
    name, full = next(iter(FULL.items()))
    assert same(checkpoint[name].read(), full)
    for read in (checkpoint[name].read, lambda: reshard.open(url), lambda: reshard.open("s3://another/m.safetensors")):
        child = os.fork()
        if not child:
            signal.alarm(20)
            try:
                read()
            except UsageError as error:
                os._exit(0 if "spawn" in error.hint else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
    assert same(checkpoint[name].read(), full)


def test_an_index_in_a_bucket_says_which_files_count(s3: S3, tmp_path: Path) -> None:
    write_file(tmp_path / "m" / "sub" / "p-1.safetensors", {"a": array((2,), seed=1), "b": array((2,), seed=2)})
    write_file(tmp_path / "m" / "p-2.safetensors", {"b": array((2,), seed=3)})
    write_file(tmp_path / "m" / "model.safetensors", {"a": array((2,), seed=4)})
    holders = {"a": "sub/p-1.safetensors", "b": "p-2.safetensors"}
    (tmp_path / "m" / "my.index.json").write_text(json.dumps({"weight_map": holders}))
    for url in (s3.put(tmp_path / "m", "m"), f"{s3.url}/m/my.index.json"):
        found = reshard.open(url)
        assert same(found["a"].read(), array((2,), seed=1))
        assert same(found["b"].read(), array((2,), seed=3))
    unnamed, copies = open_source(Source(f"{s3.url}/m")).warnings
    assert "does not name model.safetensors: left out" in unnamed
    assert "names other files for b in sub/p-1.safetensors: left out" in copies


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["m-1-of-3.ckpt", "m-3-of-3.ckpt"], "m-2-of-3.ckpt"),
        (["a.ckpt", "b.ckpt"], "2 full checkpoints in one folder"),
        (["a.gguf", "b.gguf"], "2 .gguf"),
    ],
)
def test_a_folder_of_a_bucket_that_is_not_one_checkpoint(s3: S3, tmp_path: Path, names: list[str], said: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
        s3.put(tmp_path / name, f"m/{name}")
    with pytest.raises(CheckpointError, match=said):
        open_source(Source(f"{s3.url}/m"))


# --- requests


def gets(s3: S3, part: str = "") -> list[Request]:
    return [r for r in s3.store.requests if r.method == "GET" and part in r.path and "list-type" not in r.path]


def opened(s3: S3, path: str, strategy: str = "") -> Catalog:
    s3.store.requests.clear()
    return open_source(Source(path, strategy))


@pytest.mark.parametrize("tensors", [3, 3000])
def test_a_header_of_safetensors_takes_two_reads_at_most(s3: S3, tmp_path: Path, tensors: int) -> None:
    arrays = {f"model.layers.{i}.mlp.weight": np.zeros((64,), np.float32) for i in range(tensors)}
    for part in range(5):
        write_file(tmp_path / "m" / f"p{part}.safetensors", {f"{part}.{n}": a for n, a in arrays.items()})
    opened(s3, s3.put(tmp_path / "m", "m"))
    reads = gets(s3, "/m/")
    assert len(reads) == (5 if tensors == 3 else 10)
    assert s3.store.count("HEAD") <= 2  # what is there, and whether a manifest is: files are known from the listing


def test_a_ckpt_takes_a_read_for_each_large_tensor_and_few_for_small_ones(s3: S3, tmp_path: Path) -> None:
    large = {f"large.{i}": np.zeros((300, 1000), np.float32) for i in range(6)}
    small = {f"small.{i}": np.zeros((100,), np.float32) for i in range(2000)}
    opened(s3, s3.put(write_file(tmp_path / "large.ckpt", large), "large.ckpt"))
    assert len(gets(s3)) <= len(large) + 3
    assert sum(_range_nbytes(r) for r in gets(s3)) < 200_000
    opened(s3, s3.put(write_file(tmp_path / "small.ckpt", small), "small.ckpt"))
    assert len(gets(s3)) <= 9  # the window doubles: 16 KiB to 512 KiB are 1 MiB


def _range_nbytes(request: Request) -> int:
    first, _, last = request.range.removeprefix("bytes=").partition("-")
    return int(last) - int(first) + 1


def test_many_ranks_are_listed_and_read_at_once(s3: S3, tmp_path: Path) -> None:
    cuts = [dict.fromkeys(FULL, Sharding((8,), ((0,), ())))]
    source = s3.put(write_ranks(tmp_path / "r", FULL, cuts), "r")
    strategy = s3.put(write_strategy(tmp_path / "s", cuts), "s")
    s3.store.spoil, s3.store.slow_s = (lambda request: "slow"), 0.05
    catalog = opened(s3, source, strategy)
    assert s3.store.most_at_once >= 8
    s3.store.most_at_once = 0
    probe(catalog)
    assert s3.store.most_at_once >= 8


@pytest.mark.parametrize("work", [".ckpt"], indirect=True)
def test_where_a_manifest_lies_beside_no_header_is_read(work: Work) -> None:
    out = work.folder / "made"
    options = Options(dst_strategy=str(work.new), format="safetensors", fsync=False)
    reshard.convert(work.full, out, options)
    url = work.s3.put(out, "made")
    work.s3.put(out / ".reshard" / "manifest.json", "made/.reshard/manifest.json")
    opened(work.s3, url, str(work.new))
    assert not gets(work.s3, "rank_")
    a, b = open_source(Source(url, str(work.new))), open_source(Source(str(out), str(work.new)))
    assert (a.tensors, a.texts, a.notes) == (b.tensors, b.texts, b.notes)


@pytest.mark.parametrize("work", [".ckpt"], indirect=True)
def test_a_damaged_manifest_is_not_believed(work: Work) -> None:
    out = work.folder / "made"
    reshard.convert(work.full, out, Options(dst_strategy=str(work.new), format="safetensors", fsync=False))
    url = work.s3.put(out, "made")
    manifest = out / ".reshard" / "manifest.json"
    content = json.loads(manifest.read_bytes())
    next(iter(content["tables"][0]["tensors"].values()))[0] = -1
    manifest.write_text(json.dumps(content))
    work.s3.put(manifest, "made/.reshard/manifest.json")
    assert "not trusted" in open_source(Source(url, str(work.new))).warnings[0]
    assert len(gets(work.s3, "rank_")) == 2


@pytest.mark.parametrize("work", [".ckpt"], indirect=True)
def test_a_manifest_older_than_a_file_is_not_believed(work: Work) -> None:
    out = work.folder / "made"
    reshard.convert(work.full, out, Options(dst_strategy=str(work.new), format="safetensors", fsync=False))
    manifest = (out / ".reshard" / "manifest.json").read_bytes()
    work.s3.put_bytes("made/.reshard/manifest.json", manifest, age_s=2)  # a store counts in seconds
    for rank in (0, 1):
        name = f"rank_{rank}/checkpoint_{rank}.safetensors"
        work.s3.put(out / name, f"made/{name}")
    opened(work.s3, f"{work.s3.url}/made", str(work.new))
    assert len(gets(work.s3, "rank_")) == 2

"""Targets in object storage: the local engine's bytes, in parts, visible when whole, the manifest last."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from servers import S3, Request, told

from making import array, tree, write_file, write_ranks, write_strategy
from reshard.layout.tensor import Sharding

ROWS, COLUMNS, BOTH = Sharding((2,), ((0,), ())), Sharding((2,), ((), (0,))), Sharding((2, 2), ((1,), (0,)))
FULL = {f"layers.{i}.{w}": array((16, 24), seed=10 * i + j) for i in range(3) for j, w in enumerate("ab")}
FULL |= {"scalar": array((), seed=99), "flag": array((5,), "bool", 7), "half": array((16, 24), "bfloat16", 8)}
SUFFIXES = (".ckpt", ".safetensors")


class Work:
    def __init__(self, folder: Path, s3: S3, suffix: str) -> None:
        self.folder, self.s3, self.suffix = folder, s3, suffix
        old = {n: ROWS if a.ndim == 2 else Sharding((2,), tuple(() for _ in a.shape)) for n, a in FULL.items()}
        new = {n: BOTH if a.ndim == 2 else Sharding((2, 2), tuple(() for _ in a.shape)) for n, a in FULL.items()}
        self.ranks = write_ranks(folder / "ranks", FULL, [old], suffix)
        self.old = write_strategy(folder / "old", [old])
        self.new = write_strategy(folder / "new", [new])
        self.full = write_file(folder / f"full{suffix}", FULL)
        s3.put(self.ranks, "ranks")

    def there(self, below: str) -> dict[str, bytes]:
        """What lies below a folder of the bucket, apart from our own notes."""
        keys = [k for k in self.s3.keys(below + "/") if ".reshard" not in k and not k.endswith("/")]
        return {k.removeprefix(below + "/"): self.s3.get(k) for k in keys}

    def jobs(self) -> dict[str, tuple[object, ...]]:
        return {
            "split": ("split", self.full, "--dst-strategy", self.new),
            "merge": ("merge", self.ranks, "--src-strategy", self.old),
            "recut": ("convert", self.ranks, "--src-strategy", self.old, "--dst-strategy", self.new),
            "unify": ("unify", self.ranks, "--src-strategy", self.old),
        }


@pytest.fixture(params=SUFFIXES)
def work(tmp_path: Path, s3: S3, request: pytest.FixtureRequest) -> Work:
    return Work(tmp_path, s3, request.param)


@pytest.mark.parametrize(
    ("work", "job"),
    [(".ckpt", "split"), (".ckpt", "merge"), (".safetensors", "recut"), (".ckpt", "recut"), (".safetensors", "unify")],
    indirect=["work"],
)
def test_a_target_there_holds_the_bytes_of_one_here(work: Work, job: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, source, *more = work.jobs()[job]
    work.s3.put_bytes("out/", b"")  # as consoles make a folder: it is empty all the same
    assert told(capsys, command, source, work.folder / "out", *more, "--no-fsync").code == 0
    said = told(capsys, command, source, f"{work.s3.url}/out", *more, "--verify")
    assert said.code == 0, said.err
    assert work.there("out") == tree(work.folder / "out")
    assert ".reshard/manifest.json" in work.s3.keys("out/.reshard")[0]
    assert work.s3.uploads() == 0
    assert told(capsys, "verify", f"{work.s3.url}/out").code == 0


@pytest.mark.parametrize(
    "more", [("--crc",), ("--checksum", "off"), ("--dtype", "bfloat16"), ("--replicas", "link"), ("--workers", "1")]
)
def test_options_make_the_same_bytes_there(
    tmp_path: Path, s3: S3, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    work = Work(tmp_path, s3, ".ckpt")
    words = ("--dst-strategy", work.new, *more)
    assert told(capsys, "split", work.full, tmp_path / "out", *words).code == 0
    said = told(capsys, "split", work.full, f"{s3.url}/out", *words)
    assert said.code == 0, said.err
    assert work.there("out") == tree(tmp_path / "out")


def test_notes_of_files_are_made_read_and_removed_at_once(
    tmp_path: Path, s3: S3, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is a round trip: one after the other, those of a thousand files take minutes."""
    full, cut = {"w": array((16, 4))}, {"w": Sharding((16,), ((0,), ()))}
    source, strategy = write_file(tmp_path / "full.ckpt", full), write_strategy(tmp_path / "new", [cut])
    s3.store.spoil, s3.store.slow_s = (lambda request: "slow" if "/done/" in request.path else None), 0.1
    assert told(capsys, "split", source, f"{s3.url}/out", "--dst-strategy", strategy).code == 0
    for method in ("PUT", "HEAD", "GET", "DELETE"):
        notes = [r for r in s3.store.requests if r.method == method and "/done/" in r.path]
        assert len(notes) == 16, method
        assert max(r.at_once for r in notes) >= 8, method


def test_replicas_are_copied_by_the_store(tmp_path: Path, s3: S3, capsys: pytest.CaptureFixture[str]) -> None:
    full = write_file(tmp_path / "full.safetensors", {"w": array((64, 64))})
    strategy = write_strategy(tmp_path / "dp4", [{"w": Sharding((4,), ((), ()))}])
    said = told(capsys, "split", full, f"{s3.url}/out", "--dst-strategy", strategy, "--replicas", "link")
    assert said.code == 0, said.err
    weights = [r for r in s3.store.requests if r.method == "PUT" and "rank_" in r.path]
    assert sorted(r.nbytes > 0 for r in weights) == [False, False, False, True]
    contents = {s3.get(f"out/rank_{rank}/checkpoint_{rank}.safetensors") for rank in range(4)}
    assert len(contents) == 1


def test_a_replica_too_large_to_be_copied_passes_through(
    tmp_path: Path, s3: S3, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reshard.storage.object_store._LARGEST_COPY_NBYTES", 1000)
    full = write_file(tmp_path / "full.safetensors", {"w": array((64, 64))})
    strategy = write_strategy(tmp_path / "dp2", [{"w": Sharding((2,), ((), ()))}])
    words = ("--dst-strategy", strategy, "--replicas", "link", "--quiet")
    assert told(capsys, "split", full, f"{s3.url}/out", *words).code == 0
    assert s3.get("out/rank_0/checkpoint_0.safetensors") == s3.get("out/rank_1/checkpoint_1.safetensors")
    weights = [r for r in s3.store.requests if r.method == "PUT" and "rank_" in r.path]
    assert [r.nbytes > 0 for r in weights] == [True, True]


def test_shares_fill_a_target_there(tmp_path: Path, s3: S3, capsys: pytest.CaptureFixture[str]) -> None:
    """The last one to finish publishes; a share that is done has nothing to do."""
    work = Work(tmp_path, s3, ".safetensors")
    command, source, *more = work.jobs()["recut"]
    assert told(capsys, command, source, tmp_path / "out", *more, "--no-fsync").code == 0
    missing = []
    for share in ("2/3", "0/3", "2/3", "1/3"):
        said = told(capsys, command, source, f"{s3.url}/out", *more, "--share", share)
        assert said.code == 0, said.err
        missing.append("of others still to be made" in said.out)
        assert ("out/.reshard/manifest.json" in s3.keys("out")) != missing[-1]
    assert missing == [True, True, True, False]
    assert work.there("out") == tree(tmp_path / "out")
    assert told(capsys, "verify", f"{s3.url}/out").code == 0


@pytest.mark.parametrize("by_then", ["made again", "published"])
def test_a_note_that_another_replaces_or_removes_while_it_is_read(
    by_then: str, tmp_path: Path, s3: S3, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two shares end at the same moment, or one is run twice."""
    work = Work(tmp_path, s3, ".safetensors")
    command, source, *more = work.jobs()["recut"]
    words = (command, source, f"{s3.url}/out", *more, "--share")
    for share in ("0/2", "1/2"):
        assert told(capsys, command, source, f"{s3.url}/before", *more, "--share", share).code == 0
    assert told(capsys, *words, "0/2").code == 0
    notes = s3.keys("out/.reshard/done/")
    meddled: list[str] = []

    def spoil(request: Request) -> None:
        if request.method == "GET" and request.key.endswith(".json") and "/done/" in request.key and not meddled:
            meddled.append(request.key)
            if by_then == "made again":
                s3.put_bytes(notes[0], s3.get(notes[0]))
            else:
                s3.put_bytes("out/.reshard/manifest.json", s3.get("before/.reshard/manifest.json"))
                for note in notes:
                    del s3.store.objects[f"/{s3.bucket}/{note}"]

    s3.store.spoil = spoil
    said = told(capsys, *words, "1/2")
    assert (said.code, bool(meddled)) == (0, True), said.err
    assert told(capsys, "verify", f"{s3.url}/out").code == 0


def test_one_file_is_a_target(tmp_path: Path, s3: S3, capsys: pytest.CaptureFixture[str]) -> None:
    work = Work(tmp_path, s3, ".safetensors")
    words = ("--src-strategy", work.old)
    url = f"{s3.url}/one/full.ckpt"
    assert told(capsys, "merge", f"{s3.url}/ranks", tmp_path / "full.ckpt", *words).code == 0
    assert told(capsys, "merge", f"{s3.url}/ranks", url, *words, "--verify").code == 0
    assert s3.get("one/full.ckpt") == (tmp_path / "full.ckpt").read_bytes()
    again = told(capsys, "merge", f"{s3.url}/ranks", url, *words)
    assert (again.code, "not empty" in again.err) == (2, True)
    assert told(capsys, "merge", f"{s3.url}/ranks", url, *words, "--overwrite").code == 0


def test_one_file_takes_the_place_of_another(tmp_path: Path, s3: S3, capsys: pytest.CaptureFixture[str]) -> None:
    """Of one that another conversion made, of one that none made, and of one whose making was interrupted."""
    work = Work(tmp_path, s3, ".safetensors")
    words = ("merge", f"{s3.url}/ranks", f"{s3.url}/one/full.ckpt", "--src-strategy", work.old)
    assert told(capsys, *words).code == 0
    for more in (("--dtype", "float16"), ()):
        said = told(capsys, *words, *more, "--overwrite", "--verify")
        assert said.code == 0, said.err
        assert told(capsys, "merge", *words[1:2], tmp_path / "full.ckpt", *words[3:], *more, "--overwrite").code == 0
        assert s3.get("one/full.ckpt") == (tmp_path / "full.ckpt").read_bytes()
    for name in s3.keys("one/.reshard"):
        del s3.store.objects[f"/{s3.bucket}/{name}"]
    s3.put_bytes("one/full.ckpt", b"mine")
    said = told(capsys, *words, "--overwrite", "--verify")
    assert said.code == 0, said.err
    assert told(capsys, *words, "--resume").code == 0


def test_a_file_that_states_sums_of_its_bytes(tmp_path: Path, s3: S3, capsys: pytest.CaptureFixture[str]) -> None:
    work = Work(tmp_path, s3, ".safetensors")
    for words in (("full.pt",), ("full.ckpt", "--crc")):
        job = (f"{s3.url}/ranks", "--src-strategy", work.old, *words[1:])
        assert told(capsys, "merge", job[0], tmp_path / words[0], *job[1:]).code == 0
        assert told(capsys, "merge", job[0], f"{s3.url}/one/{words[0]}", *job[1:]).code == 0
        assert s3.get(f"one/{words[0]}") == (tmp_path / words[0]).read_bytes()
    with zipfile.ZipFile(tmp_path / "full.pt") as file:
        assert file.testzip() is None
    assert told(capsys, "inspect", f"{s3.url}/one/full.pt").code == 0


def test_a_target_that_holds_something_is_refused(tmp_path: Path, s3: S3, capsys: pytest.CaptureFixture[str]) -> None:
    work = Work(tmp_path, s3, ".ckpt")
    s3.put_bytes("out/notes.txt", b"mine")
    words = ("split", work.full, f"{s3.url}/out", "--dst-strategy", work.new)
    for more, code in (((), 2), (("--overwrite",), 2), (("--resume",), 2)):
        said = told(capsys, *words, *more)
        assert said.code == code, said.err
    assert s3.keys("out") == ["out/notes.txt"]


# --- parts


class Large:
    """A checkpoint of 40 MiB on four ranks: files of several parts."""

    def __init__(self, folder: Path) -> None:
        self.full = {f"w{i}": array((1024, 1280), seed=i) for i in range(8)}
        old = [dict.fromkeys(self.full, Sharding((4,), ((0,), ())))]
        new = [dict.fromkeys(self.full, Sharding((2,), ((), (0,))))]
        self.ranks = write_ranks(folder / "ranks", self.full, old, ".safetensors")
        self.old, self.new = write_strategy(folder / "old", old), write_strategy(folder / "new", new)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Large:
    return Large(tmp_path_factory.mktemp("large"))


@pytest.mark.parametrize("to", ["one", "two"])
def test_large_files_go_up_in_parts_of_one_size(
    large: Large, to: str, tmp_path: Path, s3: S3, capsys: pytest.CaptureFixture[str]
) -> None:
    words: tuple[object, ...] = ("--src-strategy", large.old, *(("--dst-strategy", large.new) if to == "two" else ()))
    said = told(capsys, "convert", large.ranks, f"{s3.url}/out", *words, "--workers", "16")
    assert said.code == 0, said.err
    assert told(capsys, "convert", large.ranks, tmp_path / "out", *words, "--no-fsync").code == 0
    assert {k: s3.get(f"out/{k}") for k in tree(tmp_path / "out")} == tree(tmp_path / "out")
    parts = [r.nbytes for r in s3.store.requests if "partNumber" in r.path]
    files = 1 if to == "one" else 2
    assert len(parts) >= 5
    assert sum(n == 8 << 20 for n in parts) == len(parts) - files  # all but the last of each file
    assert s3.uploads() == 0


def test_the_manifest_comes_last_and_no_file_before_it_is_whole(
    large: Large, s3: S3, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--src-strategy", large.old, "--dst-strategy", large.new)
    assert told(capsys, "convert", large.ranks, f"{s3.url}/out", *words).code == 0
    written = [r for r in s3.store.requests if r.method in ("PUT", "POST")]
    completed = [r.number for r in written if r.method == "POST" and "uploadId" in r.path]
    (manifest,) = [r.number for r in written if r.key.endswith("manifest.json")]
    assert len(completed) == 2
    assert max(completed) < manifest
    assert not [r for r in written if r.number > manifest and "rank_" in r.path]


def test_threads_read_ahead_of_what_is_written(tmp_path: Path, s3: S3, capsys: pytest.CaptureFixture[str]) -> None:
    """Every request takes a while: many are under way at once although files are written front to back."""
    full = {f"w{i}": array((64, 64 + 2 * i), seed=i) for i in range(64)}
    old = [dict.fromkeys(full, Sharding((2,), ((), (0,))))]
    source = s3.put(write_ranks(tmp_path / "r", full, old, ".safetensors"), "ranks")
    s3.store.spoil, s3.store.slow_s = (lambda request: "slow"), 0.05
    words = ("--src-strategy", write_strategy(tmp_path / "s", old))
    assert told(capsys, "merge", source, f"{s3.url}/out", *words).code == 0
    reads = [r for r in s3.store.requests if r.method == "GET" and "/ranks/rank_" in r.path][-2 * len(full) :]
    assert sorted(r.at_once for r in reads)[len(full)] >= 6


def test_small_neighbours_take_few_requests(tmp_path: Path, s3: S3, capsys: pytest.CaptureFixture[str]) -> None:
    full = {f"w{i:02}": array((64, 64), seed=i) for i in range(64)}
    old = [dict.fromkeys(full, Sharding((2,), ((0,), ())))]
    source = s3.put(write_ranks(tmp_path / "r", full, old, ".safetensors"), "ranks")
    words = ("--src-strategy", write_strategy(tmp_path / "s", old))
    assert told(capsys, "merge", source, f"{s3.url}/out", *words).code == 0
    reads = [r for r in s3.store.requests if r.method == "GET" and "/ranks/rank_" in r.path]
    assert len(reads) <= len(full) // 2  # of 128 shards

"""Stores that fail: what may pass is tried again, what may not is told with its exit code, nothing half-done stays."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from servers import S3, Kind, Request, told

from forks import DONE, forks
from making import array, tree, write_file, write_ranks, write_strategy
from reshard.layout.tensor import Sharding
from waiting import wait_until

FULL = {f"w{i}": array((512, 1024), seed=i) for i in range(12)}  # 24 MiB
OLD, NEW = Sharding((2,), ((0,), ())), Sharding((2,), ((), (0,)))


class Job:
    """From two ranks there to two others there, in parts, and what it makes on a disk."""

    def __init__(self, folder: Path) -> None:
        self.ranks = write_ranks(folder / "ranks", FULL, [dict.fromkeys(FULL, OLD)], ".safetensors")
        self.old = write_strategy(folder / "old", [dict.fromkeys(FULL, OLD)])
        self.new = write_strategy(folder / "new", [dict.fromkeys(FULL, NEW)])
        self.out = folder / "out"

    def words(self, source: object, target: object) -> tuple[object, ...]:
        return ("convert", source, target, "--src-strategy", self.old, "--dst-strategy", self.new)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    made = Job(tmp_path_factory.mktemp("job"))
    assert forks().run(*map(str, made.words(made.ranks, made.out)), "--no-fsync", "--quiet") == DONE
    return made


@pytest.mark.parametrize("kind", ["500", "503", "cut", "cut-early", "slow"])
def test_what_passes_is_tried_again(
    job: Job, s3: S3, kind: Kind, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fifth request of each kind is spoilt once; the bytes are those of the local engine."""
    source = s3.put(job.ranks, "ranks")
    seen: set[tuple[str, str, str]] = set()

    def spoil(request: Request) -> Kind | None:
        what = (request.method, request.path, request.range)
        if what in seen or (len(seen) % 5 == 4 and request.number % 2):
            return None
        seen.add(what)
        # of what makes something, only a part may lose its answer: whether the rest was done nobody can know
        once = request.method in ("PUT", "POST") and "partNumber" not in request.path and kind.startswith("cut")
        return kind if len(seen) % 5 == 0 and not once else None

    s3.store.spoil, s3.store.slow_s = spoil, 0.3
    said = told(capsys, *job.words(source, f"{s3.url}/out"))
    assert said.code == 0, said.err
    s3.store.spoil = lambda request: None
    assert {k: s3.get(f"out/{k}") for k in tree(job.out)} == tree(job.out)
    assert s3.uploads() == 0


@pytest.mark.parametrize(
    ("kind", "method", "part"),
    [
        *(("slow", *what) for what in (("GET", "ranks/rank_1"), ("GET", "list-type"), ("PUT", "partNumber"))),
        *(
            ("slow", *what)
            for what in (("PUT", "begun"), ("PUT", "manifest"), ("DELETE", "done"), ("POST", "uploadId"))
        ),
        ("cut", "POST", "uploadId"),
    ],
)
def test_answers_that_do_not_come_are_asked_for_again(
    job: Job,
    s3: S3,
    kind: Kind,
    method: str,
    part: str,
    capsys: pytest.CaptureFixture[str],
    shorten: Callable[..., None],
) -> None:
    """Twice a store is silent, or does what it was asked for and cannot say so."""
    shorten(store_silence_s=1)
    source = s3.put(job.ranks, "ranks")
    spoilt: list[Request] = []

    def spoil(request: Request) -> Kind | None:
        if request.method != method or part not in request.path or len(spoilt) == 2:
            return None
        spoilt.append(request)
        return kind

    s3.store.spoil, s3.store.slow_s = spoil, 2
    said = told(capsys, *job.words(source, f"{s3.url}/out"))
    assert said.code == 0, said.err
    assert len(spoilt) == 2
    assert {k: s3.get(f"out/{k}") for k in tree(job.out)} == tree(job.out)
    assert told(capsys, "verify", f"{s3.url}/out").code == 0


@pytest.mark.parametrize(
    ("kind", "times", "says"),
    [
        ("short", 3, ""),
        ("short", sys.maxsize, "bytes came where"),
        ("long", 1, "more bytes came than"),
    ],
)
def test_an_answer_of_another_length_than_its_range_is_no_answer(
    job: Job,
    s3: S3,
    kind: Kind,
    times: int,
    says: str,
    capsys: pytest.CaptureFixture[str],
    shorten: Callable[..., None],
) -> None:
    """As of a proxy that lost the rest: the length is that of what comes, the range the one that was asked for."""
    shorten(store_pause_s=0.001)
    source = s3.put(job.ranks, "ranks")
    spoilt: list[Request] = []

    def spoil(request: Request) -> Kind | None:
        first, _, last = request.range.removeprefix("bytes=").partition("-")
        header = int(first or 0) < 100_000
        if request.method != "GET" or header or not last or len(spoilt) >= times:
            return None
        spoilt.append(request)
        return kind

    s3.store.spoil = spoil
    said = told(capsys, *job.words(source, f"{s3.url}/out"))
    assert (said.code, says in said.err) == (4 if says else 0, True), said.err
    made = [key.removeprefix("out/") for key in s3.keys("out/") if ".reshard" not in key]
    assert {key: s3.get(f"out/{key}") for key in made} == ({} if says else tree(job.out))


def test_an_upload_that_somebody_takes_back_is_told(job: Job, s3: S3, capsys: pytest.CaptureFixture[str]) -> None:
    def spoil(request: Request) -> None:
        if request.method == "POST" and "uploadId" in request.path:
            s3.store.uploads.clear()

    s3.store.spoil = spoil
    said = told(capsys, *job.words(job.ranks, f"{s3.url}/out"))
    assert (said.code, "does not know the upload any more" in said.err) == (4, True), said.err
    assert not [k for k in s3.keys("out") if k.endswith("manifest.json")]


def test_what_an_upload_should_replace_is_not_taken_for_it(
    tmp_path: Path, s3: S3, capsys: pytest.CaptureFixture[str]
) -> None:
    """One file of several parts in place of another as long, and somebody takes the upload back."""
    old, new = (write_file(tmp_path / f"{n}.safetensors", {"w": array((3072, 1024), seed=n)}) for n in (1, 2))
    url = s3.put(old, "one.safetensors")

    def spoil(request: Request) -> None:
        if request.method == "POST" and "uploadId" in request.path:
            s3.store.uploads.clear()

    s3.store.spoil = spoil
    said = told(capsys, "convert", new, url, "--overwrite")
    assert (said.code, "does not know the upload any more" in said.err) == (4, True), said.err
    assert s3.get("one.safetensors") == old.read_bytes()


@pytest.mark.parametrize(("method", "part"), [("PUT", "partNumber"), ("POST", "uploadId"), ("GET", "ranks/rank_1")])
def test_a_fault_that_stays_ends_the_job_and_leaves_nothing_half_done(
    job: Job, s3: S3, method: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = s3.put(job.ranks, "ranks")
    reading = method == "GET"

    def spoil(request: Request) -> Kind | None:
        there = request.method == method and part in request.path
        if there and reading:  # late, when parts of the target are there already
            first, _, last = request.range.removeprefix("bytes=").partition("-")
            there = bool(first) and int(first) > 11_000_000 and int(last) - int(first) > 10_000
        if there:
            refused.append((request.path, request.range))
        return "403" if there else None

    refused: list[tuple[str, str]] = []
    s3.store.spoil = spoil
    said = told(capsys, *job.words(source, f"{s3.url}/out"))
    assert said.code == 4, said.err
    assert "not allowed: by the test (Spoilt)" in said.err
    assert "AWS_ACCESS_KEY_ID" in said.err
    assert len(refused) == len({*refused}), "what is not allowed was asked for again"
    assert s3.uploads() == 0
    assert not [k for k in s3.keys("out") if k.endswith(("manifest.json", ".safetensors"))]
    s3.store.spoil = lambda request: None
    assert told(capsys, *job.words(source, f"{s3.url}/out"), "--resume").code == 0
    assert {k: s3.get(f"out/{k}") for k in tree(job.out)} == tree(job.out)


def test_a_killed_upload_is_gone_on_with(job: Job, s3: S3, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed when one file is whole and the next is under way, the rest is made and the whole file is not."""
    source = s3.put(job.ranks, "ranks")
    words = [*map(str, job.words(source, f"{s3.url}/out")), "--max-memory", "144MiB", "--workers", "2", "--quiet"]
    process = forks().start(*words)
    wait_until(lambda: s3.store.count("PUT", ".reshard/done/"))
    process.kill(signal.SIGKILL)
    assert process.ended().code == -signal.SIGKILL
    whole = [k for k in s3.keys("out") if k.endswith(".safetensors")]
    assert len(whole) == 1
    assert not [k for k in s3.keys("out") if k.endswith("manifest.json")]
    before = len(s3.store.requests)
    assert told(capsys, *job.words(source, f"{s3.url}/out"), "--resume").code == 0
    assert not [r for r in s3.store.requests[before:] if r.method in ("PUT", "POST") and whole[0] in r.path]
    assert {k: s3.get(f"out/{k}") for k in tree(job.out)} == tree(job.out)


def test_a_source_that_changes_while_it_is_read_is_refused(
    job: Job, s3: S3, capsys: pytest.CaptureFixture[str]
) -> None:
    source = s3.put(job.ranks, "ranks")
    changed: list[int] = []

    def spoil(request: Request) -> Kind | None:
        data = request.key.endswith("model_1.safetensors") and not request.range.startswith("bytes=0-")
        if data and not changed:
            changed.append(request.number)
            content = (job.ranks / "rank_1" / "model_1.safetensors").read_bytes()
            s3.put_bytes("ranks/rank_1/model_1.safetensors", content[:-1] + b"x")
        return None

    s3.store.spoil = spoil
    said = told(capsys, *job.words(source, f"{s3.url}/out"))
    assert (said.code, "rank_1/model_1.safetensors: the file changed" in said.err) == (3, True), said.err
    assert not [k for k in s3.keys("out") if k.endswith("manifest.json")]


# --- what a user gets wrong


def test_wrong_buckets_keys_and_credentials(s3: S3, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = write_file(tmp_path / "full.ckpt", {"w": array((4, 4))})
    for url, code, says in (
        ("s3://no-such-bucket/x", 3, "no such"),
        (f"{s3.url}/nothing/here", 3, "no such file or folder"),
        (f"{s3.url}/nothing.ckpt", 3, "no such file or folder"),
        ("ftp://host/x.ckpt", 2, "ftp:// is not supported"),
        ("s3:///x.ckpt", 2, "names no bucket"),
    ):
        said = told(capsys, "inspect", url)
        assert (said.code, says in said.err) == (code, True), said.err
        assert "hint:" in said.err or "no such" in says
    said = told(capsys, "convert", full, "s3://no-such-bucket/out.ckpt")
    assert (said.code, "no such bucket" in said.err) == (3, True), said.err
    s3.put(full, "full.ckpt")
    s3.store.spoil = lambda request: "403"
    said = told(capsys, "inspect", f"{s3.url}/full.ckpt")
    assert (said.code, "AWS_ACCESS_KEY_ID" in said.err) == (4, True), said.err
    said = told(capsys, "convert", full, f"{s3.url}/out.ckpt")
    assert (said.code, "not allowed" in said.err) == (4, True), said.err


@pytest.mark.parametrize("odd", ["ckpt//m.ckpt", "ckpt/./m.ckpt"])
def test_a_key_that_the_client_does_not_take_is_named_with_what_to_do(
    odd: str, s3: S3, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    s3.put(write_file(tmp_path / "m.ckpt", {"w": array((4, 4))}), "ckpt/m.ckpt")
    s3.put_bytes(odd, b"")
    said = told(capsys, "inspect", f"{s3.url}/ckpt")
    assert said.code == 4
    assert odd in said.err
    assert "hint: remove that object, or give a folder without it" in said.err


def test_a_server_that_is_not_there_ends_in_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reshard.storage.bucket._RETRIES", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    said = told(capsys, "inspect", "s3://bucket/x.ckpt")
    assert (said.code, "check endpoint and network" in said.err) == (4, True), said.err


def test_without_obstore_the_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    said = told(capsys, "inspect", "s3://another-bucket/x.ckpt")
    assert (said.code, "pip install 'reshard[cloud]'" in said.err) == (2, True), said.err

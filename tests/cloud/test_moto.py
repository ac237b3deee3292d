"""Moto speaks S3 as others know it: it judges what our own server of tests answers, and whole jobs go through it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import pytest
from servers import S3, told

from making import array, tree, write_file, write_ranks, write_strategy
from reshard.layout.tensor import Sharding

SIGNED = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
NAMED = re.compile("<(Code|Size|Contents><Key|CommonPrefixes><Prefix|IsTruncated)>([^<]+)<")
PART = bytes(5 << 20)


@pytest.fixture(scope="module")
def moto() -> Iterator[int]:
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("moto_server.py"))]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert server.stdout
    yield int(server.stdout.readline())
    server.communicate()


@dataclass(frozen=True)
class Answer:
    """What a client of ours looks at."""

    status: int
    body: str
    headers: Mapping[str, str]

    @property
    def told(self) -> tuple[object, ...]:
        """Without what each server may choose: times, marks, the order in which things are named."""
        if "<?xml" in self.body:
            return self.status, sorted(set(NAMED.findall(re.sub(r">\s+<", "><", self.body))))
        kept = ("content-range", "content-length") if self.status < 300 else ()
        return self.status, self.body, {name: value for name, value in self.headers.items() if name in kept}

    @property
    def etag(self) -> str:
        return self.headers["etag"]


class Client:
    def __init__(self, port: int, bucket: str) -> None:
        self._port = port
        self.bucket = bucket
        self.heard: list[Answer] = []

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        sent = {"Authorization": SIGNED, **{name.replace("_", "-"): value for name, value in headers.items()}}
        with closing(HTTPConnection("127.0.0.1", self._port, timeout=60)) as connection:
            connection.request(method, f"/{self.bucket}{path}", body, sent)
            got = connection.getresponse()
            text = got.read().decode("latin-1")
        self.heard.append(Answer(got.status, text, {name.lower(): value for name, value in got.getheaders()}))
        return self.heard[-1]

    def begun(self, key: str) -> str:
        """The query of a new upload of parts; its number is each server's own."""
        found = re.search("<UploadId>([^<]*)<", self.ask("POST", f"/{key}?uploads").body)
        assert found
        self.heard.pop()
        return f"/{key}?uploadId={found[1]}"

    def part(self, upload: str, number: int, content: bytes) -> str:
        return self.ask("PUT", f"{upload}&partNumber={number}", content).etag

    def completed(self, upload: str, *etags: str) -> Answer:
        parts = "".join(
            f"<Part><PartNumber>{n}</PartNumber><ETag>{etag}</ETag></Part>" for n, etag in enumerate(etags, 1)
        )
        return self.ask("POST", upload, f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode())


def everything(client: Client) -> list[tuple[object, ...]]:
    ask = client.ask
    ask("PUT", "/a/one", b"0123456789")
    ask("PUT", "/a/b/two", b"22")
    ask("PUT", "/a/c/", b"")
    ask("PUT", "/a%20%26%20%3Cb%3E", b"odd")
    for query in ("", "&prefix=a/", "&prefix=a/&delimiter=/", "&delimiter=/", "&prefix=nothing"):
        ask("GET", f"?list-type=2{query}")
    first = ask("GET", "/a/one").etag
    assert ask("HEAD", "/a/one").etag == ask("GET", "/a/one", range="bytes=2-4").etag == first
    ask("GET", "/a/one", range="bytes=7-")
    ask("GET", "/a/one", range="bytes=7-99")
    ask("PUT", "/a/one", b"9876543210")
    assert ask("HEAD", "/a/one").etag != first
    for method in ("GET", "HEAD", "DELETE"):
        ask(method, "/nothing")
    ask("PUT", "/a/one", b"x", if_none_match="*")
    ask("PUT", "/new", b"x", if_none_match="*")
    ask("PUT", "/copy", x_amz_copy_source=f"{client.bucket}/a/one")
    ask("PUT", "/copy2", x_amz_copy_source=f"{client.bucket}/nothing")
    ask("GET", "/copy")
    ask("POST", "?delete", b"<Delete><Object><Key>a/one</Key></Object><Object><Key>nothing</Key></Object></Delete>")
    ask("GET", "/a/one")
    upload = client.begun("parts")
    etags = client.part(upload, 1, PART), client.part(upload, 2, b"rest")
    ask("HEAD", "/parts")
    client.completed(upload, *etags)
    ask("HEAD", "/parts")
    ask("GET", "/parts", range=f"bytes={len(PART) - 1}-")
    ask("DELETE", upload)
    small = client.begun("small")
    client.completed(small, client.part(small, 1, b"small"), client.part(small, 2, b"rest"))
    ask("DELETE", small)
    ask("GET", "?list-type=2")
    return [answer.told for answer in client.heard]


def test_our_server_answers_as_moto_does(moto: int, s3: S3) -> None:
    ours, theirs = Client(s3.store.port, s3.bucket), Client(moto, s3.bucket)
    assert theirs.ask("PUT", "").status == 200
    theirs.heard.clear()
    assert [pair for pair in zip(everything(ours), everything(theirs), strict=True) if pair[0] != pair[1]] == []


def test_without_a_bucket_both_say_so(moto: int, s3: S3) -> None:
    for method in ("GET", "PUT", "HEAD"):
        ours, theirs = (Client(port, "not-there").ask(method, "/x") for port in (s3.store.port, moto))
        assert ours.told[:2] == theirs.told[:2]


FULL = {f"w{i}": array((512, 1536), seed=i) for i in range(6)}  # 18 MiB
OLD, NEW = Sharding((2, 2), ((1,), ())), Sharding((2, 2), ((), (0,)))


def test_whole_jobs(
    moto: int, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files in parts, replicas that the store copies, notes, a manifest that is read again, ranks one by one."""
    bucket = f"{s3.bucket}-moto"
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{moto}")
    assert Client(moto, bucket).ask("PUT", "").status == 200
    cuts = [[dict.fromkeys(FULL, cut)] for cut in (OLD, NEW)]
    old, new = (write_strategy(tmp_path / f"s{i}", cut) for i, cut in enumerate(cuts))
    ranks = write_ranks(tmp_path / "ranks", FULL, cuts[0], ".safetensors")
    words = ("--dst-strategy", new, "--replicas", "link", "--quiet")
    out, there = tmp_path / "out", f"s3://{bucket}/out"
    assert told(capsys, "convert", ranks, out, "--src-strategy", old, *words, "--no-fsync").code == 0
    said = told(capsys, "convert", ranks, there, "--src-strategy", old, *words, "--share", "1/2")
    assert said.code == 0, said.err
    said = told(capsys, "convert", ranks, there, "--src-strategy", old, *words, "--share", "0/2")
    assert said.code == 0, said.err
    assert told(capsys, "verify", there).code == 0
    said = told(capsys, "convert", ranks, there, "--src-strategy", old, *words, "--resume")
    assert said.code == 0, said.err
    back = tmp_path / "back"
    assert told(capsys, "convert", there, back, "--src-strategy", new, *words, "--no-fsync").code == 0
    weights = {name: content for name, content in tree(out).items() if name.endswith(".safetensors")}
    assert {name: content for name, content in tree(back).items() if name in weights} == weights
    full = write_file(tmp_path / "full.safetensors", {"w": array((4, 4))})
    assert told(capsys, "convert", full, f"s3://{bucket}/one.ckpt").code == 0
    assert told(capsys, "diff", full, f"s3://{bucket}/one.ckpt").code == 0
    assert told(capsys, "inspect", f"s3://{bucket}/nothing.ckpt").code == 3
    assert "<Upload>" not in Client(moto, bucket).ask("GET", "?uploads").body

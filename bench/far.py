"""Object storage to object storage, through a server that answers late: reshard against a plain client.

    python bench/far.py [--layers 12] [--runs 2] [--latency 0.05] [--rates 125e6 250e6] [--dir DIR]

Columns: seconds (medians) of reshard; MB/s of what it reads and writes, each way; the same of a plain client that reads
ranges of 8 MiB in 32 threads while it uploads as many other bytes, 32 parts at once; what part of the plain client's
rate reshard has, by pairs; peak anonymous memory; what limits reshard. The rate of the server is of each way, over all
connections.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import obstore
from obstore.store import S3Store

from cases import RESHARD, remove
from checkpoints import Model, write_full, write_strategy
from run import measured

_RANGE_NBYTES = 8 << 20
_AT_ONCE = 32
_MEMORY = "2GiB"
_OF_LINE = 0.8


@contextmanager
def served(folder: Path, latency_s: float, rate: float) -> Iterator[str]:
    """The endpoint of a server of the buckets in a folder."""
    argv = [sys.executable, str(Path(__file__).parent / "store.py"), str(folder), str(latency_s), str(rate)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        assert server.stdin
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        server.stdin.close()


def plain_seconds(store: S3Store, key: str) -> float:
    """Seconds to read an object, and to write as much meanwhile."""
    nbytes = obstore.head(store, key)["size"]
    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(_write, store, nbytes)
        _read(store, key, nbytes)
        writing.result()
    seconds = time.monotonic() - began
    obstore.delete(store, "plain")
    return seconds


def _read(store: S3Store, key: str, nbytes: int) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for done in [
            pool.submit(obstore.get_range, store, key, start=at, end=min(at + _RANGE_NBYTES, nbytes))
            for at in range(0, nbytes, _RANGE_NBYTES)
        ]:
            done.result()


def _write(store: S3Store, nbytes: int) -> None:
    with obstore.open_writer(store, "plain", buffer_size=_RANGE_NBYTES, max_concurrency=_AT_ONCE) as writer:
        part = bytes(_RANGE_NBYTES)
        for at in range(0, nbytes, _RANGE_NBYTES):
            writer.write(part[: nbytes - at])


def row(args: argparse.Namespace, endpoint: str, rate: float, nbytes: int) -> str:
    store = S3Store(
        "bench", endpoint=endpoint, client_options={"allow_http": True}, access_key_id="k", secret_access_key="s"
    )
    ours, theirs, peak = [], [], 0.0
    for run in range(args.runs):
        theirs.append(plain_seconds(store, "full.safetensors"))
        argv = [RESHARD, "split", "s3://bench/full.safetensors", f"s3://bench/out-{run}", "--max-memory", _MEMORY]
        done = measured([*argv, "--dst-strategy", str(args.dir / "mp8"), "--json"])
        ours.append(done.seconds)
        peak = max(peak, done.peak_mib)
        for found in obstore.list(store, f"out-{run}").collect():
            obstore.delete(store, found["path"])
    seconds, plain = statistics.median(ours), statistics.median(theirs)
    part = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    what = f"S3 → S3, 1 → mp8, {nbytes / 1e9:.1f} GB, {args.latency * 1000:.0f} ms, {rate / 1e6:.0f} MB/s"
    rates = f"{nbytes / 1e6 / seconds:.0f} | {nbytes / 1e6 / plain:.0f}"
    limits = "line" if part > _OF_LINE else "round trips"
    return f"| {what} | {seconds:.2f} | {rates} | **{part:.2f}** | {peak:.0f} | {limits} |"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--layers", type=int, default=12)
    options.add_argument("--runs", type=int, default=2)
    options.add_argument("--latency", type=float, default=0.05)
    options.add_argument("--rates", type=float, nargs="+", default=(125e6, 250e6))
    options.add_argument("--dir", type=Path, default=Path(__file__).parent / "out")
    args = options.parse_args()
    model = Model(args.layers)
    (args.dir / "buckets/bench").mkdir(parents=True, exist_ok=True)
    full = args.dir / "buckets/bench/full.safetensors"
    write_full(model, full)
    nbytes = full.stat().st_size
    write_strategy(model, args.dir / "mp8", 1, 8, 1)
    os.environ |= {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    print("| job | s | MB/s | plain MB/s | of plain | peak MiB | limits |\n|---|---|---|---|---|---|---|")
    for rate in args.rates:
        with served(args.dir / "buckets", args.latency, rate) as endpoint:
            os.environ["AWS_ENDPOINT_URL"] = endpoint
            print(row(args, endpoint, rate, nbytes), flush=True)
    remove(full)


if __name__ == "__main__":
    main()

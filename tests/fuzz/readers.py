"""What reads files of strangers, as functions of the file's bytes; and what is expected of every one of them."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import reshard
from fuzz.mutate import mutate
from reshard.errors import ReshardError
from reshard.ops.inspect import inspect
from reshard.ops.options import Options
from reshard.ops.scaling import read_config
from reshard.ops.strategies import show
from reshard.strategy.model_yaml import read_job
from reshard.strategy.rules import read_family

SEEDS = Path(__file__).parent / "seeds"
MAX_NBYTES = 48 << 20
MAX_S = 10
"""Of processor time; a machine may be busy with other things."""

MAX_WAIT_S = 120

Read = Callable[[Path], object]


@dataclass(frozen=True)
class Reader:
    """``name`` is that of the seed in ``seeds/``, ``place`` where in a copy of ``beside`` the file goes."""

    name: str
    read: Read
    place: str = ""
    beside: str = ""
    as_json: bool = False

    @property
    def seed(self) -> bytes:
        return (SEEDS / self.name).read_bytes()

    def path(self, folder: Path) -> Path:
        return folder / (self.place or self.name)


def _weights(path: Path) -> None:
    inspect(str(path))
    reshard.fingerprint(path)
    reshard.convert(path, path.parent / "out", Options(fsync=False, workers=1))


def _with_strategy(path: Path) -> None:
    show(str(path))
    reshard.fingerprint(path.parent / "ranks", path)
    reshard.plan(path.parent / "full.safetensors", path.parent / "out", Options(dst_strategy=str(path)))


def _resumed(path: Path) -> None:
    """A run goes on from these notes; the identity of its plan, which has times, is put where the seed has its own."""
    folder = next(up for up in path.parents if (up / "done").is_dir() and (up / "ranks").is_dir())
    meta = folder / "done" / ".reshard"
    options = Options(src_strategy=str(folder / "strategy.ckpt"), dst_strategy=str(folder / "strategy.ckpt"),
                      fsync=False, workers=1, resume=True)  # fmt: skip
    ours = reshard.plan(folder / "ranks", folder / "done", options).identity.encode()
    seed = (SEEDS / "begun.json").read_bytes()
    begun = meta / "begun.json"
    content = begun.read_bytes() if begun.exists() else seed
    begun.write_bytes(content.replace(json.loads(seed)["plan"].encode(), ours))
    reshard.convert(folder / "ranks", folder / "done", options)


def _index(path: Path) -> None:
    """Found beside its files, then given as the name of a checkpoint."""
    with suppress(ReshardError):
        inspect(str(path.parent))
    inspect(str(path))


def _manifest(path: Path) -> None:
    with suppress(ReshardError):
        inspect(str(path))
    reshard.verify(path.parents[1])


def _folder(path: Path) -> None:
    """One file of many."""
    inspect(str(path.parent))
    reshard.fingerprint(path.parent)
    reshard.convert(path.parent, path.parents[1] / "out.safetensors", Options(fsync=False, workers=1))


def _job(path: Path) -> object:
    return read_job(path.read_text("utf-8", "replace"), str(path))


def _family(path: Path) -> object:
    return read_family(path.read_text("utf-8", "replace"), str(path))


READERS = (
    Reader("weights.ckpt", _weights),
    Reader("weights.safetensors", _weights),
    Reader("weights.pt", _weights),
    Reader("stream.pt", _weights),
    Reader("zero2_model.pt", _folder, "step/mp_rank_00_model_states.pt", "zero2"),
    Reader("zero2_optim.pt", _folder, "step/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt", "zero2"),
    Reader("zero3_model.pt", _folder, "step/zero_pp_rank_0_mp_rank_00_model_states.pt", "zero3"),
    Reader("zero3_optim.pt", _folder, "step/bf16_zero_pp_rank_2_mp_rank_00_optim_states.pt", "zero3"),
    Reader("dcp.metadata", _folder, "step/.metadata", "dcp"),
    Reader("dcp.distcp", _folder, "step/__1_0.distcp", "dcp"),
    Reader("fsdp_model.pt", _folder, "step/model_world_size_2_rank_1.pt", "fsdp"),
    Reader("fsdp_optim.pt", _folder, "step/optim_world_size_2_rank_0.pt", "fsdp"),
    Reader("strategy.ckpt", _with_strategy, beside="tree"),
    Reader("merged.ckpt", _with_strategy, beside="tree"),
    Reader("strategy.json", _with_strategy, beside="tree", as_json=True),
    Reader("manifest.json", _manifest, "done/.reshard/manifest.json", "tree", True),
    Reader("begun.json", _resumed, "done/.reshard/begun.json", "tree", True),
    Reader("0.json", _resumed, "done/.reshard/done/0.json", "tree", True),
    Reader("model.safetensors.index.json", _index, "parts/model.safetensors.index.json",
           "tree", True),
    Reader("adapter_config.json", read_config, as_json=True),
    Reader("run.yaml", read_config),
    Reader("job.yaml", _job),
    Reader("family.yaml", _family),
)  # fmt: skip


class Hang(BaseException):
    pass


@contextmanager
def _in_time() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang

    timers = ((signal.ITIMER_PROF, signal.SIGPROF, MAX_S), (signal.ITIMER_REAL, signal.SIGALRM, MAX_WAIT_S))
    before = [signal.signal(number, stop) for _, number, _ in timers]
    for timer, _, limit in timers:
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for (timer, number, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def attempt(reader: Reader, data: bytes, folder: Path) -> str:
    """What came of it: ``read``, or the name of our error. Everything else is raised."""
    shutil.rmtree(folder, ignore_errors=True)
    if reader.beside:
        shutil.copytree(SEEDS / reader.beside, folder)
    path = reader.path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
    before = _peak_nbytes()
    try:
        with _in_time():
            reader.read(path)
        said = "read"
    except ReshardError as error:
        said = type(error).__name__
    finally:
        more = _peak_nbytes() - before
    assert more < MAX_NBYTES, f"{more:,} bytes of memory for a file of {len(data):,}"
    return said


def _peak_nbytes() -> int:
    """The most memory that this process had. Tracing each object would take four times as long as all else."""
    (peak,) = re.findall(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(peak) << 10


def mutated(reader: Reader, random: Random) -> bytes:
    if reader.name.endswith(".safetensors") and random.random() < 0.7:  # the header alone, its length put right
        header = mutate(reader.seed[8 : 8 + int.from_bytes(reader.seed[:8], "little")], random, as_json=True)
        return len(header).to_bytes(8, "little") + header + reader.seed[8 + int.from_bytes(reader.seed[:8], "little") :]
    if reader.seed.startswith(b"PK") and random.random() < 0.6:  # the pickle alone, as long as it was
        start = reader.seed.index(b"\x80\x02")
        end = reader.seed.index(b"PK\x07\x08", start)
        changed = mutate(reader.seed[start:end], random, as_json=False)
        return reader.seed[:start] + changed[: end - start].ljust(end - start, b".") + reader.seed[end:]
    return mutate(reader.seed, random, as_json=reader.as_json)


def one(reader: Reader, random: Random, folder: Path) -> str:
    return attempt(reader, mutated(reader, random), folder)


def slug(text: str) -> str:
    return re.sub(r"\W+", "-", text)[:60]

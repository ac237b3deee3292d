"""A strategy argument as the reference treats it: a folder gets ``merged_ckpt_strategy.ckpt``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reshard.compat.console import banner, warn
from reshard.errors import StorageError, StrategyError, reported
from reshard.families.strategies import read_strategy
from reshard.layout.stages import Strategy
from reshard.ops.strategies import merge

MERGED = "merged_ckpt_strategy"
SIGNAL = "merge_succeed.txt"


def prepared(path: str, *, write: bool = True) -> str | Strategy:
    """The strategy of a path that a user gave; "" stays "".

    A folder gets its merged file anew, in one step; unless it may not be written, which is a warning, or ``write`` is
    False: another process writes it.
    """
    if not path:
        return ""
    folder = Path(path)
    if not folder.exists():
        raise StrategyError("no such file or folder", path)
    single = _single_files(folder)
    if not write or not single:
        return read_strategy(path)
    out = folder / f"{MERGED}{single[0].suffix}"
    banner("Merging strategy")
    try:
        _merge(folder, out)
    except StorageError as error:
        warn([f"{out.name} is not written ({error.message}); the strategies are merged in memory: {path}"])
    else:
        banner("Merging succeed")
    return read_strategy(path)


def _merge(folder: Path, out: Path) -> None:
    try:
        merge(str(folder), str(out), overwrite=True)
    except StrategyError as error:
        if error.where != str(out):
            raise
        with reported(out):  # the old merged file is broken; it is to be replaced anyway
            out.unlink()
        merge(str(folder), str(out), overwrite=True)


def _single_files(folder: Path) -> list[Path]:
    """Strategy files that a merge takes, .ckpt first; none for a file, or a folder of a merged one alone."""
    if not folder.is_dir():
        return []
    files = sorted(p for p in folder.iterdir() if p.suffix in (".ckpt", ".json") and p.stem != MERGED)
    return sorted(files, key=lambda p: p.suffix)


@contextmanager
def merge_signals(strategies: list[str], *, main: bool) -> Iterator[None]:
    """``merge_succeed.txt`` in the strategies' folders from the merge to the job's end. None of ours waits for it."""
    made = []
    for folder in map(Path, strategies if main else []):
        if folder.is_dir():
            with suppress(OSError):  # a folder that may not be written was warned of already
                (folder / SIGNAL).touch()
                made.append(folder / SIGNAL)
    try:
        yield
    finally:
        for signal in made:
            with suppress(OSError):
                signal.unlink()

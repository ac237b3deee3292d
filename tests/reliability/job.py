"""The conversion that is disturbed, and what must hold of it whatever happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import reshard
from making import array, read_rank, same, tree, write_ranks, write_strategy
from reshard.layout.tensor import Sharding

USAGE, INPUT, STORAGE, WORKER = 2, 3, 4, 5
STAGES = 3
OLD, NEW = Sharding((2,), ((), (0,))), Sharding((2,), ((0,), ()))
FULL = {f"layers.{i}.{w}": array((8, 12), seed=10 * i + j) for i in range(STAGES) for j, w in enumerate("wb")}
Run = Callable[..., tuple[int, str]]


class Work:
    """Three stages of two ranks, to be cut along the other dim: three read groups."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        old, new = ([{f"layers.{i}.{w}": cut for w in "wb"} for i in range(STAGES)] for cut in (OLD, NEW))
        self.old = write_strategy(folder / "old", old)
        self.new = write_strategy(folder / "new", new)
        self.src = write_ranks(folder / "src", FULL, old)
        self.out = folder / "out"
        self.before = tree(self.src)

    def command(self, *more: str | Path) -> tuple[str | Path, ...]:
        return ("convert", self.src, self.out, "--src-strategy", self.old, "--dst-strategy", self.new, *more)

    def assert_only_whole_files(self) -> None:
        """What has its final name is right, and nothing else is left but our own notes."""
        assert tree(self.src) == self.before
        for name in tree(self.out) if self.out.exists() else ():
            rank = int(name.split("/")[0][5:])
            assert not name.endswith(".part")
            self.assert_rank(rank)

    def assert_rank(self, rank: int) -> None:
        found = read_rank(self.out, rank)
        for name in (f"layers.{rank // 2}.w", f"layers.{rank // 2}.b"):
            assert same(found[name], FULL[name][rank % 2 * 4 : rank % 2 * 4 + 4])

    def assert_whole(self) -> None:
        for rank in range(2 * STAGES):
            self.assert_rank(rank)
        reshard.verify(self.out)


def one_error(said: str) -> str:
    lines = [line for line in said.splitlines() if not line.startswith(("  hint:", "  docs:", "warning:"))]
    assert len(lines) == 1, said
    assert lines[0].startswith("error: ")
    return said

"""The families that are read, each as a row: who joins here is tried with every step of ``test_table``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import reshard
from checkpoint2 import write_checkpoint2
from golden_families.test_recorded import unpacked
from making import array, read_file, write_file, write_ranks, write_strategy
from megatron_ranks import FULL as MEGATRON
from megatron_ranks import write_megatron
from reshard import Options
from reshard.layout.tensor import Sharding
from thorough import TIMES

ROWS, COLUMNS = Sharding((2, 2), ((1,), ())), Sharding((2, 2), ((), (0,)))
WHOLE_0D, WHOLE, WHOLE_2D = (Sharding((2, 2), ((),) * ndim) for ndim in range(3))
FULL = {
    "layers.0.w": array((8, 6), seed=1),
    "layers.1.w": array((6, 8), "float16", seed=2),
    "bias": array((5,), "float64", seed=3),
    "scale": array((), seed=4),
    "none": array((0, 3), "float16"),
}
WITHOUT_EMPTY = {name: value for name, value in FULL.items() if value.size}


@dataclass(frozen=True)
class Made:
    """A checkpoint of a family: what is given to a command, and what it holds."""

    path: Path
    full: Mapping[str, np.ndarray]
    strategy: str = ""

    def options(self, folder: Path, **more: object) -> Options:
        """Into four ranks: matrices cut by rows where their rows divide, all else whole."""
        cut = {name: _cut(value) for name, value in self.full.items()}
        dst = str(folder / "dst") if (folder / "dst").exists() else str(write_strategy(folder / "dst", [cut]))
        return Options(src_strategy=self.strategy, dst_strategy=dst, format="safetensors", fsync=False, **more)  # type: ignore[arg-type]

    def of_rank(self, rank: int) -> dict[str, np.ndarray]:
        """What ``options`` ask one of the four ranks to hold."""
        return {n: np.split(a, 4)[rank] if _divides(a) else a for n, a in self.full.items()}


def _cut(value: np.ndarray) -> Sharding:
    return Sharding((4,), tuple((0,) if dim == 0 and _divides(value) else () for dim in range(value.ndim)))


def _divides(value: np.ndarray) -> bool:
    return value.ndim > 0 and value.size > 0 and value.shape[0] % 4 == 0


def _full(name: str, full: Mapping[str, np.ndarray] = FULL) -> Callable[[Path], Made]:
    return lambda folder: Made(write_file(folder / name, full), full)


def _converted(target: str, **options: object) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        source = write_file(folder / "full.safetensors", FULL)
        reshard.convert(source, folder / target, Options(fsync=False, **options))  # type: ignore[arg-type]
        return Made(folder / target, FULL)

    return make


def _ranks(folder: Path) -> Made:
    stages = [{"layers.0.w": ROWS}, {"layers.1.w": COLUMNS}]
    held = {name: FULL[name] for name in ("layers.0.w", "layers.1.w")}
    write_ranks(folder / "ranks", held, stages)
    return Made(folder / "ranks", held, str(write_strategy(folder / "s", stages)))


def _ours(folder: Path) -> Made:
    made = _ranks(folder)
    options = Options(src_strategy=made.strategy, dst_strategy=made.strategy, fsync=False)
    reshard.convert(made.path, folder / "ours", options)
    return Made(folder / "ours", made.full)


def _checkpoint2(folder: Path) -> Made:
    stages = [{"layers.0.w": ROWS}, {"layers.1.w": COLUMNS, "bias": WHOLE, "scale": WHOLE_0D, "none": WHOLE_2D}]
    write_checkpoint2(folder / "ckpt", FULL, stages)
    return Made(folder / "ckpt", FULL)


def _megatron_ranks(folder: Path) -> Made:
    write_megatron(folder / "megatron")
    return Made(folder / "megatron", MEGATRON)


def _recorded(name: str, place: str = "src") -> Callable[[Path], Made]:
    """Of a case whose answer ``golden_families`` judges."""

    def make(folder: Path) -> Made:
        source = unpacked("cases", name, folder / "case") / place
        reshard.convert(source, folder / "whole.safetensors", Options(fsync=False))
        return Made(source, read_file(folder / "whole.safetensors"))

    return make


FAMILIES: Mapping[str, Callable[[Path], Made]] = {
    "safetensors": _full("m.safetensors"),
    "ckpt": _full("m.ckpt", WITHOUT_EMPTY),
    "torch": _converted("m.bin"),
    "parts": _converted("parts", max_shard_nbytes=100, format="safetensors"),
    "torch parts": _converted("parts", max_shard_nbytes=100, format="torch"),
    "rank folders": _ranks,
    "ours": _ours,
    "Checkpoint 2.0": _checkpoint2,
    "Checkpoint 2.0 that we wrote": _converted("ckpt", to="checkpoint2"),
    "Checkpoint 2.0, replicas dropped": _recorded("ck2-dp4mp2-dedup-r1.7", "src/checkpoint"),
    "Checkpoint 2.0, optimizer shards": _recorded("ck2-dp4mp2-zero1-size2", "src/checkpoint"),
    "Checkpoint 2.0, one device": _recorded("ck2-single-card", "src/checkpoint"),
    "DeepSpeed, stage 1": _recorded("z1_bf16_r2_gradaccfp32"),
    "DeepSpeed, stage 2": _recorded("z2_bf16_r3_paramalign"),
    "DeepSpeed, stage 3": _recorded("z3_bf16_r3_frozen"),
    "DeepSpeed, tensor parallel": _recorded("tp2dp2_z1_bf16"),
    "DeepSpeed, pipeline": _recorded("pp2dp2_z1_bf16_tied"),
    "DCP, ours": _converted("dcp", to="dcp", files=3),
    "DCP, uneven rows": _recorded("d_fsdp2_4"),
    "DCP, a grid": _recorded("d_grid_2x2"),
    "DCP, rows of columns": _recorded("d_fsdp_tp_2x2"),
    "DCP, a file per item": _recorded("d_file_per_item"),
    "DCP, each rank alone": _recorded("d_no_collectives"),
    "DCP, safetensors within": _recorded("d_distcp_safetensors"),
    "DCP, as Hugging Face's": _recorded("d_hf_sharded_4"),
    "FSDP2, uneven rows": _recorded("fsdp2_r4_uneven", "src/actor"),
    "FSDP2, replicas": _recorded("fsdp2_r4_hsdp_other_names", "src/actor"),
    "FSDP1, moments in pieces": _recorded("fsdp1_mesh_r4_uneven", "src/actor"),
    "FSDP1, ShardedTensors": _recorded("fsdp1_nomesh_r3_shardedtensor_uneven", "src/actor"),
    "Megatron, torch_dist of experts": _recorded("m_deepseek_tp2ep2"),
    "Megatron, flattened ranges": _recorded("m_old_flattened_range", "src/iter_0000010"),
    "Megatron, rank folders": _megatron_ranks,
}


CARRIED_OUT = (
    tuple(FAMILIES)
    if TIMES > 1
    else (
        *("safetensors", "ckpt", "torch", "parts", "rank folders", "ours", "Checkpoint 2.0"),
        *("Checkpoint 2.0, optimizer shards", "DeepSpeed, stage 3", "DeepSpeed, tensor parallel", "DCP, uneven rows"),
        *("FSDP2, uneven rows", "FSDP1, moments in pieces", "Megatron, flattened ranges"),
    )
)
"""Rows for how a plan is carried out, which no longer knows its family: one of each family, and each shape of pieces.
``test_steps`` tries every way of it with every kind of piece; ``.ci/run`` takes all rows here, too.
"""


class Kept:
    """Rows, each made once. Nobody writes to them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: dict[str, Made] = {}

    def made(self, name: str) -> Made:
        if name not in self._rows:
            self._rows[name] = FAMILIES[name](self._folder / str(len(self._rows)))
        return self._rows[name]

    def strategies(self, made: Made) -> Path:
        return self._of(made) / "strategies"

    def cut(self, made: Made) -> Path:
        """Its four ranks, made in one go."""
        out = self._of(made) / "cut"
        if not out.exists():
            reshard.convert(made.path, out, made.options(self.strategies(made)))
        return out

    def _of(self, made: Made) -> Path:
        return self._folder / made.path.relative_to(self._folder).parts[0]

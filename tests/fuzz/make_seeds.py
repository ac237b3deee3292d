"""Writes tests/fuzz/seeds: small whole files of every kind that is read. ``python -m tests.fuzz.make_seeds``"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))

import reshard
from fuzz.readers import READERS, SEEDS
from golden_families.test_recorded import unpacked
from making import array, stage_bytes, write_file, write_ranks
from reshard.layout.tensor import Layout, Sharding
from reshard.ops.options import Options
from reshard.strategy.folder import encode, merge_stages
from reshard.strategy.json_file import encode_json_layout, write_json

CUT = Sharding((2, 2), ((1,), ()))
SHARED = Sharding((2, 2), ((0,), ()), -1)
STAGE = {"w": CUT, "v": SHARED}
FULL = {"w": array((4, 6)), "v": array((8, 2), "bfloat16", 1)}
_YAML = "train:\n  model:\n    pet_config: {pet_type: lora, lora_rank: 8, lora_alpha: 16.0}\n"


def make(seeds: Path) -> None:
    odd = {**FULL, "scalar": array((), "int64", 2), "empty": array((0, 3), "int8"), "权重 x": array((5,), "float16", 3)}
    write_file(seeds / "weights.ckpt", odd, {"note": "hello"}, slice_nbytes=40)
    write_file(seeds / "weights.safetensors", odd, {"note": "hello"})
    (seeds / "strategy.ckpt").write_bytes(stage_bytes(0, STAGE))
    layouts = {name: encode_json_layout(Layout(FULL[name].shape, cut)) for name, cut in STAGE.items()}
    (seeds / "strategy.json").write_bytes(write_json((), layouts, 0))
    _merged(seeds)
    tree = seeds / "tree"
    write_ranks(tree / "ranks", FULL, [STAGE])
    write_file(tree / "full.safetensors", FULL)
    shutil.copy(seeds / "strategy.ckpt", tree / "strategy.ckpt")
    write_file(tree / "parts" / "model-1.safetensors", {"w": FULL["w"]})
    index = {"metadata": {"total_size": 96}, "weight_map": {"w": "model-1.safetensors"}}
    (seeds / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"r": 8, "lora_alpha": 16, "use_rslora": False, "rank_pattern": {"q": 4}, "alpha_pattern": {"q": 8.0}}
    (seeds / "adapter_config.json").write_text(json.dumps(config))
    (seeds / "run.yaml").write_text(_YAML)
    golden = Path(__file__).parents[1] / "golden"
    shutil.copy(golden / "strategies" / "llama_dp2mp2pp2" / "run.yaml", seeds / "job.yaml")
    (seeds / "weights.pt").write_bytes(_without_crcs((golden / "torch_files" / "nested.pt").read_bytes()))
    shutil.copy(golden / "torch_files" / "stream_nested.pt", seeds / "stream.pt")
    shutil.copy(Path(reshard.__file__).parent / "strategy" / "families" / "llama.yaml", seeds / "family.yaml")
    _folders(seeds)
    _run(seeds, tree)


_FOLDERS = {
    "zero2": ("z2_bf16_r2_groups", "global_step2"),
    "zero3": ("z3_bf16_r3_frozen", "global_step2"),
    "dcp": ("d_shardedtensor_2", ""),
    "fsdp": ("fsdp2_r2_bf16", "actor"),
}
"""Of other programs: the recorded case, and where in it they lie."""


def _folders(seeds: Path) -> None:
    """Folders of other programs, and of each one file or two that are changed."""
    for name, (case, below) in _FOLDERS.items():
        with TemporaryDirectory() as folder:
            source = unpacked("cases", case, Path(folder)) / "src" / below
            for path in sorted(path for path in source.iterdir() if path.is_file() and "extra_state" not in path.name):
                place = seeds / name / "step" / path.name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(_without_crcs(path.read_bytes()))
    for reader in READERS:
        if reader.beside in _FOLDERS:
            shutil.copy(seeds / reader.beside / reader.place, seeds / reader.name)


def _without_crcs(data: bytes) -> bytes:
    """A torch file whose writer computed none, so that a changed pickle is not told by its sum."""
    out = bytearray(data)
    for entry in re.finditer(rb"PK\x01\x02", data):
        out[entry.start() + 16 : entry.start() + 20] = bytes(4)
    return bytes(out)


def _merged(seeds: Path) -> None:
    with TemporaryDirectory() as folder:
        for stage in range(2):
            Path(folder, f"ckpt_strategy_rank_{4 * stage}.ckpt").write_bytes(stage_bytes(stage, STAGE))
        (seeds / "merged.ckpt").write_bytes(encode(merge_stages(folder), 0))


def _run(seeds: Path, tree: Path) -> None:
    """A target, its manifest and the notes of a run under way."""
    strategy = str(tree / "strategy.ckpt")
    options = Options(src_strategy=strategy, dst_strategy=strategy, fsync=False)
    reshard.convert(tree / "ranks", tree / "done", options)
    meta = tree / "done" / ".reshard"
    manifest = json.loads((meta / "manifest.json").read_text())
    (seeds / "begun.json").write_text(json.dumps({"plan": manifest["plan"], "made_of": manifest["made_of"]}))
    record = {"file": manifest["files"][0], "tensors": manifest["tables"][0]["tensors"]}
    (seeds / "0.json").write_text(json.dumps(record))
    (meta / "manifest.json").rename(seeds / "manifest.json")
    shutil.rmtree(meta)


if __name__ == "__main__":
    shutil.rmtree(SEEDS, ignore_errors=True)
    make(SEEDS)

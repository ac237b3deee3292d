"""What a user would write who has safetensors and NumPy: whole models in memory, cut and put together by name.

    python bench/naive.py cut SRC OUT FROM TO
    python bench/naive.py lora SRC OUT ADAPTER

FROM and TO are 1, for one file, or dp,mp,pp. Of a Llama whose matrices are cut by rows, but those that put heads or the
feed-forward together, which are cut by columns.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  NumPy knows bfloat16 then
import numpy as np
from safetensors.numpy import load_file, save_file

Arrays = dict[str, Any]
Sizes = tuple[int, int, int]


def sizes(text: str) -> Sizes:
    dp, mp, pp = map(int, text.split(","))
    return dp, mp, pp


def axis(name: str, array: Any) -> int | None:
    if array.ndim < 2:
        return None
    return 1 if ".wo." in name or ".w2." in name else 0


def merged(folder: Path, layout: Sizes) -> Arrays:
    dp, mp, pp = layout
    full: Arrays = {}
    for stage in range(pp):
        ranks = [
            load_file(folder / f"rank_{r}/checkpoint_{r}.safetensors")
            for r in range(stage * dp * mp, stage * dp * mp + mp)
        ]
        for name, array in ranks[0].items():
            dim = axis(name, array)
            full[name] = array if dim is None else np.concatenate([rank[name] for rank in ranks], dim)
    return full


def write_cut(full: Arrays, out: Path, layout: Sizes) -> None:
    dp, mp, pp = layout
    layers = 1 + max(int(found[1]) for name in full if (found := re.search(r"layers\.(\d+)\.", name)))
    for rank in range(dp * mp * pp):
        part = {}
        for name, array in full.items():
            found = re.search(r"layers\.(\d+)\.", name)
            layer = int(found[1]) if found else 0 if "embeddings" in name else layers - 1
            if layer * pp // layers == rank // (dp * mp):
                dim = axis(name, array)
                part[name] = array if dim is None else np.ascontiguousarray(np.split(array, mp, dim)[rank % mp])
        (out / f"rank_{rank}").mkdir(parents=True)
        save_file(part, out / f"rank_{rank}/checkpoint_{rank}.safetensors")


def lora(src: Path, out: Path, adapter: Path) -> None:
    full, factors = load_file(src), load_file(adapter)
    for name in [n for n in factors if ".lora_A." in n]:
        base = name.replace(".lora_A", "")
        a, b = factors[name].astype(np.float32), factors[name.replace("lora_A", "lora_B")].astype(np.float32)
        full[base] = (full[base].astype(np.float32) + 2 * (b @ a)).astype(full[base].dtype)
    out.mkdir()
    save_file(full, out / "full.safetensors")


def main() -> None:
    what, src, out, *more = sys.argv[1:]
    if what == "lora":
        lora(Path(src), Path(out), Path(more[0]))
        return
    full = load_file(src) if more[0] == "1" else merged(Path(src), sizes(more[0]))
    if more[1] == "1":
        Path(out).mkdir()
        save_file(full, Path(out) / "full.safetensors")
    else:
        write_cut(full, Path(out), sizes(more[1]))


if __name__ == "__main__":
    main()

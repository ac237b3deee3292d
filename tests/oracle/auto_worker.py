"""One worker of a MindSpore job that msrun starts: loads its slices into a real Cell and writes what it computes.

It runs in MindSpore's own environment. ``auto_worker.py CONFIG FOLDER``; CONFIG is what ``reshard auto`` handed over.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import yaml

import reshard.auto


class Layers(ms.nn.Cell):
    """Two layers; or this rank's part of them: rows of the first, columns of the second."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.up = ms.nn.Dense(hidden, inner, has_bias=True)
        self.down = ms.nn.Dense(inner, hidden, has_bias=False)

    def construct(self, x: Any) -> Any:
        return self.down(ms.ops.relu(self.up(x)))


def computed(parameters: dict[str, Any], x: Any) -> Any:
    inner, hidden = parameters["up.weight"].shape
    cell = Layers(hidden, inner)
    missing, unused = ms.load_param_into_net(cell, parameters, strict_load=True)
    assert (missing, unused) == ([], [])
    return cell(x).asnumpy()


def run(config: str, folder: Path) -> None:
    ms.set_context(mode=ms.PYNATIVE_MODE, device_target="CPU")
    ms.communication.init()
    rank = ms.communication.get_rank()
    assert str(rank) == os.environ["RANK_ID"]
    settings = yaml.safe_load(Path(config).read_text())
    assert settings["auto_trans_ckpt"] is False
    x = ms.Tensor(np.load(folder / "x.npy"))
    (file,) = Path(settings["load_checkpoint"], f"rank_{rank}").glob("*.ckpt")
    np.save(folder / f"from_files_{rank}.npy", computed(ms.load_checkpoint(str(file)), x))
    model = str(folder / "model.ckpt")
    np.save(folder / f"unsplit_{rank}.npy", computed(ms.load_checkpoint(model), x))
    source = {**settings, "load_checkpoint": model}
    call = reshard.auto.Call(dst_strategy=str(folder / "strategy"))
    loaded = reshard.auto.load(source, arrays_as="mindspore", call=call)
    assert all(isinstance(parameter, ms.Parameter) for parameter in loaded.values())
    np.save(folder / f"from_source_{rank}.npy", computed(dict(loaded), x))


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]))

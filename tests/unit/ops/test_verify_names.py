"""``verify SRC DST`` where DST has other names: what is fused or interleaved is compared element by element."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import reshard
from hub_model import qwen3, write_hub
from making import read_file, write_file
from reshard.errors import DifferenceError
from reshard.families.source import Source
from reshard.names.wishes import Naming
from reshard.ops.options import Options


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (Options(to="megatron", tp=2, pp=2), "megatron"),
        (Options(to="torch_dist"), "megatron"),
        (Options(to="parts", naming=Naming(dst="mcore")), "mcore"),
    ],
)
def test_there_and_back(tmp_path: Path, options: Options, names: str) -> None:
    hub, made = write_hub(tmp_path / "hub", qwen3()), tmp_path / "made"
    reshard.convert(hub, made, options)
    found = reshard.verify_content(Source(str(hub)), Source(str(made)), naming=Naming(dst=names))
    assert found.tensors > 5
    if names == "mcore":  # of which bytes do not tell how it fuses
        return
    back = reshard.verify_content(Source(str(made)), Source(str(hub)), naming=Naming(dst="hf"))
    assert (back.tensors, back.nbytes) == (len(qwen3()), sum(array.nbytes for array in qwen3().values()))


def test_the_element_that_differs_is_the_target_s(tmp_path: Path) -> None:
    hub = write_hub(tmp_path / "hub", qwen3())
    reshard.convert(hub, tmp_path / "made", Options(to="parts", naming=Naming(dst="mcore")))
    (path,) = (tmp_path / "made").glob("*.safetensors")
    arrays = {name: np.array(array) for name, array in read_file(path).items()}
    name = "decoder.layers.1.mlp.linear_fc1.weight"
    arrays[name].view(np.uint8)[17, 9] ^= 1
    write_file(tmp_path / "changed/model.safetensors", arrays)
    naming = Naming(dst="mcore", model=str(hub / "config.json"))
    with pytest.raises(DifferenceError, match=r"linear_fc1\.weight\[17, 2\]: "):
        reshard.verify_content(Source(str(hub)), Source(str(tmp_path / "changed")), naming=naming)

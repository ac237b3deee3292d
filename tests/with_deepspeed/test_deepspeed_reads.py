"""DeepSpeed itself: its own script gives the answers that ours gives, and it resumes from what we write for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reshard
from golden_families.test_recorded import unpacked
from reshard import Options
from reshard.compat.zero_to_fp32 import main
from reshard.families.affine_maps import mapped
from reshard.layout.box import Box
from with_deepspeed.test_deepspeed_environment import GOLDEN, ran

pytest.importorskip("deepspeed", reason="no DeepSpeed here; make test-deepspeed has an environment with it")
pytestmark = pytest.mark.deepspeed


def read(path: Path) -> dict[str, np.ndarray]:
    opened = reshard.open(path)
    return {name: np.asarray(opened[name].read()) for name in opened}


@pytest.mark.parametrize("case", ["z2_fp16_r2_tied_buf", "z3_bf16_r4_frozen_tied", "z2_bf16_r2_groups"])
def test_its_own_script(case: str, tmp_path: Path) -> None:
    from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict as convert

    source = unpacked("cases", case, tmp_path / "case") / "src"
    convert(str(source), str(tmp_path / "theirs"), max_shard_size=None)
    assert main([str(source), str(tmp_path / "ours")]) == 0
    theirs, ours = (read(tmp_path / which / "pytorch_model.bin") for which in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    assert [n for n, a in theirs.items() if (a.dtype, a.tobytes()) != (ours[n].dtype, ours[n].tobytes())] == []


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden DeepSpeed checkpoints are not beside this repository")
@pytest.mark.parametrize(
    ("case", "world", "model"),
    [
        ("z2_bf16_r2_groups", 3, {}),
        ("z2_fp16_r3_tied", 2, {"v": 11, "f": 7, "tied": True}),
        ("z1_bf16_r3_gradaccfp32", 2, None),
        ("z3_bf16_r2", 3, {}),
        ("z2_bf16_r2_roundrobin", 3, {}),
        ("z1_bf16_r2_elastic", 3, {}),
    ],
)
def test_it_resumes_on_other_ranks(case: str, world: int, model: dict[str, Any] | None, tmp_path: Path) -> None:
    """Round robin and elastic saves are those that its own conversion gets wrong, or cannot make."""
    made = unpacked("cases", case, tmp_path / "case")
    info = json.loads((made / "case.json").read_text())
    tensors = json.loads((made / "tensors.json").read_text())
    how = info["how"]["case"]
    wanted = {**tensors.get("universal", {}), **tensors.get("rebuilt_in_param_shapes_order", {})}
    wanted.setdefault("fp32", tensors.get("weights_fp32"))
    (tmp_path / "wanted.json").write_text(json.dumps({"universal": wanted}))
    reshard.convert(made / "src", tmp_path / "out" / "made", Options(to="universal", fsync=False))
    model = how.get("model") or {} if model is None else model
    said = ran(
        GOLDEN / "check_loads.py", tmp_path / "out", "made", tmp_path / "wanted.json",
        str(info["zero_stage"]), case.split("_")[1], str(world), json.dumps(model),
    )  # fmt: skip
    assert "LOADS OK" in said, said


@pytest.mark.parametrize("kind", ["queries with shared keys", "parts that are cut apart", "blocks", "columns, uneven"])
def test_its_own_maps_of_slices(kind: str) -> None:
    """Each rank's slice, cut as the map says it, is put together as DeepSpeed does it."""
    import torch
    from deepspeed.checkpoint import affine

    shape = (12, 5)
    made = {
        "queries with shared keys": lambda: affine.segmented_map(shape, [(8, False), (4, True)], 0, 2, [[6, 2]]),
        "parts that are cut apart": lambda: affine.sub_param_map(shape, [6, 4, 2], [[3, 3], [3, 1], [1, 1]], 0),
        "blocks": lambda: affine.block_gather_map(shape, {0: [0, 3, 4], 1: [1, 2, 5]}, 2, 0),
        "columns, uneven": lambda: affine.contiguous_split_map(shape, [3, 2], 1),
    }[kind]()
    whole = np.arange(60, dtype=np.float32).reshape(shape)
    found = np.full(shape, -1, np.float32)
    slices = [made.extract(torch.from_numpy(whole), rank).numpy() for rank in range(2)]
    for slice_, mine in zip(slices, mapped("w", made.to_dict(), [one.shape for one in slices]), strict=True):
        assert mine.shape == shape
        for here, there in mine.parts:
            found[there.within(Box.whole(shape))] = slice_[here.within(Box.whole(slice_.shape))]
    assert found.tobytes() == whole.tobytes()

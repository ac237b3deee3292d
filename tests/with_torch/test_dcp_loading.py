"""PyTorch itself loads the DCP folders that we write, from several ranks under gloo and in one process."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reshard
from making import array, write_file
from reshard import Options

torch = pytest.importorskip("torch", reason="no torch here; make test-torch has an environment with it")
pytestmark = pytest.mark.torch
FULL = {
    "embed": array((24, 8), seed=1),
    "layers.0.w": array((8, 6), "bfloat16", seed=2),
    "layers.0.b": array((5,), "float64", seed=3),
    "scale": array((), seed=4),
    "none": array((0, 3), "float16"),
    "count": array((3,), "int64", seed=5),
    "mask": array((4,), "bool", seed=6),
    "small": array((2, 8), "float8_e4m3fn", seed=7),
}


@pytest.fixture(scope="module", params=[1, 3])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("dcp")
    source = write_file(made / "full.safetensors", FULL)
    reshard.convert(source, made / "out", Options(to="dcp", files=request.param, fsync=False))
    return made / "out"


def bits(tensor: Any) -> bytes:
    contiguous = tensor.detach().contiguous()
    return bytes(contiguous.reshape(-1).view(torch.uint8).numpy().tobytes()) if contiguous.numel() else b""


def empty(wanted: np.ndarray) -> Any:
    return torch.zeros(wanted.shape, dtype=getattr(torch, wanted.dtype.name))


def differing(loaded: dict[str, Any]) -> list[str]:
    return [name for name, wanted in FULL.items() if bits(loaded[name]) != wanted.tobytes()]


def test_in_one_process(folder: Path) -> None:
    import torch.distributed.checkpoint as dcp

    loaded = {name: empty(wanted) for name, wanted in FULL.items()}
    dcp.load(loaded, checkpoint_id=str(folder), no_dist=True)
    assert differing(loaded) == []


def test_its_own_converter(folder: Path, tmp_path: Path) -> None:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp_to_torch_save(str(folder), str(tmp_path / "m.pt"))
    loaded = torch.load(tmp_path / "m.pt", weights_only=True)
    assert loaded.keys() == FULL.keys()
    assert differing(loaded) == []


def _rank(rank: int, world: int, port: int, folder: str) -> None:
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    try:
        mesh = init_device_mesh("cpu", (world,))
        loaded = {}
        for number, (name, wanted) in enumerate(FULL.items()):
            whole = empty(wanted)
            cut = wanted.ndim > 0 and wanted.dtype.name != "float8_e4m3fn"
            loaded[name] = distribute_tensor(whole, mesh, [Shard(number % wanted.ndim)]) if cut else whole
        dcp.load(loaded, checkpoint_id=folder)
        assert differing({n: t.full_tensor() if hasattr(t, "full_tensor") else t for n, t in loaded.items()}) == []
        dist.barrier()  # gloo's threads abort a process whose peer has left
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_into_other_meshes(folder: Path, world: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.start_processes(_rank, (world, port, str(folder)), nprocs=world, start_method="spawn")

"""Files that PyTorch's own FSDP2 saves from four ranks under gloo are read as it puts them together itself."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

import reshard
from making import read_file, same
from reshard import Options

torch = pytest.importorskip("torch", reason="no torch here; make test-torch has an environment with it")
pytestmark = pytest.mark.torch
WORLD = 4
KINDS = ("over tensor parallelism", "columns", "replicas")


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(24, 30)
        self.down = torch.nn.Linear(30, 24, bias=False)
        self.norm = torch.nn.LayerNorm(24)

    def forward(self, x: Any) -> Any:
        return self.norm(x + self.down(torch.relu(self.up(x))))


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(40, 24)
        self.layers = torch.nn.ModuleList([Block(), Block()])
        self.head = torch.nn.Linear(24, 40, bias=False)
        self.register_buffer("freq", torch.arange(5.0))

    def forward(self, tokens: Any) -> Any:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def cut(kind: str) -> Any:
    """The model as FSDP2 cuts it: uneven rows over tensor parallelism, columns, or rows with replicas."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model = Model()
    more: dict[str, Any] = {}
    if kind == KINDS[0]:
        both = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        for layer in model.layers:
            parallelize_module(layer, both["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        mesh = both["dp"]
    elif kind == KINDS[1]:
        mesh = init_device_mesh("cpu", (WORLD,), mesh_dim_names=("fsdp",))
        more["shard_placement_fn"] = lambda p: Shard(1) if p.ndim == 2 and p.shape[1] % WORLD == 0 else None
    else:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, **more)
    fully_shard(model, mesh=mesh, **more)
    return model


def _rank(rank: int, port: int, folder: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(WORLD), LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    try:
        for kind in KINDS:
            model = cut(kind)
            optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
            model(torch.arange(8).reshape(2, 4)).square().sum().backward()
            optimizer.step()
            states, moments = model.state_dict(), optimizer.state_dict()
            place = Path(folder, kind)
            place.mkdir(exist_ok=True)
            torch.save(states, place / f"model_world_size_{WORLD}_rank_{rank}.pt")
            torch.save(moments, place / f"optim_world_size_{WORLD}_rank_{rank}.pt")
            whole = dict(states)
            for number, (name, _) in enumerate(model.named_parameters()):
                whole |= {f"{state}.{name}": value for state, value in moments["state"][number].items()}
            full = {n: v.full_tensor() if hasattr(v, "full_tensor") else v for n, v in whole.items()}
            if rank == 0:
                torch.save({name: value.detach().clone() for name, value in full.items()}, place / "answer.pth")
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fsdp")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.start_processes(_rank, (port, str(folder)), nprocs=WORLD, start_method="spawn")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_torch_puts_together(saved: Path, tmp_path: Path, kind: str) -> None:
    reshard.convert(saved / kind, tmp_path / "m.safetensors", Options(fsync=False))
    found = read_file(tmp_path / "m.safetensors")
    answer = torch.load(saved / kind / "answer.pth", weights_only=True)
    assert found.keys() == answer.keys()
    assert [name for name, value in answer.items() if not same(found[name], value.numpy())] == []

"""PyTorch loads the torch files that we write, mapped and without running anything; we read what it saves."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reshard
from making import write_file
from reshard import Options

torch = pytest.importorskip("torch", reason="no torch here; make test-torch has an environment with it")

from with_torch.test_torch_loading import FULL, assert_equal  # noqa: E402

pytestmark = pytest.mark.torch


def loaded(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(path, weights_only=True, mmap=True)
    return found


def read(path: Path) -> dict[str, np.ndarray]:
    opened = reshard.open(path)
    return {name: np.asarray(opened[name].read()) for name in opened}


def test_one_file(tmp_path: Path) -> None:
    source = write_file(tmp_path / "full.safetensors", FULL)
    reshard.convert(source, tmp_path / "out.bin", Options(fsync=False))
    assert_equal(loaded(tmp_path / "out.bin"), FULL)
    assert_equal(torch.load(tmp_path / "out.bin", weights_only=False), FULL)


def test_parts(tmp_path: Path) -> None:
    source = write_file(tmp_path / "full.safetensors", FULL)
    reshard.convert(source, tmp_path / "out", Options(format="torch", max_shard_nbytes=200, fsync=False))
    parts = sorted((tmp_path / "out").glob("pytorch_model-*.bin"))
    assert len(parts) > 3
    assert_equal({name: tensor for part in parts for name, tensor in loaded(part).items()}, FULL)


def _saved() -> dict[str, Any]:
    torch.manual_seed(7)
    base = torch.randn(6, 8)
    return {
        "plain": base,
        "tied": base,
        "transposed": base.t(),
        "part": base[1:4, 2:7:2],
        "expanded": torch.randn(5, 1).expand(5, 3),
        "channels": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "half": base.half()[:, :3],
        "bfloat": base.bfloat16(),
        "eight": base.to(torch.float8_e4m3fn),
        "wide": torch.tensor([1, 2**63 - 1]),
        "unsigned": torch.tensor([1, 60000], dtype=torch.uint16),
        "truth": torch.tensor([True, False]),
        "conjugated": torch.randn(3, 2, dtype=torch.complex64).conj(),
        "negated": torch.randn(3, 2, dtype=torch.complex64).conj().imag,
        "parameter": torch.nn.Parameter(base * 2),
        "nested": {"a": [torch.arange(3), {"b": torch.ones(2)}]},
        "other": OrderedDict(x=torch.zeros(1)),
    }


def flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, one in pairs for k, v in flat(one, f"{path}.{key}" if path else str(key)).items()}
    return {path: value}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("stream", [False, True], ids=["zip", "stream"])
def test_what_torch_saves(protocol: int, stream: bool, tmp_path: Path) -> None:
    saved = _saved()
    if stream:  # whose storages have no class for the newest dtypes
        saved = {name: value for name, value in saved.items() if name not in ("eight", "unsigned")}
    options = {"_use_new_zipfile_serialization": False} if stream else {}
    torch.save(saved, tmp_path / "m.pt", pickle_protocol=protocol, **options)
    found, wanted = read(tmp_path / "m.pt"), flat(saved)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        value = tensor.detach().resolve_conj().resolve_neg().contiguous()
        assert found[name].shape == tuple(value.shape), name
        assert found[name].tobytes() == value.reshape(-1).view(torch.uint8).numpy().tobytes(), name


def test_sums_left_out(tmp_path: Path) -> None:
    serialization = pytest.importorskip("torch.serialization")
    before = serialization.get_crc32_options()
    serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.arange(10)}, tmp_path / "m.pt")
    finally:
        serialization.set_crc32_options(before)
    reshard.convert(tmp_path / "m.pt", tmp_path / "m.safetensors", Options(crc=True, fsync=False))
    assert read(tmp_path / "m.safetensors")["w"].tolist() == list(range(10))


def test_an_optimizer_and_its_settings(tmp_path: Path) -> None:
    layer = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    torch.save({"model": layer.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "m.pt")
    found = read(tmp_path / "m.pt")
    assert found["model.weight"].shape == (3, 4)
    assert (
        found["optimizer.state.0.exp_avg"].tobytes() == optimizer.state_dict()["state"][0]["exp_avg"].numpy().tobytes()
    )
    plan = reshard.plan(tmp_path / "m.pt", "out.safetensors", Options(names=reshard.NameRules(weights_only=True)))
    assert {tensor.name for tensor in plan.tensors} == {"model.weight", "model.bias"}
    assert any("neither tensor nor text" in warning for warning in plan.warnings)


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "Adam": {"amsgrad": True}, "AdamW": {}, "SGD": {"momentum": 0.9}, "RMSprop": {"momentum": 0.9, "centered": True},
    "Adagrad": {}, "Adadelta": {}, "Adamax": {}, "NAdam": {}, "RAdam": {}, "ASGD": {}, "Rprop": {}, "Adafactor": {},
}  # fmt: skip


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_states_are_none_of_the_weights_wherever_they_lie(kind: str, tmp_path: Path) -> None:
    layer = torch.nn.Linear(4, 3)
    optimizer = getattr(torch.optim, kind)(layer.parameters(), lr=0.1, **OPTIMIZERS[kind])
    layer(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    torch.save({"model": layer.state_dict(), "opt": optimizer.state_dict()}, tmp_path / "m.pt")
    plan = reshard.plan(tmp_path / "m.pt", "out.safetensors", Options(names=reshard.NameRules(weights_only=True)))
    assert {tensor.name for tensor in plan.tensors} == {"model.weight", "model.bias"}

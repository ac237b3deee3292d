"""Writes the torch files beside it, and ``answers.json``: what each holds, as torch reads it back.

``python make.py`` where torch is installed; made with torch 2.13.0. They are small, for they are in the repository.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.serialization import config

HERE = Path(__file__).parent


def filled(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    count = int(torch.tensor(shape).prod()) if shape else 1
    return (torch.arange(count) % 120).reshape(shape).to(dtype)


class Config:
    """A class of somebody's own."""

    def __init__(self) -> None:
        self.hidden = 8


def answer(value: torch.Tensor) -> dict[str, Any]:
    plain = value.detach().resolve_conj().resolve_neg().contiguous().clone()
    content = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    return {
        "dtype": str(value.dtype).removeprefix("torch."),
        "shape": list(value.shape),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def every_dtype() -> dict[str, torch.Tensor]:
    plain = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
             "complex64", "complex128", "complex32"]  # fmt: skip
    made = {name: filled(2, 3, dtype=getattr(torch, name)) for name in plain}
    raw = ["uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
           "float8_e8m0fnu", "float4_e2m1fn_x2"]  # fmt: skip
    for name in raw:
        dtype = getattr(torch, name)
        made[name] = torch.arange(6 * dtype.itemsize, dtype=torch.uint8).view(dtype).reshape(2, 3)
    return made


def views() -> dict[str, torch.Tensor]:
    base = filled(8, 6)
    return {
        "whole": base,
        "rows": base[2:5],
        "columns": base[:, 1:3],
        "step": base[::3, ::2],
        "transposed": base.t(),
        "permuted": filled(2, 3, 4).permute(2, 0, 1),
        "expanded": filled(4, 1).expand(4, 3),
        "expanded_whole": filled(1).expand(2, 3),
        "overlapping": filled(12).as_strided((4, 6), (2, 1)),
        "scalar": base[3, 3],
        "empty": base[4:4],
        "one_column": base[:, 5:6],
        "bfloat16": filled(4, 4, dtype=torch.bfloat16)[:, 2:],
    }


def nested() -> dict[str, Any]:
    shared = {"w": filled(2)}
    looped: dict[str, Any] = {"inside": filled(3)}
    looped["itself"] = looped
    return {
        "model": OrderedDict(a=filled(2, 2), **{"b.c": filled(1)}),
        "optimizer": {"state": {0: {"exp_avg": filled(3), "step": torch.tensor(7.0)}}, "param_groups": [{"lr": 0.1}]},
        "list": [filled(1), (filled(2), None)],
        "shared": [shared, shared],
        "looped": looped,
        "many": defaultdict(list, {"x": [filled(2)]}),
        "args": argparse.Namespace(tp=2, name="run", bias=filled(2)),
        "text": "hello",
        "number": 3,
        "size": torch.Size([2, 3]),
        "device": torch.device("cuda", 1),
        "bytes": b"\0\xff",
        "set": {1, 2},
        "config": Config(),
        "storage": filled(2).untyped_storage(),
    }


def parameters() -> dict[str, torch.Tensor]:
    with_state = torch.nn.Parameter(filled(2, 2))
    with_state.tag = "mine"
    return {
        "plain": torch.nn.Parameter(filled(3)),
        "with_state": with_state,
        "buffer": torch.nn.Buffer(filled(2)),
        "grad": filled(2).requires_grad_(),
    }


def marked() -> dict[str, torch.Tensor]:
    def value() -> torch.Tensor:  # storages that are seen as two types cannot be saved
        return torch.complex(filled(2, 3), filled(2, 3) + 1)

    real = value().conj().imag
    return {"conjugated": value().conj(), "negated": real, "turned": value().conj().t(), "plain": value()}


def module() -> OrderedDict[str, torch.Tensor]:
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict()


def flat(value: Any, path: str = "", seen: tuple[int, ...] = ()) -> dict[str, Any]:
    """Tensors by path, told on its own terms."""
    if isinstance(value, torch.Tensor):
        return {path: answer(value)}
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list | tuple):
        pairs = enumerate(value)
    else:
        return {}
    if id(value) in seen:
        return {}
    found: dict[str, Any] = {}
    for key, child in pairs:
        found |= flat(child, f"{path}.{key}" if path or seen else str(key), (*seen, id(value)))
    return found


def swapped(name: str, value: dict[str, torch.Tensor]) -> bytes:
    """As a machine writes it whose most significant byte comes first."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    out = io.BytesIO()
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            key = info.filename.rpartition("/")[2]
            if "/data/" in info.filename:
                dtype = list(value.values())[int(key)].dtype
                width = dtype.itemsize // (2 if dtype.is_complex else 1)
                content = b"".join(content[i : i + width][::-1] for i in range(0, len(content), width))
            new.writestr(info.filename, b"big" if key == "byteorder" else content)
    return out.getvalue()


def main() -> None:
    tied = filled(4, 3)
    everything = {
        "dtypes": every_dtype(),
        "views": views(),
        "nested": nested(),
        "parameters": parameters(),
        "marked": marked(),
        "module": module(),
        "tied": {"embed": tied, "head": tied, "row": tied[1]},
    }
    answers = {}
    for name, value in everything.items():
        torch.save(value, HERE / f"{name}.pt")
        answers[name] = flat(value)
    for protocol in (3, 4, 5):
        torch.save(everything["tied"], HERE / f"protocol{protocol}.pt", pickle_protocol=protocol)
        answers[f"protocol{protocol}"] = answers["tied"]
    for name, protocol in (("dtypes", 2), ("nested", 2), ("views", 5), ("marked", 2)):
        options = {"_use_new_zipfile_serialization": False, "pickle_protocol": protocol}
        torch.save(everything[name], HERE / f"stream_{name}.pt", **options)
        answers[f"stream_{name}"] = answers[name]
    config.save.storage_alignment = 4096
    torch.save({"w": filled(3), "v": filled(2)}, HERE / "aligned4096.pt")
    config.save.storage_alignment = 64
    torch.serialization.set_crc32_options(compute_crc32=False)
    torch.save({"w": filled(3), "v": filled(2)}, HERE / "no_crc.pt")
    answers["aligned4096"] = answers["no_crc"] = flat({"w": filled(3), "v": filled(2)})
    torch.serialization.set_crc32_options(compute_crc32=True)
    torch.save(filled(2, 2), HERE / "alone.pt")
    answers["alone"] = flat(filled(2, 2))
    numbers = {n: filled(2, 3, dtype=getattr(torch, n)) for n in ("float32", "bfloat16", "int64", "complex64", "bool")}
    (HERE / "big_endian.pt").write_bytes(swapped("big_endian", numbers))
    assert all(torch.equal(torch.load(HERE / "big_endian.pt")[n], v) for n, v in numbers.items())
    answers["big_endian"] = flat(numbers)
    special = {
        "sparse": torch.eye(2).to_sparse(),
        "csr": torch.eye(2).to_sparse_csr(),
        "quantised": torch.quantize_per_tensor(filled(2), 0.5, 0, torch.qint8),
        "meta": torch.empty(2, device="meta"),
        "whole_module": torch.nn.Linear(2, 2),
    }
    for name, value in special.items():
        torch.save({name: value}, HERE / f"refused_{name}.pt")
    kinds = {
        f"quantised.{n}": torch.quantize_per_tensor(filled(3), 0.5, 0, getattr(torch, n))
        for n in ("quint8", "qint8", "qint32")
    }
    packed = [
        torch.quantize_per_channel(filled(2, 3), torch.ones(2), torch.zeros(2), 0, getattr(torch, n))
        for n in ("quint4x2", "quint2x4")
    ]
    quantised = {"w": filled(2), **kinds, "packed": packed}
    torch.save(quantised, HERE / "refused_stream_quantised.pt", _use_new_zipfile_serialization=False)
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(HERE / "refused_script.pt"))
    (HERE / "answers.json").write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    main()

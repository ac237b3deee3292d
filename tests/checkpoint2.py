"""Checkpoint 2.0 folders for tests: written, read and judged with NumPy, by the rules and not by reshard's code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from making import Arrays, read_file, same, shard_of, write_file
from reshard.layout.tensor import Sharding

LAYOUT_KEYS = ["device_matrix", "tensor_map", "interleaved_parallel", "alias_name", "rank_list"]
OLD = ("r1.7", "r1.8")
NUMBERS = frozenset({"global_step", "learning_rate", "beta1_power", "beta2_power"})
"""The optimizer's own, which metadata does not describe: they may come along or not, but not with other values."""


def is_state(name: str) -> bool:
    return name.startswith(("adam_m.", "adam_v.", "accu_grads."))


# --- how a layout cuts, once more and by hand


def parts_of(layout: Mapping[str, Any], place: int) -> list[tuple[int, int]]:
    """For each dim which of how many parts the device at this place of rank_list holds."""
    matrix = layout["device_matrix"]
    at = [int(c) for c in np.unravel_index(place, matrix)]
    found = []
    for entry in layout["tensor_map"]:
        part, parts = 0, 1
        for axis in entry if isinstance(entry, list) else [entry]:
            if axis != -1:
                part, parts = part * matrix[-1 - axis] + at[-1 - axis], parts * matrix[-1 - axis]
        found.append((part, parts))
    return found


def slice_number(layout: Mapping[str, Any], place: int) -> int:
    number = 0
    for part, parts in parts_of(layout, place):
        number = number * parts + part
    return number


def slice_of(layout: Mapping[str, Any], place: int, shape: Sequence[int]) -> tuple[slice, ...]:
    sizes = [n // parts for n, (_, parts) in zip(shape, parts_of(layout, place), strict=True)]
    return tuple(slice(p * n, (p + 1) * n) for n, (p, _) in zip(sizes, parts_of(layout, place), strict=True))


# --- writing


def placing(sharding: Sharding, ranks: Sequence[int]) -> dict[str, Any]:
    """A sharding without optimizer shard, as metadata says it."""
    axes = [(list(dim) if len(dim) > 1 else dim[0]) if dim else -1 for dim in sharding.tensor_map]
    names = [chr(97 + i) for i in range(len(sharding.device_matrix))]
    values = (list(sharding.device_matrix), axes, False, names, list(ranks))
    return dict(zip(LAYOUT_KEYS, values, strict=True))


def about(array: np.ndarray, layout: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter of ``state_dict_metadata``."""
    numbers = [slice_number(layout, place) for place in range(len(layout["rank_list"]))]
    parts = [parts for _, parts in parts_of(layout, 0)]
    local = [n // k for n, k in zip(array.shape, parts, strict=True)]
    return {
        "properties": {
            "dtype": array.dtype.name,
            "replica_id": [numbers[:i].count(n) for i, n in enumerate(numbers)],
            "allow_shape_mismatch": False,
            "allow_to_save": True,
        },
        "global_shape": list(array.shape),
        "axis_fragmentations": parts,
        "layout": dict(layout),
        "chunk": [{"global_offset": [n], "local_shape": local} for n in sorted(set(numbers))],
    }


def write_checkpoint2(
    root: Path, full: Arrays, stages: Sequence[Mapping[str, Sharding]], iteration: int = 7, prefix: str = "CKP-"
) -> Path:
    """A folder as training saves it, every copy of every slice; gives that of the iteration."""
    folder = root / f"iteration_{iteration:08d}"
    devices = next(iter(stages[0].values())).devices
    world = devices * len(stages)
    held: dict[str, dict[str, np.ndarray]] = {}
    states: dict[str, Any] = {}
    storage: dict[str, Any] = {}
    for rank in range(world):
        first = rank // devices * devices
        for name, sharding in stages[rank // devices].items():
            layout = placing(sharding, range(first, first + devices))
            kind = "opt" if is_state(name) else "model"
            file = f"{prefix}{kind}-{rank:07d}-{world:07d}.safetensors"
            held.setdefault(file, {})[name] = shard_of(full[name], sharding, rank - first)
            states.setdefault(name, about(full[name], layout))
            key = str((name, (slice_number(layout, rank - first),)))
            storage.setdefault(key, []).append({"file_name": file, "storage_rank": rank, "rank_group": [rank]})
    for file, arrays in held.items():
        write_file(folder / file, arrays)
    write_json(folder / "metadata.json", {"state_dict_metadata": states, "storage_data": storage})
    common = {"epoch_num": 1, "step_num": iteration, "global_step": iteration, "loss_scale": 65536.0}
    write_json(folder / "common.json", {**common, "global_batch_size": 8, "ckpt_status": None})
    (root / "latest_checkpointed_iteration.txt").write_text(str(iteration))
    return folder


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False))


# --- reading


def latest(root: Path) -> Path:
    tracker = root / "latest_checkpointed_iteration.txt"
    return root / f"iteration_{int(tracker.read_text()):08d}" if tracker.exists() else root


def read_checkpoint2(root: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What metadata describes, whole, and what the files hold besides."""
    folder = latest(root)
    files = {path.name: read_file(path) for path in sorted(folder.glob("*.safetensors"))}
    everything = {name: array for file in files.values() for name, array in file.items()}
    if not (folder / "metadata.json").exists():
        return {n: a for n, a in everything.items() if n not in NUMBERS}, {
            n: everything[n] for n in NUMBERS & {*everything}
        }
    metadata = json.loads((folder / "metadata.json").read_text())
    whole: dict[str, np.ndarray] = {}
    for name, parameter in metadata["state_dict_metadata"].items():
        layout, shape = parameter["layout"], parameter["global_shape"]
        for place in range(len(layout["rank_list"]) if layout else 1):
            number = slice_number(layout, place) if layout else 0
            copies = [
                files[entry["file_name"]][name]
                for entry in metadata["storage_data"].get(str((name, (number,))), [])
                if name in files[entry["file_name"]]
            ]
            if copies:
                made = whole.setdefault(name, np.zeros(shape, copies[0].dtype))
                made[slice_of(layout, place, shape) if layout else ...] = copies[0]
    return whole, {n: a for n, a in everything.items() if n not in metadata["state_dict_metadata"]}


# --- judging


def faults_of(root: Path, want: Arrays, stages: Sequence[Mapping[str, Sharding]], release: str = "r1.9") -> list[str]:
    """What MindFormers' reader would stumble over in a folder that should hold ``want``, cut as the stages say."""
    folder = latest(root)
    if folder == root or not folder.is_dir():
        return ["the tracker names no folder that is there"]
    common = set(json.loads((folder / "common.json").read_text()))
    known = {"epoch_num", "step_num", "global_step", "loss_scale", "global_batch_size"}
    known |= set() if release in OLD else {"ckpt_status", "consumed_samples"}
    faults = [f"common.json: {key}" for key in sorted(common - known)]
    files = {path.name: read_file(path) for path in sorted(folder.glob("*.safetensors"))}
    if not (folder / "metadata.json").exists():
        held = {name: array for file in files.values() for name, array in file.items()}
        single = len(stages) == 1 and all(s.devices == 1 for s in stages[0].values())
        wrong = [f"{name}: wrong or absent" for name, a in want.items() if name not in held or not same(held[name], a)]
        return [*faults, *wrong, *([] if single else ["metadata.json is absent"])]
    metadata = json.loads((folder / "metadata.json").read_text())
    described = metadata["state_dict_metadata"]
    if set(described) != set(want):
        return [*faults, f"described: {sorted(set(described) ^ set(want))}"]
    for name, array in want.items():
        stage = next(i for i, names in enumerate(stages) if name in names)
        sharding = stages[stage][name]
        faults += [f"{name}: {fault}" for fault in _cut_faults(described[name], array, sharding, stage)]
        faults += [f"{name}: {f}" for f in _storage_faults(name, array, described[name], metadata, files, release)]
    return faults


def _cut_faults(parameter: Mapping[str, Any], array: np.ndarray, sharding: Sharding, stage: int) -> list[str]:
    layout, faults = parameter["layout"], []
    if list(layout) != LAYOUT_KEYS or len(layout["alias_name"]) != len(layout["device_matrix"]):
        faults.append(f"layout of keys {list(layout)}")
    first = stage * sharding.devices
    if layout["rank_list"] != list(range(first, first + sharding.devices)):
        faults.append(f"rank_list {layout['rank_list']}")
    if parameter["properties"]["dtype"].lower() != array.dtype.name:
        faults.append(f"dtype {parameter['properties']['dtype']}")
    for place in range(sharding.devices):
        mine = array[slice_of(layout, place, array.shape)]
        if not same(np.ascontiguousarray(mine).reshape(mine.shape), shard_of(array, sharding, place)):
            faults.append(f"rank {first + place} holds something else by the layout")
    expected = about(array, layout)
    for key in ("global_shape", "axis_fragmentations", "chunk"):
        if parameter[key] != expected[key]:
            faults.append(f"{key} {parameter[key]}")
    if parameter["properties"]["replica_id"] != expected["properties"]["replica_id"]:
        faults.append("replica_id")
    return faults


def _storage_faults(
    name: str,
    array: np.ndarray,
    parameter: Mapping[str, Any],
    metadata: Mapping[str, Any],
    files: Mapping[str, Mapping[str, np.ndarray]],
    release: str,
) -> list[str]:
    layout, faults = parameter["layout"], []
    ranks = layout["rank_list"]
    owners: dict[int, list[int]] = {}
    for place, rank in enumerate(ranks):
        owners.setdefault(slice_number(layout, place), []).append(rank)
    assert len(owners) == prod(parameter["axis_fragmentations"])
    for number, mine in owners.items():
        wanted = array[slice_of(layout, ranks.index(mine[0]), array.shape)]
        reached: set[int] = set()
        for entry in metadata["storage_data"].get(str((name, (number,))), []):
            held = files.get(entry["file_name"], {}).get(name)
            if held is None or not same(held, np.ascontiguousarray(wanted).reshape(wanted.shape)):
                faults.append(f"slice {number} in {entry['file_name']}")
            reached |= {entry["storage_rank"], *entry.get("rank_group", ())}
            if ("rank_group" in entry) == (release in OLD) or entry["storage_rank"] not in mine:
                faults.append(f"slice {number}: {entry}")
        if (reached - set(mine)) or (release not in OLD and reached != set(mine)):
            faults.append(f"slice {number} of {mine}, reached {sorted(reached)}")
    return faults

"""What MindSpore says, run by its own interpreter: a line of requests (JSON) comes in, a line of answers goes out.

It imports nothing of reshard. A request is a question, which is a function below, and its arguments; each gets an
answer, in order. A request on which MindSpore raises is answered by ``{"error": "Type: message"}``.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

Request = Mapping[str, Any]
Answer = Any


def _seen(values: Mapping[str, Any]) -> dict[str, Any]:
    """Type, shape and digest of each parameter; a string as it is."""
    return {
        name: value
        if isinstance(value, str)
        else [str(value.dtype), list(value.shape), hashlib.sha256(value.get_bytes()).hexdigest()]
        for name, value in values.items()
    }


def load(request: Request) -> Answer:
    """``load_checkpoint`` of ``path``; then, into a net of zeros that has these parameters, load_param_into_net."""
    import mindspore as ms
    import numpy as np

    loaded = ms.load_checkpoint(
        request["path"],
        format=request["format"],
        crc_check=request.get("crc", False),
        remove_redundancy=request.get("thinned", False),
    )
    if not request.get("into_net", False):
        return {"loaded": _seen(loaded)}
    net = ms.nn.Cell()
    names = [name for name, value in loaded.items() if not isinstance(value, str)]
    for i, name in enumerate(names):
        value = loaded[name]
        zeros = ms.Parameter(ms.Tensor(np.zeros(value.shape), value.dtype), name=name)
        net.insert_param_to_cell(f"p{i}", zeros)
    missing, unused = ms.load_param_into_net(net, {name: loaded[name] for name in names}, strict_load=True)
    return {"loaded": _seen(loaded), "net": _seen(net.parameters_dict()), "missing": [*missing], "unused": [*unused]}


def save(request: Request) -> Answer:
    """``save_checkpoint`` of ``tensors``: name → dtype, shape, bytes in hex."""
    import mindspore as ms
    import numpy as np

    plain = {"Bool": "bool", "BFloat16": "uint16"}
    tensors = []
    for name, (dtype, shape, content) in request["tensors"].items():
        bits = np.frombuffer(bytes.fromhex(content), plain.get(dtype, dtype.lower())).reshape(shape)
        tensor = ms.Tensor(bits)
        if dtype == "BFloat16":  # exact: bfloat16 is the upper half of float32
            tensor = ms.Tensor((bits.astype(np.uint32).reshape(-1) << 16).view(np.float32).reshape(shape), ms.bfloat16)
        tensors.append({"name": name, "data": ms.Parameter(tensor, name=name)})
    options = {k: v for k, v in request.items() if k in ("append_dict", "crc_check", "format")}
    ms.save_checkpoint(tensors, request["path"], **options)
    return {}


def transform(request: Request) -> Answer:
    """``transform_checkpoints`` with the arguments of the request."""
    import mindspore as ms

    ms.transform_checkpoints(**request)
    return {}


def strategy(request: Request) -> Answer:
    """``build_searched_strategy`` of a file: every tensor's entry as MindSpore has it."""
    import mindspore as ms
    from mindspore.parallel._parallel_serialization import _convert_to_list

    return {name: repr(entry) for name, entry in _convert_to_list(ms.build_searched_strategy(request["path"])).items()}


def merge(request: Request) -> Answer:
    """``merge_pipeline_strategys`` of a folder into a file."""
    import mindspore as ms

    ms.merge_pipeline_strategys(request["folder"], request["path"])
    return {}


def cut(request: Request) -> Answer:
    """``load_distributed_checkpoint`` of a unified folder, written as the files of all ranks."""
    import mindspore as ms

    ms.load_distributed_checkpoint(
        None,
        predict_strategy=request["strategy"],
        format="safetensors",
        unified_safetensors_dir=request["unified"],
        dst_safetensors_dir=request["target"],
        max_process_num=2,
    )
    return {}


def rank_lists(request: Request) -> Answer:
    """``rank_list_for_transform`` of each rank."""
    import mindspore as ms

    pair = (request["source"], request["target"])
    return [sorted(map(int, ms.rank_list_for_transform(rank, *pair))) for rank in range(request["ranks"])]


QUESTIONS = {f.__name__: f for f in (load, save, transform, strategy, merge, cut, rank_lists)}


def answered(question: str, request: Request) -> Answer:
    try:
        return QUESTIONS[question](request)
    except Exception as error:  # whatever MindSpore raises is its answer
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # MindSpore writes there too
    for line in sys.stdin:
        print(
            json.dumps([answered(question, request) for question, request in json.loads(line)]), file=told, flush=True
        )
    os._exit(0)  # its threads outlive it now and then


if __name__ == "__main__":
    main()

"""MindFormers' own loader of Checkpoint 2.0, run by MindSpore's Python: ``mindformers_side.py MINDFORMERS REQUESTS``.

MINDFORMERS is a folder that holds the package, without what it depends on: of the package only ``checkpoint`` is
imported, all else of it is empty. REQUESTS is a file of JSON: a list of (root, {name: (dtype, shape)}); the answer is a
list of {name: hash of what a net on one device holds after loading}, or of the error's words.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import logging
import os
import sys
import types
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path

os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
os.environ.setdefault("GLOG_v", "3")

import mindspore as ms
import numpy as np

KNOWN = {
    "mindformers.tools": {"get_output_root_path": lambda: "."},
    "mindformers.tools.logger": {"logger": logging.getLogger("mindformers")},
    "mindformers.tools.utils": {"get_real_rank": lambda: 0, "get_real_group_size": lambda: 1},
}
"""What loading on one device asks of the rest of the package."""


class Empty(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None


class Rest(MetaPathFinder, Loader):
    """Finds all of the package but ``checkpoint`` empty."""

    def __init__(self, folder):
        self.folder = folder

    def find_spec(self, name, path=None, target=None):
        of_it = name.partition(".")[0] == "mindformers" and not name.startswith("mindformers.checkpoint")
        return ModuleSpec(name, self, is_package=True) if of_it else None

    def create_module(self, spec):
        module = Empty(spec.name)
        module.__path__ = []
        module.__dict__.update(KNOWN.get(spec.name, {}))
        if spec.name == "mindformers":
            module.__path__ = [f"{self.folder}/mindformers"]
        return module

    def exec_module(self, module):
        pass


class Net(ms.nn.Cell):
    def __init__(self, tensors):
        super().__init__()
        for number, (name, (dtype, shape)) in enumerate(tensors.items()):
            zeros = ms.Tensor(np.zeros(shape, np.float32)).astype(getattr(ms, dtype))
            setattr(self, f"p{number}", ms.Parameter(zeros, name=name))


def held(parameter):
    if parameter.dtype == ms.bfloat16:
        wide = ms.Tensor(parameter).astype(ms.float32).asnumpy()
        return (wide.view(np.uint32) >> 16).astype(np.uint16)
    return np.ascontiguousarray(parameter.asnumpy())


def loaded(load_checkpoint, root, tensors):
    net = Net(tensors)
    try:
        load_checkpoint(root, net, None)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return {p.name: hashlib.sha256(held(p).tobytes()).hexdigest() for p in net.get_parameters()}


def find_by(rest):
    """Modules of MindFormers, from now on."""
    if not hasattr(ms, "DeviceCtx"):  # of later releases of MindSpore
        ms.DeviceCtx = lambda *_: contextlib.nullcontext()
    sys.meta_path.insert(0, rest)


def main():
    folder, requests = sys.argv[1:]
    find_by(Rest(folder))
    load = importlib.import_module("mindformers.checkpoint.checkpoint").load_checkpoint
    answers = [loaded(load, root, tensors) for root, tensors in json.loads(Path(requests).read_text())]
    print("\n" + json.dumps(answers))


if __name__ == "__main__":
    main()

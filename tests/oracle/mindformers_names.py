"""MindFormers' own operators of conversion, run by MindSpore's Python:
``mindformers_names.py MINDFORMERS MODEL SIZES WEIGHTS ANSWER there|back``.

MODEL is a folder below ``mindformers/models``, whose ``utils`` declares them; SIZES is what its configuration says, as
JSON; WEIGHTS and ANSWER are NumPy's .npz, of Hugging Face's names and MindFormers', or the reverse with ``back``. All
of the package but these modules is empty.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import types

import mindformers_side as side
import numpy as np


class Base:
    """Of what is not there."""


class Rest(side.Rest):
    def __init__(self, folder, model):
        super().__init__(folder)
        self.real = f"mindformers.models.{model}.utils"
        self.parents = {"mindformers.models": "models", f"mindformers.models.{model}": f"models/{model}"}

    def find_spec(self, name, path=None, target=None):
        return None if name == self.real else super().find_spec(name, path, target)

    def create_module(self, spec):
        module = super().create_module(spec)
        module.__class__ = Bases
        if spec.name in self.parents:
            module.__path__ = [f"{self.folder}/mindformers/{self.parents[spec.name]}"]
        return module


class Bases(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Base,), {})


def converted(operator, weights, back):
    """What an operator makes of the weights, layer by layer."""
    names = operator.mf_names if back else operator.hf_names
    layers = {found[1] for name in weights if (found := re.match(r"(?:model|decoder)\.layers\.(\d+)\.", name))}
    for layer in sorted(layers) if "{}" in names[0] else [""]:
        whole = [name.replace("{}", layer) for name in names]
        if all(name in weights for name in whole):
            yield from operator({name: weights[name] for name in whole}, mf_to_hf=back).items()


def main():
    folder, model, sizes, source, target, way = sys.argv[1:]
    side.find_by(Rest(folder, model))
    declared = importlib.import_module(f"mindformers.models.{model}.utils")
    operators = next(v.weight_converters for v in vars(declared).values() if hasattr(v, "weight_converters"))
    config = types.SimpleNamespace(**json.loads(sizes), tensor_model_parallel_size=1)
    weights, made = dict(np.load(source)), {}
    for operator in operators:
        if hasattr(operator, "set_model_config"):
            operator.set_model_config(config)
        operator.optimizer_parallel_size = 1  # as loading sets it
        made |= dict(converted(operator, weights, way == "back"))
    np.savez(target, **made)


if __name__ == "__main__":
    main()

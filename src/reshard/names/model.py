"""What a model's own files say of it: config.json of Hugging Face, the YAML of a MindFormers run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from reshard.errors import CheckpointError, InputError, UsageError
from reshard.names.recipe import Recipe
from reshard.yaml_text import read_yaml, text_in, whole_numbers


class ModelFile(Struct, frozen=True):
    """A file's settings by dotted key.

    Attributes:
        hub: whether it is Hugging Face's, a config.json.
        models: what it calls the model, most telling first.
    """

    where: str
    hub: bool
    models: tuple[str, ...]
    values: Mapping[str, Any]

    def said(self, recipe: Recipe, setting: str) -> tuple[str, Any] | None:
        """The key that tells a setting, and its value."""
        for key in recipe.settings.get(setting, ()):
            if self.values.get(key) is not None:
                return key, self.values[key]
        return None


def hub_config(files: Iterable[ModelFile]) -> ModelFile | None:
    """The first config.json among them."""
    return next((file for file in files if file.hub), None)


def model_of_args(args: Mapping[str, Any]) -> ModelFile:
    """Of Megatron's arguments: the number of KV groups counts where there are groups at all."""
    values = dict(args)
    if values.get("group_query_attention") is False:
        values["num_query_groups"] = values.get("num_attention_heads")
    return ModelFile("args", False, (), values)


def read_model(content: bytes, where: str) -> ModelFile:
    """Raises InputError for what is neither; a UsageError for a file of another name."""
    name = where.rsplit("/", 1)[-1]
    if name.endswith(".json"):
        return _of_config(content, where)
    if name.endswith((".yaml", ".yml")):
        return _of_yaml(content, where)
    raise UsageError(f"{name!r} is no model file", where, "give a config.json, or the YAML of a MindFormers run")


def _of_config(content: bytes, where: str) -> ModelFile:
    try:
        values = msgspec.json.decode(text_in(content, where))
    except (msgspec.DecodeError, RecursionError) as error:
        raise CheckpointError(f"not JSON: {error}", where) from None
    if not isinstance(values, dict):
        raise CheckpointError("expected a configuration of Hugging Face", where)
    nested = values.get("text_config")
    values = {**values, **nested} if isinstance(nested, dict) else values
    return ModelFile(where, True, _models(values), _flat(whole_numbers(values)))


def _of_yaml(content: bytes, where: str) -> ModelFile:
    try:
        values = whole_numbers(read_yaml(text_in(content, where)))
    except InputError as error:
        raise CheckpointError(error.message, where, error.hint) from None
    found = model_of_run(values, where) if isinstance(values, dict) else None
    if found is None:
        raise CheckpointError("expected model.model_config, as the YAML of a MindFormers run has it", where)
    return found


def model_of_run(values: Mapping[str, Any], where: str) -> ModelFile | None:
    """What the settings of a MindFormers run say of its model; None where they describe none."""
    model = values.get("model")
    config = model.get("model_config") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(config, dict):
        return None
    arch = model.get("arch")
    models = _models({**config, "arch": arch.get("type") if isinstance(arch, dict) else None})
    moe = values.get("moe_config")
    return ModelFile(
        where, False, models, {**_flat({"moe_config": moe if isinstance(moe, dict) else {}}), **_flat(config)}
    )


def _models(values: Mapping[str, Any]) -> tuple[str, ...]:
    given = values.get("architectures") or ()
    names = [given] if isinstance(given, str) else list(given) if isinstance(given, list) else []
    return tuple(str(name) for name in (values.get("arch"), *names, values.get("model_type")) if name)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found

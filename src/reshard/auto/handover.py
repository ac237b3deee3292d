"""The YAML for the framework that starts next: the user's own, but for what has been done already."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from reshard.auto.config import Config
from reshard.errors import InputError
from reshard.yaml_text import quick_loader, read_yaml


def handed_over(config: Config, load_checkpoint: str | None) -> str:
    """The text of a YAML that is the user's, changes of the command line included, and loads what is there now; None
    for what is left to the framework.
    """
    ours: dict[str, Any] = {}
    if load_checkpoint is not None:
        block = config.content.get("checkpoint")
        ours = {"load_checkpoint": load_checkpoint, "auto_trans_ckpt": False}
        if isinstance(block, Mapping) and block.get("load_path"):
            ours = {"checkpoint": {**block, "load_path": load_checkpoint}}
    changes, wanted = {**config.changes, **ours}, {**config.content, **ours}
    if config.text and not any("." in key for key in changes):
        edited = _edited(config.text, changes)
        if _reads_as(edited, wanted):
            return edited
    return _dumped(wanted)


def _edited(text: str, changes: Mapping[str, Any]) -> str:
    """The same text with some values of the outermost map put in their places, or lines added for new keys."""
    import yaml

    node = yaml.compose(text, quick_loader(text))
    if not isinstance(node, yaml.MappingNode) or node.flow_style:
        return text
    places = {key.value: value for key, value in node.value}
    edits = [(places[key], _written(value)) for key, value in changes.items() if key in places]
    for place, value in sorted(edits, key=lambda edit: -edit[0].start_mark.index):
        start, end = place.start_mark.index, place.end_mark.index
        text = f"{text[:start]}{'' if text[start - 1].isspace() else ' '}{value}{text[end:]}"
    lines = [f"{key}: {_written(value)}\n" for key, value in changes.items() if key not in places]
    return text + ("" if text.endswith("\n") or not lines else "\n") + "".join(lines)


def _written(value: Any) -> str:
    """One value in a line of YAML; True and False as MindFormers' files spell them."""
    return str(value) if isinstance(value, bool) else json.dumps(value, ensure_ascii=False)


def _reads_as(text: str, wanted: Mapping[str, Any]) -> bool:
    """Whether it is these values in this order; NaN is as equal as any other."""
    try:
        return repr(read_yaml(text)) == repr(wanted)
    except InputError:
        return False


def _dumped(content: Mapping[str, Any]) -> str:
    import yaml

    try:
        return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
    except yaml.YAMLError as error:
        raise InputError(f"a setting cannot be written as YAML: {error}", "config", "give the YAML file") from None

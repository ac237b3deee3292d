"""A MindFormers YAML with what the command line changes in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from reshard.closest import closest
from reshard.errors import InputError, UsageError
from reshard.yaml_text import read_yaml, text_of

SRC_STRATEGY = ("src_strategy_path_or_dir", "src_strategy")
KEYS = (
    "load_checkpoint", *SRC_STRATEGY, "auto_trans_ckpt", "transform_process_num", "transform_by_rank", "transform",
    "use_parallel", "only_save_strategy", "npu_num_per_node", "output_dir", "load_ckpt_format", "load_ckpt_async",
    "remove_redundancy", "resume_training", "remote_save_url",
)  # fmt: skip
"""The keys that say what becomes of the weights; others say how the job is cut, or nothing to us."""
_OTHER_KEYS = ("run_mode", "parallel_config", "parallel", "model", "optimizer", "pretrained_model_dir", "use_legacy")


class Config(Struct, frozen=True):
    """The settings of a job.

    Attributes:
        where: the file, or words for messages.
        text: the file as it is; "" of settings that come from no file.
        content: all settings, changes included.
        changes: dotted keys that the command line sets.
    """

    where: str
    text: str
    content: Mapping[str, Any]
    changes: Mapping[str, Any] = {}

    @property
    def parallel(self) -> Mapping[str, Any]:
        """The settings of a job that is cut, whatever its ``use_parallel`` says."""
        return {**self.content, "use_parallel": True}


def read_config(config: str | Path | Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> Config:
    """Settings from a YAML file, or as a mapping; ``changes`` by dotted key win.

    Raises InputError for what is not YAML, UsageError for a change of a key that neither we nor the file know.
    """
    if isinstance(config, Mapping):
        where, text, content = "config", "", _plain(config)
    else:
        where, text = str(config), text_of(config)
        try:
            content = read_yaml(text)
        except InputError as error:
            raise InputError(error.message, where) from None
        if not isinstance(content, dict):
            raise InputError("not a MindFormers configuration: expected a map of keys", where)
    for key, value in (changes or {}).items():
        _check_known(key, content)
        content = _with(content, key.split("."), value)
    if text and content.keys().isdisjoint((*KEYS, *_OTHER_KEYS)):
        told = ", ".join((*_OTHER_KEYS[1:4], KEYS[0]))
        raise InputError(f"not a MindFormers configuration: none of its keys, as {told}", where)
    return Config(where, text, content, dict(changes or {}))


def parse_changes(words: Sequence[str]) -> dict[str, Any]:
    """``--KEY VALUE`` and ``--KEY=VALUE``; values are YAML. Raises UsageError.

    >>> parse_changes(["--auto_trans_ckpt", "True", "--parallel_config.model_parallel=4"])
    {'auto_trans_ckpt': True, 'parallel_config.model_parallel': 4}
    """
    changes: dict[str, Any] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            raise UsageError(f"{word!r}: expected --KEY VALUE", hint="the job's own command comes after --")
        if not equals:
            if not left or left[0].startswith("--"):
                raise UsageError(f"--{key} has no value", hint=f"--{key} VALUE")
            value = left.pop(0)
        try:
            changes[key] = read_yaml(value)
        except InputError as error:
            raise UsageError(f"--{key} {value!r}: {error.message}") from None
    return changes


def _plain(value: Any) -> Any:
    """Maps and lists of the kinds that YAML has: frameworks have their own kinds of map."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _check_known(key: str, content: Mapping[str, Any]) -> None:
    """A key that nobody knows is a slip of the pen, and the job would start without what it should say."""
    first = key.split(".")[0]
    known = (*KEYS, *_OTHER_KEYS, *map(str, content))
    if first not in known:
        close = closest(first, known, most=1)
        raise UsageError(
            f"--{key}: no such key", hint=f"did you mean --{close[0]}?" if close else "the YAML does not have it either"
        )


def _with(content: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """The content with one value set, maps on the way made where they are absent."""
    first, *rest = path
    if rest:
        inner = content.get(first)
        value = _with(inner if isinstance(inner, Mapping) else {}, rest, value)
    return {**content, first: value}

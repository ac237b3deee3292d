"""Paths with a NUL, which Python and YAML can spell and no file system has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import reshard
from making import write_file
from reshard.auto import prepare
from reshard.errors import InputError, UsageError
from reshard.families.strategies import read_strategy


@pytest.mark.parametrize(
    "call",
    [
        lambda full: reshard.open(full, strategy="a\0b"),
        lambda full: reshard.plan(full, f"{full}.out", reshard.Options(dst_strategy="a\0b")),
        lambda full: reshard.plan(full, f"{full}.a\0b"),
        lambda full: read_strategy("a\0b"),
        lambda full: reshard.lora_config(config="a\0b"),
        lambda full: prepare("a\0b"),
    ],
    ids=["source strategy", "target strategy", "target", "strategy", "LoRA config", "job"],
)
def test_the_path_is_named(tmp_path: Path, call: Callable[[str], object]) -> None:
    full = write_file(tmp_path / "full.safetensors", {"w": np.zeros(2, np.float32)})
    with pytest.raises(InputError, match=r"a\\0b: no file has a NUL in its name"):
        call(str(full))


def test_a_setting_of_a_job_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="allowed: text without NUL"):
        prepare({"output_dir": "a\0b"})

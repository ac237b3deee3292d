"""The golden cases of ``reshard lora merge`` and ``reshard unify``."""

from pathlib import Path

import pytest

from golden.cases import BY_LORA_TOOL, BY_UNIFY, check


@pytest.mark.parametrize("name", BY_UNIFY)
def test_unify(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(name, tmp_path, capsys)


@pytest.mark.parametrize("name", BY_LORA_TOOL)
def test_lora_merge(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(name, tmp_path, capsys)

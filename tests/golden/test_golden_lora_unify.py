"""The golden cases of ``reshard lora merge`` and ``reshard unify``."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from golden.cases import BY_LORA_TOOL, BY_UNIFY, check

pytestmark = pytest.mark.skipif(
    find_spec("reshard.cli.lora") is None or find_spec("reshard.cli.unify") is None,
    reason="reshard has no lora and unify commands yet",
)


@pytest.mark.parametrize("name", BY_UNIFY)
def test_unify(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(name, tmp_path, capsys)


@pytest.mark.parametrize("name", BY_LORA_TOOL)
def test_lora_merge(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(name, tmp_path, capsys)

"""``reshard strategy make`` as a user calls it."""

from __future__ import annotations

from pathlib import Path

import pytest
from configurations import GOLDEN

from reshard.cli.main import main

CONFIG = str(GOLDEN / "families/qwen3_dp2mp2pp2_zbv/run.yaml")


def code_of(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["strategy", *words])
    return int(left.value.code or 0)


def test_makes_what_mindspore_makes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "made")
    assert code_of("make", "--config", CONFIG, "--mindformers-version", "1.8.0", "-o", out) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 8 files by the rules of mcore: 2 stages of 4 ranks, ")
    assert code_of("diff", out, str(GOLDEN / "families/qwen3_dp2mp2pp2_zbv")) == 0
    capsys.readouterr()
    assert code_of("show", out) == 0
    assert "made without a compiler" in capsys.readouterr().out


@pytest.mark.parametrize("kinds", [["--merged"], ["--json-format"], ["--merged", "--json-format"]])
def test_other_kinds_mean_the_same(tmp_path: Path, kinds: list[str]) -> None:
    out = tmp_path / "made"
    assert code_of("make", "--config", CONFIG, "-o", str(out), *kinds) == 0
    read = next(out.iterdir()) if "--merged" in kinds else out
    assert code_of("diff", str(read), str(GOLDEN / "families/qwen3_dp2mp2pp2_zbv")) == 0


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "made")
    assert code_of("make", "-o", out) == 2
    assert code_of("make", "--config", CONFIG, "--dp", "2", "-o", out) == 2
    assert code_of("make", "--config", CONFIG, "-o", str(GOLDEN)) == 2
    assert code_of("make", "--config", CONFIG, "--optimizer", "Muon", "-o", out) == 3
    assert code_of("make", "--config", str(tmp_path / "none.yaml"), "-o", out) == 3
    assert "Traceback" not in capsys.readouterr().err

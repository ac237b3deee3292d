"""What an interrupted command says of what it leaves behind."""

from __future__ import annotations

import pytest

from reshard.cli import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("convert a b", "no file under its final name is partial; --resume goes on"),
        ("convert a b --overwrite", "no file under its final name is partial; the old target stays"),
        ("--debug auto --config run.yaml", "no file under its final name is partial; the next start goes on"),
        ("diff a b", "no file under its final name is partial"),
    ],
)
def test_by_command(words: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(args: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "_main", interrupted)
    with pytest.raises(SystemExit) as left:
        main.main(words.split())
    assert left.value.code == 130
    assert capsys.readouterr().err == f"interrupted: {said}\n"

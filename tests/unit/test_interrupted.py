"""What an interrupted command says of what it leaves behind, and what it does not do any more."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable

import pytest

from hearing import Heard
from reshard import interruption
from reshard.cli import main
from reshard.cli.progress import Interruptible
from reshard.interruption import interruptible


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("convert a b", "no file under its final name is partial; --resume goes on"),
        (
            "convert a b --overwrite",
            "no file under its final name is partial; the old target stays, or the new one is whole in its place",
        ),
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


def test_it_is_said_where_errors_go_though_a_bar_is_drawn_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(args: list[str]) -> None:
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "_main", interrupted)
    with pytest.raises(SystemExit):
        main.main(["verify", "a"])
    assert capsys.readouterr().err.startswith("interrupted: ")


@pytest.mark.parametrize("signals", [0, 1])
def test_a_job_is_not_begun_after_an_interruption(
    signals: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[str] = []

    def auto(*words: object, **options: object) -> Callable[[], None]:
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGTERM)
        return lambda: begun.append("the job")

    monkeypatch.setattr(main, "program_for", lambda words: auto)
    with pytest.raises(SystemExit) as left:
        main.main(["auto"])
    assert (begun, left.value.code == 130) == (["the job"] * (1 - signals), signals == 1)


def test_a_job_ends_at_its_next_step() -> None:
    shown = Heard()

    def work() -> None:
        job = Interruptible(shown)
        job.start("writing", 9)
        job.start_files(2)
        job.advance(4)
        os.kill(os.getpid(), signal.SIGINT)
        while not interruption._interruption.interrupted:
            pass
        try:
            job.advance(5)
        finally:
            job.end()

    with pytest.raises(KeyboardInterrupt):
        interruptible(work)
    assert shown.heard == [("writing", 9), ("files", 2), 4, "end"]

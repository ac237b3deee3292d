"""Manners on a terminal and off it: progress, colours, interruption; three lines at the end."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from terminal import PROGRAM, on_terminal

from making import array, write_file, write_strategy
from reshard.layout.tensor import Sharding

FULL = {f"layers.{i}.w": array((64, 1024), seed=i) for i in range(8)}
SLOW = ("--max-rate", "4MiB/s")  # 2 MiB take half a second: time to be seen, and to be interrupted


@pytest.fixture
def convert(tmp_path: Path) -> tuple[str | Path, ...]:
    source = write_file(tmp_path / "full.safetensors", FULL)
    strategy = write_strategy(tmp_path / "new", [dict.fromkeys(FULL, Sharding((4,), ((0,), ())))])
    return ("convert", source, tmp_path / "out", "--dst-strategy", strategy)


def piped(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(PROGRAM), *map(str, args)], capture_output=True, text=True, check=False)


SUMMARY = re.compile(
    r"\S+: 4 files of 8 tensors\n2\.0 MiB read, 2\.0 MiB written in [\d.]+ s \([\d.]+ [KM]iB/s\)\nleft out: nothing\n"
)


def test_a_terminal_shows_files_bytes_rate_and_time_left(convert: tuple[str | Path, ...]) -> None:
    shown = on_terminal(*convert, *SLOW, columns=120)
    assert shown.code == 0
    assert re.search(
        r"writing [━╸╺ ]+ 0 of 4 files, [\d.]+ [KM]iB of 2\.0 MiB \(\d+%\), [\d.]+ MiB/s, [\d.]+ s left", shown.plain
    )
    assert "4 of 4 files" in shown.plain


def test_only_the_summary_stays_on_a_terminal(convert: tuple[str | Path, ...]) -> None:
    shown = on_terminal(*convert, *SLOW)
    assert SUMMARY.fullmatch(shown.text.rpartition("\x1b[2K")[2].replace("\r\n", "\n"))


def test_a_narrow_terminal_gets_one_line(convert: tuple[str | Path, ...]) -> None:
    shown = on_terminal(*convert, *SLOW, columns=40)
    assert re.search(r"writing \d+%, [\d.]+ s left", shown.plain)
    drawn = shown.text.partition("\x1b[?25h")[0]  # until the cursor is shown again
    assert drawn.count("\n") == 1, "the line did not fit"


@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}])
def test_no_color_means_no_color(convert: tuple[str | Path, ...], env: dict[str, str]) -> None:
    shown = on_terminal(*convert, *SLOW, columns=120, env=env).text + on_terminal("convrt", env=env).text
    coloured = re.findall(r"\x1b\[[\d;]*m", shown)
    assert bool(coloured) == (not env)


def test_a_dumb_terminal_gets_plain_lines(convert: tuple[str | Path, ...]) -> None:
    shown = on_terminal(*convert, *SLOW, env={"TERM": "dumb"})
    assert SUMMARY.fullmatch(shown.text.replace("\r\n", "\n"))


def test_off_a_terminal_there_are_no_control_characters(convert: tuple[str | Path, ...]) -> None:
    done = piped(*convert, *SLOW)
    assert SUMMARY.fullmatch(done.stdout)
    assert done.stderr == ""
    refused = piped(*convert)
    assert refused.returncode == 2
    assert "\x1b" not in refused.stderr


def test_quiet_and_json_show_no_progress(convert: tuple[str | Path, ...]) -> None:
    assert on_terminal(*convert, *SLOW, "--quiet").text == ""
    shown = on_terminal(*convert, *SLOW, "--json", "--overwrite").text
    assert (shown[0], shown.rstrip()[-1]) == ("{", "}")


def test_ctrl_c_leaves_a_clean_terminal_and_nothing_half_done(convert: tuple[str | Path, ...]) -> None:
    shown = on_terminal(*convert, "--max-rate", "100KiB/s", columns=120, interrupt_at="s left")
    assert shown.code == 130
    assert shown.text.endswith("interrupted: no file under its final name is partial; --resume goes on\r\n")
    assert shown.text.rfind("\x1b[?25h") > shown.text.rfind("\x1b[?25l"), "the cursor is hidden"
    out = convert[2]
    assert isinstance(out, Path)
    assert not list(out.rglob("*.safetensors"))


def test_a_terminal_that_is_closed_keeps_no_work_from_its_end(convert: tuple[str | Path, ...]) -> None:
    shown = on_terminal(*convert, *SLOW, "--verify", columns=120, close_at="s left")
    out = convert[2]
    assert isinstance(out, Path)
    assert (shown.code, (out / ".reshard/manifest.json").is_file()) == (0, True)


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    source = write_file(tmp_path / "many.safetensors", {f"w{i}": array((1,)) for i in range(5000)})
    done = subprocess.run(
        f"'{PROGRAM}' inspect '{source}' | head -1", shell=True, capture_output=True, text=True, check=False
    )
    assert (done.stdout.count("\n"), done.stderr) == (1, "")

"""Standard output and error that cannot show every sign: the work is done, and what is said stays readable."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from making import counted, write_file, write_strategy
from reshard.cli.main import main
from reshard.compat import transform_ckpt, transform_ckpt_lora, unified_safetensors
from reshard.errors import RunError
from reshard.layout.tensor import Sharding

FULL = {"w": counted(8, 4), "q.mindpet_delta_lora_a": counted(2, 4), "q.mindpet_delta_lora_b": counted(4, 2)}
FULL["q.weight"] = counted(4, 4)
CUT = {name: Sharding((4,), ((), ())) for name in FULL} | {"w": Sharding((4,), ((0,), ()))}
ENCODINGS = ["gbk", "ascii", "latin-1", "utf-8"]
NAMES = ["模型×é", os.fsdecode(b"raw-\xe4\xff")]
COMMANDS = [
    "inspect FULL",
    "inspect FULL --json",
    "plan FULL out --dst-strategy four",
    "plan FULL out --dst-strategy four --full",
    "convert FULL out --dst-strategy four --report out.html",
    "explain w FULL --dst-strategy four",
    "explain w FULL --dst-strategy four --json",
    "convert FULL out --dst-strategy four --json",
    "diff FULL FULL",
    "diff FULL FULL --json",
    "fingerprint FULL",
    "strategy show four",
    "doctor .",
    "lora merge FULL out.ckpt --scaling 2",
    "compat transform_checkpoint --src_checkpoint=FULL --dst_checkpoint=out --dst_strategy=four",
    "compat transform_ckpt --src_ckpt_dir=FULL --dst_ckpt_dir=out --dst_ckpt_strategy=four",
    "compat transform_ckpt_lora --src_ckpt_path_or_dir=FULL --dst_ckpt_dir=out --lora_scaling=2",
]
FAILING = [
    ("inspect NOWHERE", 3),
    ("convert FULL out --dst-strategy NOWHERE", 3),
    ("convert FULL --×", 2),
    ("compat transform_checkpoint --src_checkpoint=FULL --dst_checkpoint=out --dst_strategy=NOWHERE", 3),
    ("auto --config NOWHERE", 3),
]


class Narrow:
    """Runs the program with streams of an encoding, strict as Python opens them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch

    def __call__(self, encoding: str, words: list[str]) -> tuple[int, str, str]:
        out, err = io.BytesIO(), io.BytesIO()
        with self._patch.context() as patch:
            patch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding, "strict"))
            patch.setattr(sys, "stderr", io.TextIOWrapper(err, encoding, "strict"))
            with pytest.raises(SystemExit) as stopped:
                main(words)
            sys.stdout.flush()
            sys.stderr.flush()
            return int(stopped.value.code or 0), out.getvalue().decode(encoding), err.getvalue().decode(encoding)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[str]], tuple[int, str, str]]:
    return Narrow(monkeypatch)


@pytest.fixture(params=NAMES, ids=["chinese", "surrogates"])
def name(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A working folder of that name with ``<name>.ckpt`` and the strategy ``four``."""
    folder = tmp_path / request.param
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_file(folder / f"{request.param}.ckpt", FULL)
    write_strategy(folder / "four", [CUT])
    return str(request.param)


def words_of(command: str, name: str) -> list[str]:
    here = Path.cwd()
    return [w.replace("FULL", f"{here}/{name}.ckpt").replace("NOWHERE", f"{here}/{name}.no") for w in command.split()]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_do_their_work(command: str, encoding: str, name: str, run: Narrow) -> None:
    code, out, err = run(encoding, words_of(command, name))
    if "--full" in command and not name.isprintable():
        assert (code, "is not Unicode: JSON cannot hold it" in err) == (3, True)
        return
    assert code == 0, err
    if "--json" in command or "--full" in command:
        json.loads(out)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("command", "want"), FAILING)
def test_errors_are_told(command: str, want: int, encoding: str, name: str, run: Narrow) -> None:
    code, _, err = run(encoding, words_of(command, name))
    assert (code, err.count("error: ")) == (want, 1), err
    assert "UnicodeEncodeError" not in err


@pytest.mark.parametrize("words", ["inspect nowhere --json", "inspect --jsn --json", "verify a.ckpt b.ckpt --json"])
def test_errors_are_json_where_results_are(words: str, tmp_path: Path, run: Narrow) -> None:
    write_file(tmp_path / "a.ckpt", {"w": counted(4)})
    write_file(tmp_path / "b.ckpt", {"w": counted(8)})
    code, out, err = run("utf-8", [str(tmp_path / word) if "ckpt" in word else word for word in words.split()])
    told = json.loads(out)
    assert told["exit_code"] == code > 0
    assert f"error: {told['error']}\n" in err
    assert all(f"hint: {hint}\n" in err for hint in told["hints"])


class Full(io.StringIO):
    """A log on a full disk."""

    def write(self, text: str, /) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_closed_streams_are_no_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", str(write_file(tmp_path / "a.ckpt", {"w": counted(4)}))])
    for stream in (sys.stdout, sys.stderr):
        stream.close()
    assert not stopped.value.code


def test_a_full_disk_under_what_is_said_is_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", str(write_file(tmp_path / "a.ckpt", {"w": counted(4)}))])
    sys.stdout.close()
    assert (stopped.value.code, "standard output: no space" in capsys.readouterr().err) == (4, True)


def ended(words: str, folder: Path, **streams: Any) -> tuple[int, str]:
    """A process of its own, whose exit code is Python's last word; what is said waits in its buffers, as it does of all
    that is no terminal. What it said on standard error, where that is not given.
    """
    write_file(folder / "a.ckpt", {"w": counted(4)})
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "reshard", *words.split()]
    done = subprocess.run(
        command, cwd=folder, env=env, text=True, check=False, **{"stderr": subprocess.PIPE, **streams}
    )
    return done.returncode, done.stderr or ""


@pytest.mark.parametrize(
    ("words", "want"),
    [
        ("inspect a.ckpt", 4),
        ("inspect a.ckpt --json", 4),
        ("inspect nowhere --json", 3),
        ("diff a.ckpt a.ckpt", 4),
        ("--help", 4),
        ("convert --help", 4),
    ],
)
def test_a_full_disk_under_results_is_told_by_the_exit_code(words: str, want: int, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        code, said = ended(words, tmp_path, stdout=full)
    assert (code, said.count("error: "), "Traceback" in said, "Exception ignored" in said) == (want, 1, False, False)


def test_a_full_disk_under_the_log_fails_no_work(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        code, _ = ended("convert a.ckpt b.ckpt --exclude nothing", tmp_path, stdout=subprocess.DEVNULL, stderr=full)
        assert (code, (tmp_path / "b.ckpt").exists()) == (0, True)
        assert ended("inspect nowhere", tmp_path, stderr=full)[0] == 3
        tool = "compat transform_ckpt --src_ckpt_dir=a.ckpt --dst_ckpt_dir=out"
        assert ended(tool, tmp_path, stdout=full, stderr=full)[0] == 0


@pytest.mark.parametrize("words", ["inspect a.ckpt", "inspect a.ckpt --json", "diff a.ckpt a.ckpt"])
def test_who_reads_no_more_has_read_enough(words: str, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as left:
        assert ended(words, tmp_path, stdout=left) == (0, "")


def test_what_cannot_be_shown_is_spelled(name: str, run: Narrow) -> None:
    _, out, _ = run("ascii", words_of("inspect FULL", name))
    assert name.encode("ascii", "backslashreplace").decode().replace("\\xd7", "x") in out
    assert "8x4" in out
    _, out, _ = run("ascii", words_of(next(c for c in COMMANDS if "transform_checkpoint" in c), name))
    assert "|##################################################|100%" in out


def test_json_keeps_what_it_says(name: str, run: Narrow) -> None:
    """In any encoding the same values."""
    words = words_of("inspect FULL --json", name)
    assert json.loads(run("ascii", words)[1]) == json.loads(run("gbk", words)[1]) == json.loads(run("utf-8", words)[1])


class Panic(BaseException):
    """As a library in Rust raises it: no Exception."""


@pytest.mark.parametrize("tool", [transform_ckpt, transform_ckpt_lora, unified_safetensors])
def test_a_panic_is_a_bug_and_no_difference(
    tool: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 1 says that a difference was found, and nothing else says it."""

    def panics(*_: object, **__: object) -> None:
        raise Panic("called unwrap")

    monkeypatch.setattr(tool, "required", panics)
    called = tool.__name__.rpartition(".")[2]  # type: ignore[attr-defined]
    assert tool.main([]) == RunError.exit_code  # type: ignore[attr-defined]
    with pytest.raises(SystemExit) as stopped:
        main(["compat", called])
    assert stopped.value.code == RunError.exit_code
    said = capsys.readouterr().err
    assert said.count("error: Panic: called unwrap") == 2
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "command", ["inspect m.safetensors", "inspect m.safetensors --json", "explain N m.safetensors"]
)
def test_names_do_not_steer_the_terminal(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "w\x1b[2J\x9b\u202e"
    write_file(tmp_path / "m.safetensors", {name: counted(2)})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main([name if word == "N" else word for word in command.split()])
    said = capsys.readouterr()
    assert not {"\x1b", "\x9b", "\u202e"} & set(said.out + said.err)
    assert "--json" not in command or json.loads(said.out)["tensors"][0]["name"] == name

"""reshard doctor: what it says of the machine and of paths, and when it fails."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from pathlib import Path
from typing import Any

import pytest
from terminal import PROGRAM

from reshard.cli.doctor import lines
from reshard.ops import doctor
from reshard.storage import machine


def run(*paths: str | Path, limit_files: int = 0) -> tuple[int, str]:
    def limited() -> None:
        if limit_files:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit_files, limit_files))

    done = subprocess.run(
        [str(PROGRAM), "doctor", *map(str, paths)], capture_output=True, text=True, check=False, preexec_fn=limited
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def found(*paths: str | Path) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(run(*paths, "--json")[1])
    return parsed


def test_the_machine(tmp_path: Path) -> None:
    said = found(tmp_path)
    assert said["machine"]["page_nbytes"] == os.sysconf("SC_PAGE_SIZE")
    assert said["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert (said["machine"]["open_files"], said["machine"]["most_open_files"]) == resource.getrlimit(
        resource.RLIMIT_NOFILE
    )
    assert said["packages"].keys() >= {"numpy", "msgspec", "xxhash", "rich", "typer", "pyyaml"}
    assert set(said["extras"]) == {"obstore", "ray"}


def test_a_folder_and_what_its_file_system_can_do(tmp_path: Path) -> None:
    (folder,) = found(tmp_path)["folders"]
    status = os.statvfs(tmp_path)
    assert folder["looked_at"] == str(tmp_path)
    assert folder["filesystem"] == machine.filesystem(tmp_path) != ""
    assert folder["nbytes"] == status.f_blocks * status.f_frsize
    assert folder["writable"]
    assert folder["links"] in ("reflink", "hardlink", "none")
    assert list(tmp_path.iterdir()) == []


def test_of_a_target_that_is_not_there_yet_its_nearest_folder_counts(tmp_path: Path) -> None:
    code, said = run(tmp_path / "a/b")
    assert (code, f"{tmp_path / 'a/b'} (looked at {tmp_path}): nothing lies there yet" in said) == (0, True)


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write everywhere, so that the system says no is told here by hand."""

    def refuse(*given: object, **named: object) -> None:
        raise PermissionError

    monkeypatch.setattr(doctor.tempfile, "TemporaryDirectory", refuse)
    health = doctor.examine([str(tmp_path)])
    assert (health.folders[0].writable, health.folders[0].links, health.problems) == (False, None, ())
    assert "not writable: good for a source only" in "\n".join(lines(health))


def test_few_open_files_are_a_problem() -> None:
    code, said = run(limit_files=64)
    assert code == 1
    assert "problem: at most 64 files may be open at once" in said


def test_a_package_that_is_absent_or_too_old_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"numpy": "1.20.1"}
    monkeypatch.setattr(
        doctor.metadata, "requires", lambda name: ["numpy<3,>=1.24", "xxhash>=3", "ray; extra == 'ray'"]
    )
    monkeypatch.setattr(doctor, "_version", lambda name: versions.get(name, ""))
    health = doctor.examine([])
    assert health.problems == ("numpy 1.20.1: numpy<3,>=1.24 is needed", "xxhash is absent: xxhash>=3 is needed")


def test_a_store_that_does_not_answer_is_a_problem() -> None:
    code, said = run("nonsense://bucket/model")
    assert code == 1
    assert "problem: nonsense://bucket/model: " in said


def test_the_strictest_memory_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / "own", tmp_path / "parent", tmp_path / "absent"]
    files[0].write_text("max\n")
    files[1].write_text("268435456\n")
    monkeypatch.setattr(machine, "_control_files", lambda: files)
    assert machine.memory_limit_nbytes() == 1 << 28
    assert "the memory limit of 268,435,456 bytes is below" in doctor.examine([]).problems[0]

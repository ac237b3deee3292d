"""Small file systems of a test's own; skipped where they may not be mounted."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(folder: Path, *how: str | Path) -> Iterator[Path]:
    """``how``: what ``mount`` is told besides the folder."""
    folder.mkdir(exist_ok=True)
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount a file system")
    done = subprocess.run(["mount", *how, folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def tmpfs(folder: Path, options: str) -> AbstractContextManager[Path]:
    return mounted(folder, "-t", "tmpfs", "-o", options, "tmpfs")


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def image(path: Path, nbytes: int, kind: str, *how: str) -> Path:
    """A file that holds an empty file system. ``how``: what the program that makes it is told."""
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"needs mkfs.{kind}")
    with open(path, "wb") as made:
        made.truncate(nbytes)
    subprocess.run([f"mkfs.{kind}", "-q", *how, path], check=True, stderr=subprocess.DEVNULL)
    return path


def ext4_image(path: Path, nbytes: int) -> Path:
    return image(path, nbytes, "ext4", "-F")

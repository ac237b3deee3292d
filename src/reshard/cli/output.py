"""What commands say at their end: text for people, JSON for programs; errors and warnings on standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec import Struct

from reshard.closest import closest, did_you_mean
from reshard.errors import InputError, ReshardError, StorageError, translated
from reshard.streams import json_for, put, shown

_RED, _YELLOW = "31", "33"
_SOME = 6


def say(text: str) -> None:
    """Raises StorageError where a full disk takes no more of it."""
    _said(put("stdout", shown(text) + "\n"))


def all_said() -> None:
    """Raises StorageError where a full disk does not take what was said last."""
    _said(put("stdout", flush=True))


def _said(kept_from: OSError | None) -> None:
    if kept_from:
        raise translated(kept_from, "standard output") from kept_from


def say_json(value: Any) -> None:
    import msgspec

    try:
        text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    except UnicodeEncodeError:  # a path that is no Unicode: its bytes as Python escapes them
        text = json.dumps(msgspec.to_builtins(value), indent=2)
    say(json_for(sys.stdout, text))


def on_terminal() -> bool:
    """Whether standard error is a terminal that understands more than plain lines."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _coloured(word: str, colour: str) -> str:
    return f"\x1b[1;{colour}m{word}\x1b[0m" if on_terminal() and not os.environ.get("NO_COLOR") else word


def warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        put("stderr", f"{_coloured('warning:', _YELLOW)} {shown(warning)}\n")


class Complaint(Struct, frozen=True):
    """An error: what is wrong, what to do about it, and where to read on."""

    error: str
    hints: tuple[str, ...]
    docs: str
    exit_code: int


def complain(told: Complaint, *, json: bool) -> None:
    """For people; with ``json`` for programs, too, which read standard output."""
    lines = [f"{_coloured('error:', _RED)} {shown(told.error)}", *(f"  hint: {shown(hint)}" for hint in told.hints)]
    put("stderr", "\n".join([*lines, *([f"  docs: {told.docs}"] if told.docs else [])]) + "\n")
    with suppress(StorageError):  # the exit code is that of the error that was told
        if json:
            say_json(told)
        all_said()


def complaint_of(error: ReshardError) -> Complaint:
    where = f"{error.where}: " if error.where else ""
    meant = _meant_path(error.where) if isinstance(error, InputError) else ""
    hints = tuple(hint for hint in (error.hint, meant) if hint)
    return Complaint(f"{where}{error.message}", hints, error.docs, error.exit_code)


def _meant_path(where: str) -> str:
    """What a path that leads nowhere may have meant: the nearest names in the deepest folder that is there, or else
    some of what it holds.
    """
    if where.startswith("~"):
        return f"~ is the shell's, where no quotes and no --option= stand before it: {os.path.expanduser(where)}"
    path = Path(where)
    try:
        if not where or "\n" in where or "://" in where or path.exists():
            return ""
        while not path.parent.exists():
            path = path.parent
        if path.is_symlink():
            return f"{path} is a link to {os.readlink(path)}, which is not there"
        names = sorted(found.name for found in path.parent.iterdir() if not found.name.startswith("."))
        folder = path.parent if path.parent.name else path.parent.resolve()
    except (OSError, ValueError):  # not a path, or one that we may not look at
        return ""
    near = did_you_mean(str(path.parent / name) for name in closest(path.name, names))
    some = ", ".join(names[:_SOME]) + (", …" if len(names) > _SOME else "")
    return near or f"{folder} holds {some or 'nothing'}"

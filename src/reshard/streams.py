"""Standard output and error that show what their encoding can: no work fails over how its log looks."""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import re
import stat
import sys
from typing import Literal, TextIO

_HANDLER = "reshard.shown"
_FRAIL = ("strict", "surrogateescape", "backslashreplace")
_STEERING = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069]")
_PLAIN = {
    "×": "x", "→": "->", "←": "<-", "↔": "<->", "▮": "#", "…": "...", "·": ".", "–": "-", "—": "-",
    "−": "-", "≤": "<=", "≥": ">=", "✓": "ok", "─": "-", "│": "|", "├": "+", "└": "+",
}  # fmt: skip


def make_safe(*streams: TextIO | None) -> None:
    """Let streams replace what they cannot show. One whose owner chose another way to do so keeps that."""
    codecs.register_error(_HANDLER, _replaced)
    for stream in streams:
        if not isinstance(stream, io.TextIOWrapper) or stream.errors not in _FRAIL:
            continue
        if not (is_utf8(stream) and stream.errors == "surrogateescape"):  # that one shows all there is
            stream.reconfigure(errors=_HANDLER)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """Our own notation in plain signs; all else as Python spells it, so that a name still can be told from others."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    plain = (_PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in signs)
    return "".join(plain), error.end


def shown(text: str) -> str:
    r"""Text for people, names of files and tensors in it, that steers no terminal and turns no direction of reading.

    >>> print(shown("layers.0\x1b[2J"))
    layers.0\u001b[2J
    """
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def put(name: Literal["stdout", "stderr"], text: str = "", *, flush: bool = False) -> OSError | None:
    """Write to one of the two streams; gives what keeps it from that, as a full disk.

    Who reads no more has read enough, as has a terminal that is gone. After either what is said there goes nowhere:
    else Python would try again when it ends, and make 120 of the exit code.
    """
    stream = getattr(sys, name)
    try:
        stream.write(text)
        if flush:
            stream.flush()
    except OSError as error:
        setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        return None if isinstance(error, BrokenPipeError) or _of_no_terminal(error, stream) else error
    return None


def _of_no_terminal(error: OSError, stream: TextIO) -> bool:
    """Whether a write failed as its terminal was closed, which then is no terminal any more, but a device still."""
    return error.errno == errno.EIO and stat.S_ISCHR(os.fstat(stream.fileno()).st_mode)


def is_utf8(stream: TextIO) -> bool:
    return codecs.lookup(stream.encoding or "ascii").name == "utf-8"


def json_for(stream: TextIO, text: str) -> str:
    """JSON that stays JSON in the stream's encoding: escaped where that is not UTF-8."""
    return text if is_utf8(stream) else re.sub(r"[^\x00-\x7f]", lambda found: json.dumps(found[0])[1:-1], text)

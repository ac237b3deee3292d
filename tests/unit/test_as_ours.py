"""Errors that are none of ours, as a program tells of them."""

from __future__ import annotations

import pytest

from reshard.errors import as_ours


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (PermissionError(13, "Permission denied", "strategy"), 4, "strategy: not allowed: Permission denied"),
        (IsADirectoryError(21, "Is a directory", "model"), 3, "model: a folder, expected a file"),
        (FileNotFoundError(2, "No such file or directory"), 2, "the current folder is gone"),
        (
            RuntimeError("can't start new thread"),
            5,
            "RuntimeError: can't start new thread\n  hint: allow this process more",
        ),
        (MemoryError(), 5, "MemoryError: \n  hint: allow this process more memory"),
        (OSError(27, "File too large", "m"), 4, "m: File too large\n  hint: allow this process larger files"),
        (OSError(28, "No space left on device"), 4, "no space: No space left on device"),
        (OSError(5, "Input/output error"), 4, "Input/output error"),
        (OSError(9, "Bad file descriptor"), 5, "OSError: [Errno 9]"),
        (KeyError("w"), 5, "KeyError: 'w'"),
    ],
)
def test_what_the_system_says_of_a_file_is_no_bug(error: Exception, code: int, said: str) -> None:
    told = as_ours(error)
    assert (told.exit_code, str(told).startswith(said)) == (code, True)

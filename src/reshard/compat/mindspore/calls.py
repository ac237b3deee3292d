"""What all functions share: exceptions of the reference's types, checks of arguments, warnings."""

from __future__ import annotations

import logging
import operator
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from reshard.errors import InputError, ReshardError, RunError, StorageError, UsageError
from reshard.hints import suited

_CALLED = {
    "--src-strategy": "src_strategy_file",
    "--dst-strategy": "dst_strategy_file",
    "--prefix": "ckpt_prefix",
    "--suffix": "file_suffix",
}
_LOG = logging.getLogger("reshard.compat")


@contextmanager
def reference_errors() -> Iterator[None]:
    """Our errors as the reference's types: wrong input is a ValueError, trouble with a disk an OSError."""
    try:
        yield
    except (InputError, UsageError) as error:
        raise ValueError(_said(error)) from error
    except StorageError as error:
        raise OSError(_said(error)) from error
    except (RunError, ReshardError) as error:
        raise RuntimeError(_said(error)) from error


def _said(error: ReshardError) -> str:
    return str(ReshardError(error.message, error.where, suited(error.hint, (), _CALLED)))


def warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        _LOG.warning(warning)


def check_folder(path: str | os.PathLike[str], argument: str) -> None:
    """Raises NotADirectoryError."""
    if not os.path.isdir(path):
        raise NotADirectoryError(f"{argument} {path} is not a directory.")


def as_rank(given: Any, argument: str) -> int:
    """A rank as an int; NumPy's are taken too, which the reference's own lists hold. Raises TypeError."""
    try:
        return operator.index(given)
    except TypeError:
        raise TypeError(f"The {argument} should be a int, but got {type(given).__name__}.") from None


def check_strategy_path(given: object, argument: str) -> None:
    """A strategy is a path that exists, or None. Raises TypeError, ValueError."""
    if given is None:
        return
    if not isinstance(given, (str, os.PathLike)):
        raise TypeError(f"{argument} should be a str, but got {type(given).__name__}")
    if not os.path.exists(given):
        raise ValueError(f"{argument}: no such file: {given}")


def check_type(given: object, kind: type, argument: str) -> None:
    """Raises TypeError."""
    if not isinstance(given, kind):
        raise TypeError(f"The {argument} should be a {kind.__name__}, but got {type(given).__name__}.")

"""What commands say at their end: text for people, JSON for programs; errors and warnings on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from reshard.errors import ReshardError


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def say_json(value: Any) -> None:
    import msgspec

    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        sys.stderr.write(f"warning: {warning}\n")


def say_error(error: ReshardError) -> None:
    where = f"{error.where}: " if error.where else ""
    sys.stderr.write(f"error: {where}{error.message}\n")
    if error.hint:
        sys.stderr.write(f"  hint: {error.hint}\n")

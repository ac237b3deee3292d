"""Classes that a pickle names and objects that it would build, as the data that they are."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class Global(Struct, frozen=True):
    """A class or function that the file names. It is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


NEW_OBJECT = Global("copyreg", "__newobj__")
"""Makes an object of the class that is its first argument, and calls no more of it: a Record to be written so."""


class Told(Struct, eq=False):
    """An object that is told of itself after it was made: what a pickle calls its state."""

    def told(self, state: Any) -> None:
        raise NotImplementedError


def attributes(state: Any) -> dict[str, Any]:
    """An object's attributes by name, from either form in which its state comes."""
    slots = state if isinstance(state, tuple) else (state,)
    return {k: v for part in slots if isinstance(part, dict) for k, v in part.items() if isinstance(k, str)}


class Record(Told, eq=False):
    """An object that the file would build by calling ``factory``: what it would be given, as plain values.

    Attributes:
        args: of the call.
        state: what the object would be told of itself, most often its attributes; None without.
        items: what would be put into it, in order: values, or pairs of key and value.
    """

    factory: Global
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = []

    @property
    def fields(self) -> dict[str, Any]:
        """Its attributes by name."""
        return attributes(self.state)

    def told(self, state: Any) -> None:
        self.state = state

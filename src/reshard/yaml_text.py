"""YAML of strangers: plain values alone, none nested without end, and one kind of error."""

from __future__ import annotations

from typing import Any

from reshard.errors import InputError

_MAX_DEPTH = 64
"""Of lists and maps in brackets: the time that PyYAML takes for them grows with the square of their depth."""


def read_yaml(text: str) -> Any:
    """Raises InputError.

    >>> read_yaml("a: {b: [1, 2]}")
    {'a': {'b': [1, 2]}}
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def fetch_flow_collection_start(self, token: Any) -> None:
            if self.flow_level >= _MAX_DEPTH:
                raise yaml.YAMLError(f"more than {_MAX_DEPTH} brackets within one another")
            super().fetch_flow_collection_start(token)

    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"not YAML: {error}") from None
    except (ValueError, AttributeError, TypeError, OverflowError) as error:  # values that PyYAML does not expect
        raise InputError(f"not YAML: a value cannot be read: {error}") from None

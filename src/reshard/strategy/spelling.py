"""Keys of a YAML that are nearly one that is read: slips of the pen that would pass for the default."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from reshard.closest import closest

_LIKENESS = 0.85
_REAL = ("layernorm_compute_dtype", "max_position_embedding", "context_parallel_size", "model_config")
"""Keys that MindFormers' own YAMLs have beside those that they resemble."""


def misspelt(given: object, known: Collection[str], within: str = "") -> list[str]:
    """What each such key of a map may have meant; none where the one that it resembles is given too.

    >>> misspelt({"model_paralel": 4}, ["data_parallel", "model_parallel"], "parallel_config.")
    ["parallel_config.model_paralel: no such key; did you mean 'model_parallel'?"]
    """
    said: list[str] = []
    if not isinstance(given, Mapping):
        return said
    for key in given:
        near = [] if key in known or key in _REAL else closest(str(key), known, most=1, likeness=_LIKENESS)
        if near and given.get(near[0]) is None:
            said.append(f"{within}{key}: no such key; did you mean {near[0]!r}?")
    return said

"""Reports read back: the values inside a page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any


def values_of(page: str) -> Any:
    """The JSON of a page, found as a browser finds it: up to the first end of the element."""
    found = re.search(r'<script type="application/json" id="values">(.*?)</script', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def report_of(path: Path) -> Any:
    return values_of(path.read_text("utf-8"))


def expand(spans: str) -> list[int]:
    """
    >>> expand("0-2,5")
    [0, 1, 2, 5]
    """
    ends = [span.split("-") for span in spans.split(",") if span]
    return [n for first, *last in ends for n in range(int(first), int((last or [first])[0]) + 1)]


def names_of(report: Any) -> dict[str, Any]:
    """Every tensor's full name and its kind."""
    return {
        name: kind for kind in report["kinds"] for names in kind["names"] for name in unfolded(names)
    }  # fmt: skip


def unfolded(names: Any) -> list[str]:
    if not names["numbers"]:
        return [names["pattern"]]
    found = []
    for alternative in names["numbers"].split("|"):
        ways = [names["pattern"]]
        for spans in alternative.split("."):
            ways = [way.replace("#", str(n), 1) for way in ways for n in expand(spans)]
        found += ways
    return found

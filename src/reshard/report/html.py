"""The values of a report → one page that needs nothing else."""

from __future__ import annotations

from html import escape
from importlib.resources import files

import msgspec

from reshard.report.values import Report

SCRIPTS = ("words.js", "figures.js", "state.js", "names.js", "tree.js", "tensor.js", "sections.js", "page.js")


def page(report: Report) -> str:
    """The page. Whatever names say, they cannot end the element that holds the values: ``<`` is escaped there."""
    values = msgspec.json.encode(report).decode().replace("&", "\\u0026").replace("<", "\\u003c")
    named = [side.path for side in (report.source, *(c.target for c in report.conversions)) if side.path]
    fillings = {
        "TITLE": escape(named[-1]),
        "STYLE": _part("page.css"),
        "VALUES": values,
        "SCRIPT": "\n".join(map(_part, SCRIPTS)),
    }
    head, *rest = _part("page.html").split("{{")
    return head + "".join(fillings[name] + after for name, after in (r.split("}}", 1) for r in rest))


def _part(name: str) -> str:
    return files("reshard.report").joinpath(name).read_text(encoding="utf-8")

"""Chinese text takes Chinese punctuation: wide commas, colons and brackets. Rewrites the files that are named."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_WIDE = {",": "\uff0c", ":": "\uff1a", ";": "\uff1b", "?": "\uff1f", "!": "\uff01"}
_HAN = "\u3000-\u303f\u4e00-\u9fff\uff00-\uffef\u201c\u201d"
# what is not prose: blocks and spans of code, targets of links, separators of tables
_CODE = re.compile(r"^ *```.*?^ *```$|`[^`\n]*`|(?<=\])\([^)\s]*\)|<[^>\n]*>", re.DOTALL | re.MULTILINE)
_MARK = "\ue000"
_END = re.compile(r"(?<=[^\s\d])(?:[,:;?](?!/)|!(?!\[))|(?<=\d)[,:;?!](?![\d/])")  # not that of 1,024 or of https://
_BRACKETS = re.compile(r"\(((?:[^()\n]|\n(?!\n))*)\)")


def widened(text: str) -> str:
    """
    >>> widened("\u4f60\u597d,`a,b`:\u4e16\u754c(x, \u5b57)")
    '\u4f60\u597d\uff0c`a,b`\uff1a\u4e16\u754c\uff08x\uff0c\u5b57\uff09'
    """
    kept: list[str] = []

    def keep(found: re.Match[str]) -> str:
        kept.append(found[0])
        return _MARK

    prose, before = _CODE.sub(keep, text), ""
    while prose != before:  # a wide colon makes the brackets before it wide, and they those around them
        before = prose
        prose = _BRACKETS.sub(lambda f: f"\uff08{f[1]}\uff09" if _beside(f) else f[0], prose)
        lines = [_widened(line) if re.search(rf"[{_HAN}]", line) else line for line in prose.split("\n")]
        prose = "\n".join(lines)
    parts = iter(kept)
    return re.sub(_MARK, lambda found: next(parts), prose)


def _widened(line: str) -> str:
    """A line that has Chinese characters."""
    line = _END.sub(lambda found: _WIDE[found[0]], line)
    return re.sub(r"(?<=[\uff0c\uff1a\uff1b\uff1f\uff01\uff09]) (?=[^\s|])", "", line)


def _beside(found: re.Match[str]) -> bool:
    """Whether brackets stand in Chinese text: a Chinese character in them or next to them."""
    text = found.string
    around = found[1] + text[max(found.start() - 1, 0) : found.start()] + text[found.end() : found.end() + 1]
    return re.search(rf"[{_HAN}]", around) is not None


def halved(text: str) -> list[str]:
    """Lines with punctuation of the other kind, as they should be."""
    wide = widened(text)
    return [b for a, b in zip(text.split("\n"), wide.split("\n"), strict=True) if a != b]


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(widened(path.read_text("utf-8")), "utf-8")

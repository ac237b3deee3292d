"""The documentation as text: pages, their blocks of commands and scripts, their links and headings."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_SHOWN_BY_PYTHON = re.compile(r"^# > ?(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Step:
    """A shell command or a Python script, as a page has it."""

    kind: str  # console or python
    text: str


@dataclass(frozen=True, slots=True)
class Shown:
    """A step and the lines that the page shows below it; none where the page leaves the output out."""

    step: Step
    lines: tuple[str, ...]


def pages() -> tuple[str, ...]:
    """README*.md and docs/**/*.md that git knows; in a tree without git, all."""
    words = ["git", "ls-files", "--", "README*.md", "docs/*.md"]
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        known = done.stdout.split() if done.returncode == 0 else []
    except FileNotFoundError:
        known = []
    found = known or [p.relative_to(ROOT).as_posix() for p in (*ROOT.glob("README*.md"), *ROOT.glob("docs/**/*.md"))]
    return tuple(sorted(page for page in found if (ROOT / page).exists()))


def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def shown_steps(text: str) -> tuple[Shown, ...]:
    """What a page runs, in order, each with what it shows.

    >>> shown_steps("```console\\n$ ls a\\nb\\n$ cd a\\n```\\n")[0]
    Shown(step=Step(kind='console', text='ls a'), lines=('b',))
    """
    found: list[Shown] = []
    for indent, kind, body in _FENCE.findall(text):
        lines = [line.removeprefix(indent).rstrip() for line in body.splitlines()]
        if kind == "python":
            script = "\n".join(lines)
            found.append(Shown(Step(kind, script), tuple(_SHOWN_BY_PYTHON.findall(script))))
        elif kind == "console":
            found += _commands(lines)
    return tuple(found)


def _commands(lines: Iterable[str]) -> Iterator[Shown]:
    """Every ``$ command`` of a block; a line that ends in a backslash goes on in the next."""
    command, output, goes_on = "", [], False
    for line in lines:
        if goes_on:
            command += "\n" + line.removeprefix("> ")
        elif line.startswith("$ "):
            if command:
                yield _shown(command, output)
            command, output = line.removeprefix("$ "), []
        else:
            assert command, f"a console block begins with output: {line}"
            output.append(line)
        goes_on = not output and command.endswith("\\")
    if command:
        yield _shown(command, output)


def _shown(command: str, output: list[str]) -> Shown:
    while output and not output[-1]:
        output = output[:-1]
    return Shown(Step("console", command), tuple(output))


def links(page: str) -> tuple[str, ...]:
    """Where a page points to inside the repository."""
    plain = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text_of(page)))
    return tuple(target for target in _LINK.findall(plain) if not re.match(r"[a-z]+:", target))


def anchors(text: str) -> frozenset[str]:
    """The anchors of a page's headings, as GitHub makes them.

    >>> sorted(anchors("# A `b`, c_d\\n## 策略:一"))
    ['a-b-c_d', '策略一']
    """
    headings = re.findall(r"^#+ +(.*)$", _FENCE.sub("", text), re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)


def sections(text: str) -> dict[str, str]:
    """The text below each heading of the second level."""
    parts = re.split(r"^## +(.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))

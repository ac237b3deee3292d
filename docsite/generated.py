"""Pages that are made from the program: its help texts, and its public functions and classes."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator
from typing import Any

import typer.main
from typer.testing import CliRunner

import reshard
from reshard.cli.commands import app_for, every_command

_SECTIONS = ("Args", "Attributes", "Raises", "Returns")
_HELP = {
    "": "# Help texts\n\nWhat `--help` says of every command. [Commands and options](cli.md) tells more of each.\n",
    "zh/": "# 命令帮助原文\n\n各命令 `--help` 的输出(英文)。中文说明见[命令与选项](cli.md)。\n",
}
_API = {
    "": "# Functions and classes\n\nAll public names, with their docstrings. [Python](python.md) is the overview.\n",
    "zh/": "# 函数与类\n\n全部公开名字及其文档字符串(英文)。概览见 [Python 接口](python.md)。\n",
}


def pages() -> dict[str, str]:
    """Path below docs/ → Markdown."""
    texts = "\n".join(_helps())
    names = "\n".join(_name(name) for name in sorted(reshard.__all__, key=str.lower) if not name.startswith("_"))
    return {
        **{f"{language}reference/help.md": f"{head}\n{texts}" for language, head in _HELP.items()},
        **{f"{language}reference/api.md": f"{head}\n{names}" for language, head in _API.items()},
    }


def _helps() -> Iterator[str]:
    runner = CliRunner()
    for words in ((), *dict(every_command(typer.main.get_command(app_for())))):
        said = runner.invoke(app_for(), [*words, "--help"], prog_name="reshard", env={"COLUMNS": "100"})
        yield f"## reshard {' '.join(words)}\n\n```text\n{said.output.strip()}\n```\n"


def _name(name: str) -> str:
    found = getattr(reshard, name)
    text = f"## reshard.{name}\n\n{_block(_called(name, found))}{_prose(found)}"
    for member, value in vars(found).items() if isinstance(found, type) else ():
        told = isinstance(value, types.FunctionType | property) and value.__doc__ and not member.startswith("_")
        if told:
            text += f"### {name}.{member}\n\n{_block(_called(member, value))}{_prose(value)}"
    return text


def _called(name: str, found: Any) -> str:
    """The signature; a property and a class that is not called have none."""
    if isinstance(found, property) or (isinstance(found, type) and issubclass(found, Exception)):
        return name
    signature = inspect.signature(found)
    parameters = [p for p in signature.parameters.values() if p.name != "self"]
    returned = inspect.Signature.empty if isinstance(found, type) else signature.return_annotation
    text = str(signature.replace(parameters=parameters, return_annotation=returned)).replace("<factory>", "…")
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)  # annotations are strings
    if len(name + text) <= 100:
        return name + text
    return name + re.sub(r", (?=\*|\w+(?:: |=))", ",\n    ", text).replace("(", "(\n    ", 1)


def _block(code: str) -> str:
    return f"```python\n{code}\n```\n\n"


def _prose(found: Any) -> str:
    """A docstring as Markdown: sections as lists, examples as code."""
    text = inspect.getdoc(found) or ""
    text = text.replace("``", "`")
    out: list[str] = []
    section = example = False
    for line in text.splitlines():
        if line.rstrip(":") in _SECTIONS and line.endswith(":"):
            out += ["", f"**{line.rstrip(':')}**", ""]
            section = True
        elif line.startswith(">>>") and not example:
            out += ["", "```pycon", line]
            example = True
        elif example and not line:
            out += ["```", ""]
            example = False
        elif section and re.match(r"    \S", line):
            name, colon, rest = line.strip().partition(": ")
            out.append(f"- `{name}`: {rest}" if colon else f"- {line.strip()}")
        else:
            section = section and (not line or line.startswith("    "))
            out.append(f"  {line.strip()}" if section and line else line)
    return "\n".join([*out, *(["```"] if example else [])]) + "\n\n"

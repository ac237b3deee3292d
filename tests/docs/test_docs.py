"""Every command and script of README and docs runs and gives what the page shows; every option is told; links lead on.

Pages show the demo's real model; here a small one takes its place (see ``folders``). So numbers that go by the bytes
of the model, by time or by the machine are masked on both sides; all others, and all words, must be as shown.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from folders import MAKERS, SMALL_SIZES, SMALL_WORDS, make_demo
from pages import ROOT, Shown, Step, anchors, links, pages, sections, shown_steps, text_of
from starts import stand_ins

import reshard
from making import write_file
from reshard import errors
from reshard.cli.commands import app_for, every_command
from reshard.cli.text import shown_nbytes
from reshard.ops.convert import bill_of
from reshard.ops.options import Options

NOT_RUN = {
    "make tutorial": "fetches a real model",
    "make bench": "takes minutes and gigabytes",
    "pip install .": "changes the environment",
    ". .venv/bin/activate": "the test has its environment already",
    "cd demo/out": "the test starts in such a folder",
}
PAGES = pages()
STEPS = {page: shown_steps(text_of(page)) for page in PAGES}
RUN = {page: tuple(s for s in steps if s.step.text not in NOT_RUN) for page, steps in STEPS.items()}
END = "\x01"
ERRORS = {name.lower(): found for name, found in vars(errors).items() if name.endswith("Error")}

# What differs between the demo's model and machine and those of the test, most special first.
MASKS = tuple(
    (re.compile(pattern), mask)
    for pattern, mask in (
        (r"\b[0-9a-f]{4}(-[0-9a-f]{4}){7}\b", "FINGERPRINT"),
        (r"\b\d+(\.\d+)? ?[KMGTP]?i?B\b", "SIZE"),
        (r"\b\d+(\.\d+)? bytes\b", "SIZE"),
        (r"\bin \d+(\.\d+)? s\b", "in TIME"),
        (r"\b[\d,]+ elements\b", "N elements"),
        (r"\b\d+ workers?\b", "N workers"),
        (r"\b\d+ read groups?\b", "N read groups"),
        (r"\b[1-9]\d{4,}\b", "N"),  # 00001 is the number of a part, and stays
        (r"(?<=\S) {2,}", "  "),  # columns
    )
)


def masked(line: str) -> str:
    """
    >>> masked("86.6 MiB read, 176.1 MiB written in 0.6 s (287.9 MiB/s)")
    'SIZE read, SIZE written in TIME (SIZE/s)'
    >>> masked("model-00001-of-00004.safetensors   1 of 104")
    'model-00001-of-00004.safetensors  1 of 104'
    """
    for pattern, mask in MASKS:
        line = pattern.sub(mask, line)
    return line.rstrip()


def for_small_model(line: str) -> str:
    """A line that a page shows, with the sizes of the small model.

    >>> for_small_model("float32  30522×384")
    'float32  3810×48'
    """
    return re.sub(r"\b\d+\b(?!\.\d)", lambda found: str(SMALL_SIZES.get(int(found[0]), found[0])), line)


def agrees(shown: tuple[str, ...], got: list[str]) -> bool:
    """Whether output is as shown; a line ``…`` stands for any lines, ``…`` in a line for any text."""
    parts = [
        "(?:.*\n)*?" if line.strip() == "…" else re.escape(masked(for_small_model(line))).replace("…", ".*") + "\n"
        for line in shown
    ]
    return re.fullmatch("".join(parts), "".join(masked(line) + "\n" for line in got)) is not None


def expected_code(shown: Shown) -> int:
    """That of the error whose page is named; 1 where a comparison shows a difference, 3 where an input is refused."""
    named = re.search(r"^  docs: .*errors\.md#(\w+)$", "\n".join(shown.lines), re.MULTILINE)
    if named:
        return ERRORS[named[1]].exit_code
    if any(line.startswith("problem: ") for line in shown.lines):
        return 1
    if re.match(r"reshard (\w+ )?(verify|diff)\b", shown.step.text):
        return int(any(re.search(r"\b[1-9]\d* differ$", line) for line in shown.lines))
    return 3 if any(line.startswith("error: ") for line in shown.lines) else 0


def run(folder: Path, steps: tuple[Step, ...], scripts: Path, programs: Path) -> list[tuple[int, list[str]]]:
    """The exit code and output of each step, run one after the other by one shell that finds ``programs`` first."""
    scripts.mkdir()
    whole = ""
    for number, step in enumerate(steps):
        if step.kind == "python":
            (scripts / f"{number}.py").write_text(step.text, "utf-8")
        command = step.text if step.kind == "console" else f"python {shlex.quote(str(scripts / f'{number}.py'))}"
        for words, small in SMALL_WORDS.items():
            command = command.replace(words, small)
        whole += f"{command}\nprintf '\\n{END}%d\\n' $?\n"
    (scripts / "page.sh").write_text(whole, "utf-8")
    path = os.pathsep.join((str(programs), str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        ["bash", str(scripts / "page.sh")],
        cwd=folder, env={**os.environ, "PATH": path, "LC_ALL": "C.UTF-8"}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", check=False,
    )  # fmt: skip
    parts = re.split(rf"\n{END}(\d+)\n", done.stdout)
    return [(int(code), out.rstrip("\n").splitlines()) for out, code in zip(parts[::2], parts[1::2], strict=False)]


Results = list[tuple[int, list[str]]]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with stand_ins(tmp_path_factory.mktemp("programs")) as folder:
        yield folder


@pytest.fixture(scope="module")
def results(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Results]:
    """Runs a page in a fresh folder. Pages with the same steps, as in two languages, run once."""

    @cache
    def made(maker: Callable[[Path], None]) -> Path:
        folder = tmp_path_factory.mktemp(maker.__name__)
        maker(folder)
        return folder

    @cache
    def ran(maker: Callable[[Path], None], steps: tuple[Step, ...]) -> Results:
        work = tmp_path_factory.mktemp("page")
        shutil.copytree(made(maker), work / "out")
        found = run(work / "out", steps, work / "scripts", programs)
        shutil.rmtree(work)
        return found

    return lambda page: ran(MAKERS.get(page, make_demo), tuple(shown.step for shown in RUN[page]))


@pytest.mark.parametrize("page", [page for page in PAGES if RUN[page]])
def test_what_a_page_shows_is_what_happens(page: str, results: Callable[[str], Results]) -> None:
    got = results(page)
    wrong = [
        "\n".join([f"$ {shown.step.text}", f"-- shown, exit code {expected_code(shown)}:", *shown.lines,
                   f"-- got, exit code {code}:", *lines])
        for shown, (code, lines) in zip(RUN[page], got, strict=False)
        if code != expected_code(shown) or (shown.lines and not agrees(shown.lines, lines))
    ]  # fmt: skip
    assert not wrong, "\n\n".join([page, *wrong])
    assert len(got) == len(RUN[page]), f"{page}: the shell stopped after {len(got)} steps"


def test_what_is_listed_is_on_some_page() -> None:
    """Neither a reason for a command that is gone, nor a small word or folder for one."""
    texts = [shown.step.text for steps in STEPS.values() for shown in steps]
    assert set(NOT_RUN) <= set(texts)
    assert [words for words in SMALL_WORDS if not any(words in text for text in texts)] == []
    assert set(MAKERS) <= set(PAGES)


def chinese(page: str) -> str:
    """The Chinese page of an English one."""
    if page == "README.md":
        return "README.zh.md"
    return page.replace("docs/", "docs/zh/", 1).replace("/explanation/", "/")


@pytest.mark.parametrize("page", [page for page in PAGES if chinese(page) in PAGES and "/zh/" not in page])
def test_both_languages_show_the_same(page: str) -> None:
    assert STEPS[chinese(page)] == STEPS[page]


# --- the reference


PROGRAM = typer.main.get_command(app_for())
COMMANDS = {" ".join(words): command for words, command in every_command(PROGRAM)}
REFERENCES = {page: sections(text_of(page)) for page in ("docs/reference/cli.md", "docs/zh/reference/cli.md")}


def options(command: Any) -> set[str]:
    """
    >>> sorted(options(PROGRAM))
    ['--debug', '--install-completion', '--show-completion', '--version']
    """
    return {word for p in command.params for word in (*p.opts, *p.secondary_opts) if word.startswith("--")}


def told_of(name: str, reference: dict[str, str]) -> str:
    """The reference's section of a command, or of its group where that names the command; else nothing."""
    group, _, word = name.rpartition(" ")
    return reference.get(name) or (reference.get(group, "") if f"{word}`" in reference.get(group, "") else "")


@pytest.mark.parametrize("page", REFERENCES)
@pytest.mark.parametrize("name", COMMANDS)
def test_the_reference_has_every_command_and_option(name: str, page: str) -> None:
    """An option is told in a table or usage line of the command's section, or of ``convert``'s: others point there."""
    own = told_of(name, REFERENCES[page])
    assert own, f"{page} has no section '## {name}'"
    told = re.findall(r"^\|[^|]*|`reshard [^`]*`", own + REFERENCES[page]["convert"], re.MULTILINE)
    assert options(COMMANDS[name]) - set(re.findall(r"--[a-z0-9_-]+", " ".join(told))) == set()


@pytest.mark.parametrize("page", REFERENCES)
def test_the_reference_has_the_options_of_the_program(page: str) -> None:
    assert [word for word in options(PROGRAM) if f"`{word}`" not in text_of(page)] == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_on_pages_have_only_options_that_exist(page: str) -> None:
    """Those of ``reshard`` in blocks are seen when they run; this is for the text between."""
    known = {"--help", *options(PROGRAM), *(word for command in COMMANDS.values() for word in options(command))}
    quoted = re.findall(r"`(reshard [^`\n]*|--[^`\n]*)`", text_of(page))
    assert {word for text in quoted for word in re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]+", text)} - known == set()


# --- links


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    dead = []
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text("utf-8"))):
            dead.append(link)
    assert dead == []


def test_memory_of_a_plan_is_as_shown(tmp_path: Path) -> None:
    """It goes by workers and blocks, not by the model, and sizes are masked above."""
    model, means = write_file(tmp_path / "m.safetensors", {"w": np.zeros(4, np.float32)}), Options(workers=2)
    wanted = shown_nbytes(bill_of(reshard.plan(model, None, means), tmp_path, means).memory_nbytes)
    shown = {page: set(re.findall(r"^memory +(.*) at most", text_of(page), re.MULTILINE)) for page in PAGES}
    assert {page: found for page, found in shown.items() if found - {wanted}} == {}
    assert any(shown.values())

"""Words that nothing is called: the error says what may have been meant, and where to read on."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from forks import forks
from making import array, write_file, write_strategy
from reshard.closest import closest, closest_pattern, did_you_mean
from reshard.layout.tensor import Sharding

FULL = {f"model.layers.{i}.attention.{w}.weight": array((4, 4), seed=i) for i in range(3) for w in ("query", "value")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_file(folder / "llama.safetensors", FULL)
    write_strategy(folder / "strategy", [dict.fromkeys(FULL, Sharding((2,), ((0,), ())))])
    return folder


@pytest.fixture
def run(made: Path) -> Callable[[str], tuple[int, str]]:
    def said(words: str) -> tuple[int, str]:
        ended = forks().run(*words.split(), cwd=made)
        shutil.rmtree(made / "out", ignore_errors=True)
        return ended.code, ended.err

    return said


REFUSED = [
    ("convrt a b", 2, "error: no such command 'convrt'", "'convert'", "reference/cli.md"),
    ("strategy mak", 2, "error: no such command 'mak'", "'make'", "reference/cli.md"),
    ("help", 2, "error: no such command 'help'", "'--help'", "reference/cli.md"),
    ("version", 2, "error: no such command 'version'", "'--version'", "reference/cli.md"),
    ("transform_chekpoint", 2, "error: no such command", "'compat transform_checkpoint'", "reference/cli.md"),
    ("convert a b --src-strateg x", 2, "error: no such option '--src-strateg'", "'--src-strategy'", "cli.md#convert"),
    ("strategy make --ot x", 2, "error: no such option '--ot'", "'--out'", "cli.md#strategy-make"),
    ("convert llamma.safetensors out", 3, "no such file or folder", "'llama.safetensors'", "errors.md#checkpointerror"),
    ("split llama.safetensors out --dst-strategy strategi", 3, "no such file", "'strategy'", "errors.md#strategyerror"),
    ("inspect strateg/ckpt_strategy_rank_0.ckpt", 3, "no such file", "'strategy'", "errors.md#checkpointerror"),
    ("inspect llama.safetensors --tensor querry", 2, "matches none of 6 names", "'query'", "errors.md#usageerror"),
    ("strategy show strategy --tensor laiers.0", 2, "matches none of 6 names", "'layers.0'", "errors.md#usageerror"),
    ("convert llama.safetensors out --include querry", 3, "no tensor is left", "'query'", "errors.md#planerror"),
    ("diff llama.safetensors llama.safetensors --include querry", 2, "no tensor is left", "'query'", "#usageerror"),
    ("fingerprint llama.safetensors --include querry", 2, "no tensor is left", "'query'", "errors.md#usageerror"),
    (
        "explain model.layers.0.attention.querry.weight llama.safetensors",
        2,
        "no tensor is called",
        "query",
        "errors.md",
    ),
]


@pytest.mark.parametrize(("words", "code", "message", "meant", "docs"), REFUSED, ids=[r[0] for r in REFUSED])
def test_an_error_says_what_may_have_been_meant(
    run: Callable[[str], tuple[int, str]], words: str, code: int, message: str, meant: str, docs: str
) -> None:
    got, error = run(words)
    assert (got, error.count("error: ")) == (code, 1), error
    assert message in error
    assert re.search(rf"did you mean .*{re.escape(meant)}", error), error
    assert docs in error.splitlines()[-1]


@pytest.mark.parametrize("words", ["merge llama.safetensors ——overwrite", "doctor –json", "inspect －－json"])
def test_a_dash_that_is_no_hyphen_is_no_path(run: Callable[[str], tuple[int, str]], words: str) -> None:
    code, said = run(words)
    assert code == 2
    assert "begins with a dash that is no hyphen" in said
    assert f"hint: --{words.split()[-1].strip('—–－')}; a path: ./" in said


@pytest.mark.parametrize("name", ["full.npz", "full.gguf"])
def test_a_target_named_as_a_file_of_another_kind_is_refused(run: Callable[[str], tuple[int, str]], name: str) -> None:
    code, said = run(f"convert llama.safetensors {name}")
    assert (code, "hint: end it in .bin or .ckpt or .pt or .pth or .safetensors" in said) == (2, True)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("convert a b --adapter c", "hint: it is an option of reshard lora merge\n"),
        ("explain llama.safetensors w", "hint: the tensor goes first: reshard explain w llama.safetensors\n"),
        ("inspect a --dst-strategy c", "did you mean '--strategy'?\n  hint: it is an option of reshard convert\n"),
        (
            "inspect ~/llama",
            f"hint: ~ is the shell's, where no quotes and no --option= stand before it: {Path.home()}/",
        ),
    ],
)
def test_what_is_right_elsewhere_is_told_so(run: Callable[[str], tuple[int, str]], words: str, hint: str) -> None:
    _, said = run(words)
    assert hint in said, said


def test_where_nothing_is_near_it_says_what_is_there(run: Callable[[str], tuple[int, str]]) -> None:
    code, said = run("inspect zzzz")
    assert (code, "holds llama.safetensors, strategy\n" in said) == (3, True), said


MISSED = [
    ("convert llama.safetensors out --exclude querry", "--exclude: 'querry' matches none of 6 names"),
    ("convert llama.safetensors out --rename modell=>m", "--rename: 'modell' matches none of 6 names"),
    ("diff llama.safetensors llama.safetensors --exclude querry", "--exclude: 'querry' matches none of 6 names"),
    ("fingerprint llama.safetensors --exclude querry", "--exclude: 'querry' matches none of 6 names"),
]


@pytest.mark.parametrize(("words", "warning"), MISSED, ids=[m[0] for m in MISSED])
def test_a_pattern_that_matches_nothing_is_told(
    run: Callable[[str], tuple[int, str]], words: str, warning: str
) -> None:
    code, said = run(words)
    assert code == 0, said
    assert f"warning: {warning}; did you mean" in said


def test_a_pattern_that_matches_is_not_told(run: Callable[[str], tuple[int, str]]) -> None:
    assert run("convert llama.safetensors out --exclude query --rename model=>m") == (0, "")


USAGE = ["convert", "convert a", "convert a b c", "convert a b --ranks", "verify", "inspect a --on-rank x", "--nothing"]


@pytest.mark.parametrize("words", USAGE)
def test_wrong_words_are_told_as_all_errors_are(run: Callable[[str], tuple[int, str]], words: str) -> None:
    code, said = run(words)
    assert code == 2
    assert re.match(r"error: [a-z].*[^.]\n(  hint: .*\n)+  docs: docs/reference/cli\.md(#[a-z-]+)?\n", said), said


def test_nothing_near_is_nothing_said() -> None:
    assert closest("qqqqqq", ["convert", "inspect"]) == []
    assert did_you_mean([]) == ""
    assert closest_pattern("zzzzz", ["layers.0.weight"]) == ""
    assert closest_pattern("layers", ["layers.0.weight"]) == ""

"""A hint names options that the tool at hand has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from forks import forks
from making import array, write_file, write_strategy
from reshard.layout.tensor import Sharding

WEIGHTS = {"w": array((4, 4)), "v": array((4, 4), seed=1)}
BY_SHELL = {"RESHARD_CALLED": "transform_checkpoint.sh"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two ranks, their strategy below another folder, and a strategy that knows a tensor more."""
    for rank in (0, 1):
        rows = {n: a[2 * rank : 2 * rank + 2] for n, a in WEIGHTS.items()}
        write_file(tmp_path / f"ckpt/rank_{rank}/a_{rank}.ckpt", rows)
        write_file(tmp_path / f"safe/rank_{rank}/a_{rank}.safetensors", rows)
    write_strategy(tmp_path / "out/strategy", [dict.fromkeys(WEIGHTS, Sharding((2,), ((0,), ())))])
    (tmp_path / "begun/.reshard").mkdir(parents=True)
    (tmp_path / "begun/.reshard/begun.json").touch()
    (tmp_path / "begun/config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    write_strategy(tmp_path / "more", [dict.fromkeys((*WEIGHTS, "u"), Sharding((2,), ((0,), ())))])
    return tmp_path


@pytest.mark.parametrize(
    ("words", "env", "hint"),
    [
        ("convert ckpt x", {}, "that the job saved: --src-strategy"),
        ("split ckpt x --dst-strategy more", {}, "reshard convert has the option: give its strategy"),
        ("inspect ckpt --tensor w", {}, ""),
        ("inspect begun", {}, "give the same command again, as: reshard convert SRC DST --resume"),
        ("convert safe x --src-strategy out/strategy --dst-strategy run.yaml", {}, "strategy make --config run.yaml"),
        ("strategy show begun/config.json", {}, "is this a strategy file?"),
        ("fingerprint ckpt", {}, "that the job saved: --strategy"),
        ("diff ckpt ckpt", {}, "that the job saved: --a-strategy or --b-strategy"),
        ("verify ckpt safe --src-strategy out/strategy", {}, "that the job saved: --dst-strategy\n"),
        ("convert ckpt x --src-strategy out/strategy --dst-strategy more", {}, "check both strategies; --missing drop"),
        ("unify safe x --src-strategy out/strategy --suffix 9_9", {}, "check --suffix"),
        ("compat unified_safetensors --mindspore_ckpt_dir safe --src_strategy_dirs out/strategy --output_dir x "
         "--file_suffix 9_9", {}, "check --file_suffix"),
        ("compat convert_reversed --mindspore_ckpt_dir safe --src_strategy_dirs out/strategy --tmp_dir x "
         "--file_suffix 9_9", {}, "check --file_suffix"),
        ("compat transform_checkpoint --src_checkpoint ckpt --src_strategy out/strategy --dst_strategy more "
         "--dst_checkpoint_dir x --world_size 2", {}, "check both strategies; --missing drop"),
        ("compat transform_checkpoint --src_checkpoint ckpt --src_strategy out/strategy --dst_strategy more "
         "--dst_checkpoint_dir x --world_size 2", BY_SHELL, "hint: check both strategies\n"),
        ("merge ckpt x.ckpt --src-strategy out", {}, "there are some in out/strategy: give one of these"),
        ("auto --config run.yaml --rank 0 --world-size 2 --dry-run --dst-strategy more", {}, "check both strategies\n"),
        ("auto --config run.yaml --rank 0 --world-size 2 --dry-run --src_strategy out", {}, "some in out/strategy"),
    ],
)  # fmt: skip
def test_hint(folder: Path, words: str, env: Mapping[str, str], hint: str) -> None:
    (folder / "run.yaml").write_text("auto_trans_ckpt: True\nload_checkpoint: ckpt\nsrc_strategy: out/strategy\n")
    ended = forks().run(*words.split(), cwd=folder, env=env)
    assert hint in ended.said
    assert ended.code == (3 if hint else 0), ended.said

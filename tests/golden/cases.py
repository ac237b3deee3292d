"""The golden cases: what each asks of reshard's command line, and whether the answer is right."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from golden.readers import Value, read_items, read_weights, tensor_names, weight_files

HERE = Path(__file__).parent
NAMES = tuple(sorted(p.name.removesuffix(".tar.xz") for p in (HERE / "cases").iterdir()))

DONE, INPUT_IS_WRONG = 0, 3

REFUSED = {
    "err_bad_strategy_file": "bad.ckpt: the file describes no tensor",
    "err_empty_src": "no weight files",
    "lora_err_b_missing": "its factor B is missing",
    "lora_err_base_missing": "its weight is missing",
    "merge_strategy_empty_dir": "no strategy file",
    "merge_strategy_mixed_ext": "both .ckpt and .json",
    "merge_strategy_stage1_missing": "1 missing",
    "unified_rr_err_missing_rank5": "no source file holds it",
    "unified_rr_layout_tuple": "net.w1: 75% missing",
    "unified_suffix_2_10": "no file whose name ends in '2_10'",
}
"""Cases that must be refused with exit code 3 and nothing written, and words that the message must have.

MindSpore merged the strategies of ``merge_strategy_empty_dir`` and ``_stage1_missing`` in silence, and of
``unified_rr_layout_tuple`` it dropped slices that nobody else holds and merged the rest.
"""

UNDECIDED = frozenset({
    "err_json_multimap_full_to_layout_tuple_json",  # MindSpore fails; test_conventions knows the right answer
    "err_string_append",  # MindSpore fails; test_formats has the answer
    "formats_odd_values",  # not a conversion: test_formats
    "unified_choice", "unified_err_ckpt_src", "unified_split_dst_1of2", "unified_split_dst_2of2",
})  # fmt: skip
"""Cases whose recorded answer belongs to the reference's own interface: done or refused, but never an inner error."""

EXTRA_ARGUMENTS = {"quirk_several_ckpts_dp2mp2_to_full": ("--select", "name")}

UNKNOWABLE = {name: frozenset({"extra.int64_table"}) for name in NAMES if name.startswith("quirk_vary_extras")}
"""Tensors in no strategy, more than one element, different on every rank: how they were cut nobody can know."""


BY_UNIFY = tuple(n for n in NAMES if n.startswith("unified_"))
BY_LORA_TOOL = tuple(n for n in NAMES if n.startswith("lora_") and not n.endswith("_to_full"))


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    folder: Path
    about: Mapping[str, Any]

    @property
    def api(self) -> str:
        api: str = self.about["api"]
        return api

    def strategy(self, side: str) -> Path | None:
        """The strategy of ``src`` or ``dst``, None for one full checkpoint."""
        folder = self.folder / f"{side}_strategy"
        return folder if folder.is_dir() and any(folder.iterdir()) else None

    @property
    def expected(self) -> Path:
        """MindSpore's answer; where it fails and must not, the answer of an independent slicer."""
        right = self.folder / "expected_right"
        return right if right.is_dir() else self.folder / "expected"


def about(name: str) -> dict[str, Any]:
    """What a case tells of itself."""
    with tarfile.open(HERE / "cases" / f"{name}.tar.xz") as archive:
        told = archive.extractfile("case.json")
        assert told is not None
        found: dict[str, Any] = json.load(told)
        return found


def unpack(name: str, folder: Path) -> Case:
    """Unpack a case into ``folder``. Empty folders, which no archive holds, are there too."""
    with tarfile.open(HERE / "cases" / f"{name}.tar.xz") as archive:
        for member in archive.getmembers():
            place = folder / member.name
            content = archive.extractfile(member)
            assert content is not None
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content.read())
    about = json.loads((folder / "case.json").read_text())
    (folder / ("src_strategy" if "merge_pipeline" in about["api"] else "src")).mkdir(exist_ok=True)
    return Case(name, folder, about)


def run_reshard(arguments: list[str]) -> int:
    """The program in this process; gives its exit code."""
    from reshard.cli.main import main

    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    code = stopped.value.code
    return code if isinstance(code, int) else int(code is not None)


def arguments(case: Case, out: Path) -> list[str]:
    """The command that asks reshard what the case asked MindSpore or MindFormers."""
    src = case.folder / "src"
    files = weight_files(src)
    given = str(files[0] if len(files) == 1 else src)
    strategies = [
        word
        for side in ("src", "dst")
        if (path := case.strategy(side)) is not None
        for word in (f"--{side}-strategy", str(path))
    ]
    if "merge_pipeline" in case.api:
        folder = case.folder / "src_strategy"
        suffix = ".json" if any(p.suffix == ".json" for p in folder.iterdir()) else ".ckpt"
        return ["strategy", "merge", str(folder), str(out / f"merged{suffix}")]
    if "lora" in case.api:
        merged = out / f"merged.{case.about.get('save_format', 'ckpt')}"
        return ["lora", "merge", given, str(merged), "--scaling", str(case.about.get("lora_scaling", 1)), *strategies]
    if "unified" in case.api:
        suffix = case.about.get("kwargs", {}).get("file_suffix")
        return ["unify", str(src), str(out), *strategies, *(["--suffix", suffix] if suffix else [])]
    form = case.about.get("output_format", "ckpt")
    extra = EXTRA_ARGUMENTS.get(case.name, ())
    return ["convert", given, str(out), "--format", form, "--missing", "drop", *strategies, *extra]


Same = Callable[[Value, Value], bool]


def faults(ours: Mapping[str, Value], theirs: Mapping[str, Value], same: Same = Value.__eq__) -> list[str]:
    """Where ours is not theirs, one line a tensor."""
    found = [f"{name}: absent" for name in theirs.keys() - ours.keys()]
    found += [f"{name}: not expected" for name in ours.keys() - theirs.keys()]
    for name in ours.keys() & theirs.keys():
        a, b = ours[name], theirs[name]
        if a[:2] != b[:2]:
            found.append(f"{name}: {a.dtype}{list(a.shape)}, expected {b.dtype}{list(b.shape)}")
        elif not same(a, b):
            found.append(f"{name}: other bytes")
    return sorted(found)


def judge_ranks(case: Case, out: Path) -> list[str]:
    """Faults of a converted checkpoint, rank by rank."""
    without = set(UNKNOWABLE.get(case.name, ()))
    source, target = case.strategy("src"), case.strategy("dst")
    if source and target:  # the reference passes raw slices of these through; we drop them
        without |= tensor_names(source) - tensor_names(target)
    base = min((p.parent for p in case.expected.rglob("rank_0")), default=case.expected)
    ranks = {p.name for p in base.glob("rank_*")}
    found = [f"{name} is missing or too many" for name in ranks ^ {p.name for p in out.glob("rank_*")}]
    for name in sorted(ranks):
        mine = weight_files(out / name)
        if len(mine) != 1:
            found.append(f"{name}: {len(mine)} weight files")
            continue
        theirs = {k: v for file in weight_files(base / name) for k, v in read_weights(file).items()}
        for unwanted in without:
            theirs.pop(unwanted, None)
        found += [f"{name}: {fault}" for fault in faults(read_weights(mine[0]), theirs)]
    return found


def judge_merged_strategy(case: Case, out: Path) -> list[str]:
    """Faults of a merged strategy file, item by item."""
    (made,), (want,) = (
        sorted(p for p in folder.iterdir() if p.name.startswith("merged") and p.suffix in (".ckpt", ".json"))
        for folder in (out, case.expected)
    )
    kinds = zip(("layout", "operator"), read_items(made), read_items(want), strict=True)
    return [f"{kind} items differ" for kind, ours, theirs in kinds if ours != theirs]


def judge_unified(case: Case, out: Path) -> list[str]:
    """Faults of the parts of a unified checkpoint, taken together.

    ``hyper_param.safetensors`` counts where no strategy knows the tensor; the rest of it is rank 0's raw
    slices. Whether ``accu_grads`` are kept is not asked.
    """
    ours = _joined(sorted(out.rglob("*.safetensors")))
    parts = sorted(case.expected.rglob("*.safetensors"))
    hyper = [p for p in parts if p.name == "hyper_param.safetensors"]
    theirs = _joined([p for p in parts if p not in hyper])
    source = case.strategy("src")
    laid_out = tensor_names(source) if source else set()
    theirs |= {name: value for name, value in _joined(hyper).items() if name not in laid_out}
    return faults(*({k: v for k, v in side.items() if not k.startswith("accu_grads")} for side in (ours, theirs)))


def judge_lora(case: Case, out: Path) -> list[str]:
    """Faults of a merged LoRA checkpoint; its sums may differ by rounding."""
    (want,) = (p for p in case.expected.iterdir() if p.name.startswith("merged_lora"))
    (made,) = weight_files(out)
    return faults(read_weights(made), read_weights(want), same=nearly)


def _joined(files: list[Path]) -> dict[str, Value]:
    return {name: value for file in files for name, value in read_weights(file).items()}


def nearly(a: Value, b: Value) -> bool:
    """Equal bytes, or floats one unit in the last place apart; in float32 eight units of the tensor's largest element.

    W + (B @ A) * s passes through larger numbers than it ends in, and every BLAS rounds the sum in its own way.
    """
    import ml_dtypes
    import numpy as np

    if a.content == b.content:
        return True
    kinds: dict[str, Any] = {"Float32": np.float32, "Float16": np.float16, "BFloat16": ml_dtypes.bfloat16}
    if a.dtype not in kinds or len(a.content) != len(b.content):
        return False
    x, y = (np.frombuffer(v.content, kinds[a.dtype]) for v in (a, b))
    integer = np.int32 if a.dtype == "Float32" else np.int16
    bits = (array.view(integer).astype(np.int64) for array in (x, y))
    steps = [np.where(b < 0, np.iinfo(integer).min - b, b) for b in bits]  # in the order of the floats
    far = np.abs(steps[0] - steps[1]) > 1
    if a.dtype == "Float32":
        far &= np.abs(x.astype(np.float64) - y) > 8 * np.spacing(np.abs(y).max())
    return not far.any()


def check(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run one case and fail with every fault found."""
    case = unpack(name, folder / "case")
    out = folder / "out"
    out.mkdir()
    code = run_reshard(arguments(case, out))
    said = capsys.readouterr().err
    assert "a bug in reshard" not in said, said
    if name in UNDECIDED:
        assert code in (DONE, INPUT_IS_WRONG), said
        return
    if name in REFUSED:
        assert code == INPUT_IS_WRONG, said
        assert REFUSED[name] in said
        assert [p.name for p in out.rglob("*") if p.is_file()] == []
        return
    assert code == DONE, said
    judges = {"merge_pipeline": judge_merged_strategy, "lora": judge_lora, "unified": judge_unified}
    judge = next((function for word, function in judges.items() if word in case.api), judge_ranks)
    found = judge(case, out)
    if found:
        pytest.fail("\n".join(found))

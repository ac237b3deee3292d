"""What a report says is what the plan, its bill and NumPy say."""

from __future__ import annotations

import re
from importlib.resources import files
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace
from reading_back import expand, names_of, report_of, unfolded, values_of
from typer.testing import CliRunner

from hub_model import qwen3, write_hub
from making import counted, shard_of, write_file, write_ranks, write_strategy
from reshard.cli.commands import app_for
from reshard.errors import StorageError
from reshard.layout.tensor import Sharding
from reshard.ops.convert import bill_of, plan_from
from reshard.ops.convert import opened as opened_for
from reshard.ops.inspect import opened
from reshard.ops.options import Options
from reshard.planning.names import NameRules
from reshard.report.fold import folded_names, numbers_text, pattern_of
from reshard.report.html import page
from reshard.report.make import checkpoint_report, plan_report
from thorough import examples

ROWS, COLUMNS, WHOLE = ((0,), ()), ((), (0,)), ((), ())
FULL = {f"layers.{i}.{name}": counted(8, 12) + i for i in range(4) for name in ("up", "down")}
FULL |= {"norm": counted(8), "adam_m.norm": counted(8)}


def stages(dp: int, mp: int, pp: int, opt: int = 0) -> list[dict[str, Sharding]]:
    """Two or one stages; ``up`` is cut in rows, ``down`` in columns, ``norm`` not but by the optimizer shard."""
    made: list[dict[str, Sharding]] = [{} for _ in range(pp)]
    for name in FULL:
        stage = int(name.split(".")[1]) * pp // 4 if name.startswith("layers") else pp - 1
        cut = ((),) if "norm" in name else ROWS if name.endswith("up") else COLUMNS
        made[stage][name] = Sharding((dp, mp), cut, opt)
    return made


SOURCE, TARGET = stages(2, 2, 2, opt=2), stages(1, 4, 1)
del TARGET[0]["adam_m.norm"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    write_ranks(folder / "ckpt", FULL, SOURCE, ".safetensors")
    write_strategy(folder / "old", SOURCE)
    write_strategy(folder / "new", TARGET)
    return folder


def run(*words: str | Path) -> None:
    result = CliRunner().invoke(app_for(), [str(w) for w in words])
    assert result.exit_code == 0, result.output


def options_of(job: Path, **more: Any) -> Options:
    return Options(src_strategy=str(job / "old"), dst_strategy=str(job / "new"), **more)


def made_report(job: Path, options: Options) -> tuple[Any, Any, Any]:
    """The report of a plan, the plan and its bill."""
    source = opened(str(job / "ckpt"), options.src_strategy)
    plan = plan_from(source, str(job / "out"), options)
    bill = bill_of(plan, job / "out", options)
    return values_of(page(plan_report(source, plan, ("ckpt", "out"), bill))), plan, bill


@pytest.mark.parametrize(
    "more",
    [{}, {"dtype": "float16"}, {"ranks": frozenset({1, 3})}, {"drop_redundancy": True}, {"link_replicas": True},
     {"names": NameRules(rename=((r"^layers\.", "blocks."),)), "missing": "drop"}],
    ids=str,
)  # fmt: skip
def test_sums_are_those_of_the_plan(job: Path, more: dict[str, Any]) -> None:
    report, plan, bill = made_report(job, options_of(job, **more))
    (conversion,) = report["conversions"]
    moved = conversion["movement"]["nbytes"]
    assert sum(map(sum, moved)) == plan.tensor_nbytes
    for file, planned in zip(conversion["target"]["files"], plan.files, strict=True):
        assert sum(row[planned.rank] for row in moved) == file["moved"]
        assert file["nbytes"] == plan.forms[planned.form].nbytes
    assert sum(file["moved"] for file in report["source"]["files"]) == bill.read_nbytes
    assert conversion["bill"]["written_nbytes"] == bill.written_nbytes
    assert conversion["identity"] == plan.identity


def test_every_rank_holds_what_numpy_cuts(job: Path) -> None:
    """Of source and target: the box that a report gives a rank holds the values that the rank's file has."""
    report, _, _ = made_report(job, options_of(job))
    target = report["conversions"][0]["target"]
    seen = 0
    for name, kind in names_of(report).items():
        for side, cuts, numbers in ((report["source"], SOURCE, [kind["source"]]), (target, TARGET, kind["targets"])):
            for number in numbers:
                for file, box in boxes(side["placements"][number], kind["shape"]):
                    rank = side["files"][file]["rank"]
                    stage, local = divmod(rank, side["devices"])
                    np.testing.assert_array_equal(FULL[name][box], shard_of(FULL[name], cuts[stage][name], local))
                    seen += 1
    assert seen == sum(4 * len(cuts) for side in (SOURCE, TARGET) for cuts in side) - 4  # adam_m.norm is dropped
    assert report["source"]["placements"][names_of(report)["layers.0.up"]["source"]]["opt_parts"] == 2


def boxes(placement: Any, shape: list[int]) -> list[tuple[int, tuple[slice, ...]]]:
    parts = placement["parts"]
    found = []
    for file, cell in zip(expand(placement["files"]), placement["cells"], strict=True):
        place = np.unravel_index(cell, parts)
        box = tuple(slice(p * n // k, (p + 1) * n // k) for p, n, k in zip(place, shape, parts, strict=True))
        found.append((file, box))
    return found


@pytest.mark.parametrize("limits", [(2, 1000), (1000, 9)])
def test_what_a_page_cannot_show_is_counted(
    job: Path, limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million chunks make no page that no browser opens."""
    monkeypatch.setattr("reshard.report.make.MAX_ROWS", limits[0])
    monkeypatch.setattr("reshard.report.make.MAX_CELLS", limits[1])
    report, plan, _ = made_report(job, options_of(job))
    named, beyond = names_of(report), report["unlisted"]
    elements = {tensor.name: prod(tensor.spec.shape) for tensor in plan.tensors}
    assert 0 < len(named) < len(elements) == len(named) + beyond["tensors"]
    assert sum(elements[name] for name in named) + beyond["elements"] == sum(elements.values())
    whole = values_of(page(checkpoint_report(opened(str(job / "ckpt"), str(job / "old")), "ckpt")))
    assert len(names_of(whole)) + whole["unlisted"]["tensors"] == len(FULL)


def test_all_names_and_what_became_of_them(job: Path) -> None:
    report, _, _ = made_report(job, options_of(job, dtype="float16"))
    assert set(names_of(report)) == set(FULL) - {"adam_m.norm"}
    assert {(k["source_dtype"], k["dtype"]) for k in report["kinds"]} == {("float32", "float16")}
    (fate,) = report["conversions"][0]["fates"]
    assert (fate["fate"], fate["count"]) == ("dropped", 1)
    assert [name for names in fate["names"] for name in unfolded(names)] == ["adam_m.norm"]


def test_renamed_tensors_say_what_they_were(job: Path) -> None:
    rename = NameRules(exclude=("norm",), rename=((r"^layers\.", "blocks."),))
    source = opened(str(job / "ckpt"), str(job / "old"))
    options = Options(src_strategy=str(job / "old"), names=rename)
    plan = plan_from(source, str(job / "out.safetensors"), options)
    bill = bill_of(plan, job / "out", options)
    report = values_of(page(plan_report(source, plan, ("ckpt", "out"), bill)))
    patterns = {(n["pattern"], n["source"], n["numbers"]) for k in report["kinds"] for n in k["names"]}
    assert ("blocks.#.up", "layers.#.up", "0-1") in patterns


def test_what_is_fused_says_whose_rows_it_has(tmp_path: Path) -> None:
    hub = write_hub(tmp_path / "hub", qwen3())
    options = Options(to="megatron", tp=2)
    source, left = opened_for(hub, options)
    plan = plan_from(source, str(tmp_path / "out"), left)
    report = plan_report(source, plan, ("hub", "out"), bill_of(plan, tmp_path / "out", left))
    (fused,) = [k for k in report.kinds if any("linear_qkv" in names.pattern for names in k.names)]
    own = "model.layers.#.self_attn.{}_proj.weight".format
    told = [(o.start, o.stop, o.name, o.first) for o in fused.origins]
    assert told == [  # 4 heads on 2 groups, 4 rows each
        (0, 8, own("q"), 0), (8, 12, own("k"), 0), (12, 16, own("v"), 0),
        (16, 24, own("q"), 8), (24, 28, own("k"), 4), (28, 32, own("v"), 4),
    ]  # fmt: skip
    (norm,) = [k for k in report.kinds if any("final_layernorm" in names.pattern for names in k.names)]
    assert [(o.name, o.first) for o in norm.origins] == [("model.norm.weight", 0)]


def test_every_run_of_rows_is_told_and_layers_apart(tmp_path: Path) -> None:
    """A tensor that stacks twenty layers, each of six runs of q, k and v."""
    layers = 20
    one = {name.replace("layers.0.", "layers.{}."): value for name, value in qwen3().items() if "layers.1." not in name}
    many = {name.format(at): value for name, value in one.items() for at in range(layers)}
    hub = write_hub(tmp_path / "hub", many, num_hidden_layers=layers)
    options = Options(to="torch_dist")
    source, left = opened_for(hub, options)
    plan = plan_from(source, str(tmp_path / "out"), left)
    report = plan_report(source, plan, ("hub", "out"), bill_of(plan, tmp_path / "out", left))
    (fused,) = [k for k in report.kinds if any("linear_qkv.weight" in names.pattern for names in k.names)]
    assert len(fused.origins) == 6 * layers
    whose = [(o.name, o.first, o.start) for o in fused.origins if o.start <= 300 < o.stop]
    assert whose == [("model.layers.9.self_attn.v_proj.weight", 0, 300)]
    assert report.source.family == "a full checkpoint"
    assert report.conversions[0].target.family == "torch_dist"


def test_states_are_told_from_weights(tmp_path: Path) -> None:
    write_file(tmp_path / "m.safetensors", {"w": counted(4), "adam_m.w": counted(4)})
    report = checkpoint_report(opened(str(tmp_path / "m.safetensors")), "m.safetensors")
    assert {k.names[0].pattern: k.state for k in report.kinds} == {"w": False, "adam_m.w": True}


def test_what_is_stored_as_it_is_called_says_nothing_of_rows(job: Path) -> None:
    report, _, _ = made_report(job, options_of(job))
    assert [kind["origins"] for kind in report["kinds"]] == [[]] * len(report["kinds"])


def test_missing_parts_and_absent_ranks(job: Path, tmp_path: Path) -> None:
    """Ranks 0 and 1 of the first stage are gone: the optimizer shard leaves their rows without any holder."""
    write_ranks(tmp_path / "ckpt", FULL, SOURCE, ".safetensors")
    for rank in (0, 1):
        (tmp_path / f"ckpt/rank_{rank}/model_{rank}.safetensors").unlink()
        (tmp_path / f"ckpt/rank_{rank}").rmdir()
    run("inspect", tmp_path / "ckpt", "--strategy", job / "old", "--html", tmp_path / "seen.html")
    report = report_of(tmp_path / "seen.html")
    placement = report["source"]["placements"][names_of(report)["layers.0.up"]["source"]]
    assert placement["absent_ranks"] == "0-1"
    assert placement["missing"] == [0, 2]  # rows 0-1 and 4-5: the first optimizer part of each half


def test_a_conversion_leaves_a_report_of_its_run(job: Path, tmp_path: Path) -> None:
    words = ["--src-strategy", job / "old", "--dst-strategy", job / "new", "--report", tmp_path / "deep/run.html"]
    run("convert", job / "ckpt", tmp_path / "out", *words, "--verify", "--quiet")
    report = report_of(tmp_path / "deep/run.html")
    (done,) = report["runs"]
    (conversion,) = report["conversions"]
    written = next(p for p in done["phases"] if p["what"] == "writing")
    assert sum(map(sum, written["workers"])) == sum(f["moved"] for f in conversion["target"]["files"])
    assert done["written_nbytes"] == sum(f["nbytes"] for f in conversion["target"]["files"])
    assert done["read_nbytes"] == sum(f["moved"] for f in report["source"]["files"])
    assert done["verified_nbytes"] == done["written_nbytes"]
    assert done["seconds"] >= written["stop_s"] >= written["start_s"]


def test_a_checkpoint_has_its_fingerprint_where_asked(job: Path, tmp_path: Path) -> None:
    write_file(tmp_path / "full.safetensors", FULL, {"epoch": "3"})
    for path, more in ((tmp_path / "full.safetensors", []), (job / "ckpt", ["--strategy", job / "old"])):
        run("inspect", path, *more, "--fingerprint", "--html", tmp_path / f"{path.name}.html")
    one, other = (report_of(tmp_path / f"{name}.html") for name in ("full.safetensors", "ckpt"))
    assert one["prints"] == other["prints"]
    assert one["texts"] == {"epoch": "3"}
    assert one["conversions"] == one["runs"] == []
    assert sum(prod(k["shape"]) * n["count"] for k in one["kinds"] for n in k["names"]) == 8 * 96 + 16


def test_merged_weights_and_parts(tmp_path: Path) -> None:
    """The other two commands that convert: a LoRA merge says what it added, ``unify`` which part gets what."""
    at = "layers.0.wq"
    full = {f"{at}.weight": counted(4, 4), f"{at}.mindpet_delta_lora_a": counted(2, 4)}
    full |= {f"{at}.mindpet_delta_lora_b": counted(4, 2), "norm": counted(4)}
    path = write_file(tmp_path / "full.safetensors", full)
    run("lora", "merge", path, tmp_path / "out.ckpt", "--scaling", "1", "--report", tmp_path / "lora.html", "--quiet")
    report = report_of(tmp_path / "lora.html")
    assert {name: kind["merged"] for name, kind in names_of(report).items()} == {f"{at}.weight": True, "norm": False}
    assert [(f["reason"], f["count"]) for f in report["conversions"][0]["fates"]] == [
        ("LoRA weights, added to their base", 2)
    ]
    run("unify", path, tmp_path / "parts", "--max-shard-size", "64B", "--report", tmp_path / "unify.html", "--quiet")
    report = report_of(tmp_path / "unify.html")
    target = report["conversions"][0]["target"]
    where = {n: target["placements"][k["targets"][0]]["files"] for n, k in names_of(report).items()}
    assert len({where[f"{at}.weight"], where["norm"]}) == 2
    assert sum(f["moved"] for f in target["files"]) == sum(a.nbytes for a in full.values())


def test_where_no_report_can_be_is_told_before_the_work(job: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    words = [job / "ckpt", tmp_path / "out", "--src-strategy", job / "old", "--report", tmp_path / "file/deep/x.html"]
    result = CliRunner().invoke(app_for(), ["convert", *map(str, words)])
    assert isinstance(result.exception, StorageError)
    assert not (tmp_path / "out").exists()


def test_inspect_with_a_report_leaves_the_table_to_it(job: Path, tmp_path: Path) -> None:
    words = ["inspect", job / "ckpt", "--strategy", job / "old", "--html", tmp_path / "x.html"]
    shown = CliRunner().invoke(app_for(), [str(w) for w in words]).stdout.splitlines()
    assert len(shown) == 2
    assert shown[1] == f"report: {tmp_path / 'x.html'}"


HOSTILE = ["</script><script>alert(1)</script>", "a.#.b", "a.07.b", "&amp;<!--", "\u2028", "層.3.重み", "'\"`${x}"]


def test_names_cannot_leave_their_element(tmp_path: Path) -> None:
    path = write_file(tmp_path / "odd.safetensors", {name: counted(2) for name in HOSTILE})
    text = page(checkpoint_report(opened(str(path)), "</title><b>"))
    assert text.count("</script") == 2
    assert "<b>" not in text
    assert set(names_of(values_of(text))) == set(HOSTILE)


def test_a_report_asks_for_nothing(job: Path) -> None:
    report, _, _ = made_report(job, options_of(job))
    text = page(checkpoint_report(opened(str(job / "ckpt"), str(job / "old")), "ckpt"))
    assert report["schema"] == 1
    assert "default-src 'none'" in text
    addresses = {word for word in text.split('"') if "://" in word}
    assert addresses == {"http://www.w3.org/2000/svg"}


@examples(25)
@given(st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 4)), min_size=1, max_size=60))
def test_folded_numbers_unfold_to_the_same(numbers: set[tuple[int, ...]]) -> None:
    names = {"pattern": "a.#.b.#.c.#.d", "numbers": numbers_text(numbers)}
    assert sorted(unfolded(names)) == sorted(f"a.{i}.b.{j}.c.{k}.d" for i, j, k in numbers)


@examples(25)
@given(st.lists(st.lists(st.sampled_from(["a", "#", "0", "7", "07", "12", ""]), min_size=1, max_size=5).map(".".join)))
@example(names=["a.#.a", "a.0.a"])
def test_folded_names_unfold_to_the_same(names: list[str]) -> None:
    names = list(dict.fromkeys(names))
    folded = [replace(f) for f in folded_names((n, n) for n in names)]
    found = [n for f in folded for n in unfolded({"pattern": f.pattern, "numbers": f.numbers})]
    assert sorted(found) == sorted(names)
    assert sum(f.count for f in folded) == len(names)


def test_a_name_with_its_numbers() -> None:
    assert pattern_of("layers.3.experts.40.w") == ("layers.#.experts.#.w", (3, 40))
    assert pattern_of("layers.#.w.3.x") == ("layers.#.w.3.x", ())


@pytest.mark.parametrize("name", ["out.ckpt", "out", "model.safetensors"])
@pytest.mark.parametrize("command", ["plan", "convert", "inspect"])
def test_a_page_is_named_html(job: Path, tmp_path: Path, command: str, name: str) -> None:
    precious = tmp_path / name
    precious.write_bytes(b"weights")
    words = {"plan": ["--report"], "convert": [str(tmp_path / "dst"), "--report"], "inspect": ["--html"]}[command]
    result = CliRunner().invoke(app_for(), [command, str(job / "ckpt"), *words, str(precious)])
    assert result.exception is not None
    assert "does not name a page" in str(result.exception)
    assert precious.read_bytes() == b"weights"
    assert not (tmp_path / "dst").exists()


def test_what_is_translated_is_what_the_program_says() -> None:
    words = files("reshard.report").joinpath("words.js").read_text("utf-8")
    reasons = re.findall(r'^  "([^"]+)":', words.split("REASONS_ZH = {")[1].split("};")[0], re.MULTILINE)
    package = Path(str(files("reshard")))
    said = "".join(path.read_text("utf-8") for path in sorted(package.rglob("*.py")))
    recipes = [yaml.safe_load(path.read_text("utf-8")) for path in (package / "names" / "recipes").glob("*.yaml")]
    of_recipes = {drop["why"] for recipe in recipes for drop in recipe.get("drop", [])}
    assert of_recipes - {*reasons} == set()
    ours = [reason for reason in reasons if reason not in of_recipes]
    assert len(ours) >= 25
    assert [reason for reason in ours if "*" not in reason and f'"{reason}"' not in said] == []
    assert [reason for reason in ours if "*" in reason and not all(part in said for part in reason.split("*"))] == []

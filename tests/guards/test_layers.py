"""Imports point down only. What is not allowed here is forbidden; a new package has to be entered first."""

from __future__ import annotations

import ast

import pytest
from source import MODULES, dotted, imports, parsed

LEAVES = {"errors", "dtypes", "closest", "hints", "drawing", "interruption", "waits", "streams", "_version"}
VALUES = {"layout", "index", "wire", "yaml_text", "foreign"}
HEADERS = {"formats", "strategy"}
LIBRARY = LEAVES | VALUES | HEADERS | {"planning", "names", "storage", "target", "moving", "families", "ops"}
ALLOWED = {
    "errors": set(),
    "dtypes": set(),
    "closest": set(),
    "hints": set(),
    "drawing": set(),
    "interruption": {"waits"},
    "waits": set(),
    "streams": set(),
    "_version": set(),
    "__init__": LIBRARY | {"checkpoint"},  # names only, imported when used
    "layout": LEAVES,
    "index": LEAVES,
    "wire": LEAVES,
    "yaml_text": LEAVES,
    "foreign": LEAVES | {"wire"},
    "formats": LEAVES | {"index", "wire", "foreign"},
    "strategy": LEAVES | VALUES,
    "planning": LEAVES | VALUES | {"formats"},
    "names": LEAVES | VALUES | {"planning", "strategy"},
    "storage": LEAVES | VALUES | {"formats", "planning"},
    "target": LEAVES | VALUES | {"planning", "storage"},
    "moving": LEAVES | VALUES | {"planning", "storage"},
    "families": LEAVES | VALUES | HEADERS | {"planning", "storage", "target", "moving"},
    "ops": LIBRARY - {"ops"},
    "checkpoint": LIBRARY,
    "report": LEAVES | VALUES | {"planning"},
    "auto": LIBRARY | {"checkpoint", "report"},
    "compat": LIBRARY | {"checkpoint", "report", "auto"},
    "cli": LIBRARY | {"checkpoint", "report", "auto", "compat"},
    "__main__": {"cli"},
    "testing": LIBRARY,
}
# plan knows formats as a promise, not how any file is read
NARROW = {"planning": {"formats": {"base"}}}
CONCRETE_FORMATS = {"reshard.formats.mindspore_ckpt", "reshard.formats.safetensors", "reshard.formats.torch_file"}
PURE = {"layout", "index", "wire", "planning", "names", "report"}
KNOWN = frozenset(dotted(m) for m in MODULES)
OUT_LOUD = {"rich", "typer", "click"}


def layer(module: str) -> str:
    """The part of the package that a dotted name belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def targets(module: str) -> set[str]:
    """The reshard modules that a module imports, dotted."""
    return {name for name in imports(module) if name in KNOWN and name != "reshard"}


def test_every_package_has_its_layer() -> None:
    assert {layer(dotted(m)) for m in MODULES} <= set(ALLOWED)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    own = layer(dotted(module))
    wrong = {name for name in targets(module) if layer(name) not in ALLOWED[own] | {own}}
    assert not wrong, f"{module} may not import {sorted(wrong)}"


@pytest.mark.parametrize("module", [m for m in MODULES if layer(dotted(m)) in NARROW])
def test_plan_reads_no_file(module: str) -> None:
    for name in targets(module):
        allowed = NARROW[layer(dotted(module))].get(layer(name))
        leaf = name.split(".")[2:]
        assert allowed is None or not leaf or leaf[0] in allowed, f"{module} imports {name}"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith(("storage/", "target/", "moving/"))])
def test_what_moves_bytes_knows_no_concrete_format(module: str) -> None:
    assert not targets(module) & CONCRETE_FORMATS


@pytest.mark.parametrize(
    "module", [m for m in MODULES if layer(dotted(m)) in {"layout", "index", "planning", "report"}]
)
def test_pure_modules_touch_no_world(module: str) -> None:
    forbidden = {"os", "pathlib", "shutil", "time", "datetime", "random", "logging", "sys", "tempfile"}
    assert not forbidden & {name.split(".")[0] for name in imports(module)}


@pytest.mark.parametrize("module", [m for m in MODULES if layer(dotted(m)) not in {"cli", "compat"}])
def test_the_library_is_silent(module: str) -> None:
    tree = parsed(module)
    assert not OUT_LOUD & {name.split(".")[0] for name in imports(module)}
    calls = [n.func for n in ast.walk(tree) if isinstance(n, ast.Call)]
    assert not [c for c in calls if isinstance(c, ast.Name) and c.id in {"print", "input"}]
    written = [c for c in calls if isinstance(c, ast.Attribute) and isinstance(c.value, ast.Attribute)]
    assert not [c for c in written if c.value.attr in {"stdout", "stderr"}]


def test_no_import_goes_round() -> None:
    graph = {dotted(m): targets(m) - {dotted(m)} for m in MODULES if m != "__init__.py"}
    done: set[str] = set()
    while ready := {m for m in graph if m not in done and graph[m] <= done}:
        done |= ready
    assert set(graph) == done, f"a circle among {sorted(set(graph) - done)}"


WHERE_PATHS_BECOME_STORAGES = {"auto/settings.py", "families/strategies.py", "ops/doctor.py"}


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("storage/")])
def test_how_far_away_bytes_are_a_storage_says_and_no_path(module: str) -> None:
    asks = "reshard.storage.storage.is_url" in imports(module)
    assert asks <= (module in WHERE_PATHS_BECOME_STORAGES)

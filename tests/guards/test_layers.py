"""Imports point down only. What is not allowed here is forbidden; a new package has to be entered first."""

from __future__ import annotations

import ast

from source import MODULES, dotted, imports, parsed

LEAVES = {
    "errors",
    "dtypes",
    "closest",
    "digits",
    "hints",
    "drawing",
    "interruption",
    "waits",
    "streams",
    "plain_files",
    "_version",
}
VALUES = {"layout", "index", "wire", "yaml_text", "foreign"}
HEADERS = {"formats", "strategy"}
LIBRARY = LEAVES | VALUES | HEADERS | {"planning", "names", "storage", "target", "moving", "families", "ops"}
ALLOWED = {
    "errors": set(),
    "dtypes": set(),
    "closest": set(),
    "digits": set(),
    "hints": {"errors"},
    "drawing": set(),
    "frameworks": LEAVES,
    "interruption": {"waits"},
    "waits": set(),
    "streams": set(),
    "plain_files": {"errors"},
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
    "auto": LIBRARY | {"checkpoint", "report", "frameworks"},
    "compat": LIBRARY | {"checkpoint", "report", "auto", "frameworks"},
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


def test_imports_point_down() -> None:
    allowed = {module: ALLOWED[layer(dotted(module))] | {layer(dotted(module))} for module in MODULES}
    assert [(m, name) for m in MODULES for name in targets(m) if layer(name) not in allowed[m]] == []


def test_plan_reads_no_file() -> None:
    found = []
    for module in MODULES:
        narrow = NARROW.get(layer(dotted(module)), {})
        for name in targets(module):
            leaf = name.split(".")[2:]
            if leaf and leaf[0] not in narrow.get(layer(name), leaf):
                found.append((module, name))
    assert found == []


def test_what_moves_bytes_knows_no_concrete_format() -> None:
    moving = [m for m in MODULES if m.startswith(("storage/", "target/", "moving/"))]
    assert [m for m in moving if targets(m) & CONCRETE_FORMATS] == []


def test_pure_modules_touch_no_world() -> None:
    pure = [m for m in MODULES if layer(dotted(m)) in {"layout", "index", "planning", "report"}]
    forbidden = {"os", "pathlib", "shutil", "time", "datetime", "random", "logging", "sys", "tempfile"}
    assert [m for m in pure if forbidden & {name.split(".")[0] for name in imports(m)}] == []


def loud(module: str) -> bool:
    """Whether it prints, asks, or writes to a stream of the process."""
    calls = [n.func for n in ast.walk(parsed(module)) if isinstance(n, ast.Call)]
    names = {c.id for c in calls if isinstance(c, ast.Name)}
    on = {c.value.attr for c in calls if isinstance(c, ast.Attribute) and isinstance(c.value, ast.Attribute)}
    return bool(names & {"print", "input"} or on & {"stdout", "stderr"})


def test_the_library_is_silent() -> None:
    library = [m for m in MODULES if layer(dotted(m)) not in {"cli", "compat"}]
    assert [m for m in library if OUT_LOUD & {name.split(".")[0] for name in imports(m)}] == []
    assert [m for m in library if loud(m)] == []


def test_no_import_goes_round() -> None:
    graph = {dotted(m): targets(m) - {dotted(m)} for m in MODULES if m != "__init__.py"}
    done: set[str] = set()
    while ready := {m for m in graph if m not in done and graph[m] <= done}:
        done |= ready
    assert set(graph) == done, f"a circle among {sorted(set(graph) - done)}"


WHERE_PATHS_BECOME_STORAGES = {"auto/settings.py", "families/strategies.py", "ops/doctor.py"}


def test_how_far_away_bytes_are_a_storage_says_and_no_path() -> None:
    asks = {m for m in MODULES if "reshard.storage.storage.is_url" in imports(m) and not m.startswith("storage/")}
    assert asks - WHERE_PATHS_BECOME_STORAGES == set()

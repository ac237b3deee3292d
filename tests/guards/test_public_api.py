from __future__ import annotations

import inspect
import re
import subprocess
import sys
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from source import MODULES, dotted

import reshard


@pytest.mark.parametrize("name", sorted(reshard._PLACES))
def test_every_public_name_is_what_it_says_whatever_was_imported_before(name: str) -> None:
    """A subpackage of the same name would hide it once anything imports the subpackage."""
    place = import_module(reshard._PLACES[name])
    for module in MODULES:
        import_module(dotted(module))
    assert getattr(reshard, name) is getattr(place, name)


def test_all_names_are_said_to_be_public() -> None:
    assert set(reshard._PLACES) | {"__version__"} == set(reshard.__all__)
    assert set(reshard.__all__) <= set(dir(reshard))  # before any is used: a shell completes them


def told_arguments(of: Any) -> str:
    bare = [p.replace(annotation=p.empty) for p in inspect.signature(of).parameters.values()]
    return str(inspect.Signature(bare)).replace("'", '"')


@pytest.mark.parametrize("page", ["docs/reference/python.md", "docs/zh/reference/python.md"])
def test_the_reference_has_every_argument_and_field(page: str) -> None:
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    for path, given in re.findall(r"^(?:\| `reshard\.|`)([\w.]+)(\([^`]*\))`", text, re.MULTILINE):
        place, _, name = f"reshard.{path}".rpartition(".")
        assert given == told_arguments(getattr(import_module(place), name)), path
    fields = {*reshard.Options.__struct_fields__}
    assert sorted(fields - {*re.findall(r"`(\w+)`", text.partition("## Options")[2])}) == []


def test_unknown_names_are_refused_as_python_does() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = reshard.nothing


@pytest.mark.parametrize("module", ["numpy", "ml_dtypes", "msgspec", "typer", "rich"])
def test_importing_the_package_imports_little(module: str) -> None:
    code = f"import reshard, sys; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0


def test_the_package_is_typed() -> None:
    assert files("reshard").joinpath("py.typed").is_file()

from __future__ import annotations

import importlib
import inspect
import pickle

import pytest
from source import MODULES, dotted

from reshard import errors
from reshard.errors import ReshardError

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, BaseException)]
EXIT_CODES = {
    "ReshardError": 3, "UsageError": 2, "InputError": 3, "FormatError": 3, "StrategyError": 3, "LayoutError": 3,
    "CheckpointError": 3, "PlanError": 3, "StorageError": 4, "RunError": 5, "DifferenceError": 1,
}  # fmt: skip


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_crosses_processes(kind: type[ReshardError]) -> None:
    error = pickle.loads(pickle.dumps(kind("what", "where", "do this")))
    assert type(error) is kind
    assert (error.message, error.where, error.hint) == ("what", "where", "do this")
    assert str(error) == "where: what\n  hint: do this"


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_without_place_and_hint(kind: type[ReshardError]) -> None:
    assert str(kind("what")) == "what"


def test_exit_codes() -> None:
    assert {c.__name__: c.exit_code for c in CLASSES} == EXIT_CODES


def test_the_tree_at_the_top_of_the_module_is_complete() -> None:
    drawn = (errors.__doc__ or "").replace("│", " ").replace("├──", " ").replace("└──", " ").split()
    assert {c.__name__ for c in CLASSES} <= set(drawn)


def test_every_exception_is_of_the_tree() -> None:
    modules = [importlib.import_module(dotted(m)) for m in MODULES if not m.startswith("testing/")]
    ours = {c for m in modules for _, c in inspect.getmembers(m, inspect.isclass) if c.__module__.startswith("reshard")}
    raised = {c for c in ours if issubclass(c, BaseException)}
    assert [c for c in raised if not issubclass(c, ReshardError) or c.__module__ != "reshard.errors"] == []

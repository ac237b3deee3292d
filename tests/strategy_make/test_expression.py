"""The language of rules files: what it says, and that it says nothing more."""

from __future__ import annotations

import pytest

from reshard.errors import StrategyError
from reshard.strategy.expression import evaluate, names_in

NAMES = {"dp": 2, "mp": 4, "gated": False, "kv": None, "kind": "moe", "double": lambda n: 2 * n}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("dp * mp + 1", 9),
        ("-dp", -2),
        ("7 // dp % 2", 1),
        ("2 * dp if gated else dp", 2),
        ("kv or dp", 2),
        ("kv and dp % 0", None),
        ("kv is None", True),
        ("1 < dp <= 2", True),
        ("not gated and kind == 'moe'", True),
        ("'mo' in kind", True),
        ("max(dp, mp) + double(dp)", 8),
        ("int(2.5 * dp)", 5),
        (12, 12),
        (True, True),
        (None, None),
    ],
)
def test_it_means_what_it_means_in_python(expression: object, expected: object) -> None:
    assert evaluate(expression, NAMES) == expected


@pytest.mark.parametrize(
    "expression",
    [
        "dp.real", "kind[0]", "[dp]", "lambda: dp", "dp ** 2", "dp / 2", "dp << 9", "__import__('os')", "open('x')",
        "kind.format(dp)", "(lambda: 0)()", "f'{dp}'", "double(n=2)", "double(*kind)", "{dp: 1}", "~dp", "(x := 1)",
        "dp dp", "", "unknown + 1", "kv + 1", "dp % 0", "kind - 1", "[i for i in kind]",
    ],
)  # fmt: skip
def test_all_else_is_refused(expression: str) -> None:
    with pytest.raises(StrategyError):
        evaluate(expression, NAMES)


def test_a_value_that_is_not_given_is_named() -> None:
    with pytest.raises(StrategyError, match="not given: kv"):
        evaluate("kv * dp", NAMES)


def test_names_in() -> None:
    assert names_in("min(dp, cp) if gated else 'mp'") == {"dp", "cp", "gated"}
    assert names_in(3) == frozenset()

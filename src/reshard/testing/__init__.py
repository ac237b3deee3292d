"""Conformance suites for those who add a format or an executor: subclass, and pytest runs every check.

    class TestMine(FormatTests):
        format = MyFormat()

A check may be skipped with a reason; overriding one is not allowed.
"""

from reshard.testing.executors import ExecutorTests
from reshard.testing.formats import FormatTests

__all__ = ["ExecutorTests", "FormatTests"]

from __future__ import annotations

from reshard.moving.local import LocalExecutor
from reshard.moving.task import Settings
from reshard.testing import ExecutorTests


class TestLocalExecutor(ExecutorTests):
    def executor(self, settings: Settings) -> LocalExecutor:
        return LocalExecutor(settings, workers=3)


class TestLocalExecutorWithOneWorker(ExecutorTests):
    def executor(self, settings: Settings) -> LocalExecutor:
        return LocalExecutor(settings, workers=1)

from __future__ import annotations

from reshard.run.local import LocalExecutor
from reshard.run.task import Settings
from reshard.testing import ExecutorTests


class TestLocalExecutor(ExecutorTests):
    def executor(self, settings: Settings) -> LocalExecutor:
        return LocalExecutor(settings, workers=3)


class TestLocalExecutorWithOneWorker(ExecutorTests):
    def executor(self, settings: Settings) -> LocalExecutor:
        return LocalExecutor(settings, workers=1)

"""Runs of the command line as children of one process that has everything imported: a start costs milliseconds.

As a program: reads a list of arguments a line (JSON), forks, and tells the child's process id; then, when the child is
gone, how it went. ``Forks`` is the other end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from select import select

PATIENCE_S = 100


class Forks:
    """One such process. Runs go one after the other."""

    def __init__(self) -> None:
        command = [sys.executable, __file__]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.run("--version")

    def run(self, *args: str | Path, kill: tuple[signal.Signals, float] | None = None) -> tuple[int, str]:
        """Exit code, negative for a signal that ended it, and standard error. ``kill``: which signal after how long."""
        pid = self.start(*args)
        if kill:
            time.sleep(kill[1])
            os.kill(pid, kill[0])  # its parent has not waited for it yet, so the number is still its own
        return self.wait()

    def start(self, *args: str | Path) -> int:
        """The child's process id, once it runs."""
        self._child = int(self._told(json.dumps([str(a) for a in args])))
        return self._child

    def wait(self) -> tuple[int, str]:
        """Fails where the child hangs."""
        code, said = json.loads(self._told("wait"))
        return int(code), str(said)

    def _told(self, line: str) -> str:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        hangs = not select([self._process.stdout], [], [], PATIENCE_S)[0]
        if hangs:
            os.kill(self._child, signal.SIGKILL)
        assert not hangs
        return self._process.stdout.readline()

    def close(self) -> None:
        self._process.communicate()


def _child(args: list[str], ready: int, said: Path) -> None:
    from reshard.cli import main as program

    run = program._main

    def told(args: list[str]) -> None:
        os.write(ready, b"x")
        run(args)

    program._main = told
    sys.stdin = open(os.devnull)  # noqa: SIM115
    stderr = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stderr, 2)
    os.dup2(stderr, 1)
    sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    code = 99
    try:
        program.main(args)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _serve() -> None:
    import tempfile

    import ml_dtypes  # noqa: F401

    import reshard
    from reshard.cli import main  # noqa: F401

    for name in reshard.__all__:
        getattr(reshard, name)
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder, "said")
        for line in sys.stdin:
            receive, send = os.pipe()
            pid = os.fork()
            if not pid:
                _child(json.loads(line), send, said)
            os.close(send)
            os.read(receive, 1)
            os.close(receive)
            print(pid, flush=True)
            sys.stdin.readline()
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            print(json.dumps([code, said.read_text(errors="replace")]), flush=True)


if __name__ == "__main__":
    _serve()

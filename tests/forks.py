"""Runs of the command line as children of one process that has everything imported: a start costs milliseconds.

As a program: a line is a JSON request. ``start`` forks and tells the child's process id once the child runs, ``wait``
waits for one and tells how it ended. What still runs when nobody can ask any more is killed. ``Forks`` is the other
end.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import count
from pathlib import Path
from select import select
from tempfile import TemporaryDirectory
from typing import Any

PATIENCE_S = 100


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended: exit code, negative for a signal, and what it wrote to its two streams."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return self.out + self.err


DONE = Ended(0, "", "")


@dataclass(frozen=True, slots=True)
class Running:
    """A run that was started."""

    pid: int
    _streams: tuple[Path, Path]
    _forks: Forks

    def said(self) -> str:
        """What it has written by now."""
        return "".join(stream.read_text(errors="replace") for stream in self._streams)

    def kill(self, number: signal.Signals) -> None:
        """Its parent has not waited for it yet, so the number is still its own."""
        os.kill(self.pid, number)

    def ended(self) -> Ended:
        """Waits for it, if it runs still. Fails where it hangs."""
        code = self._forks.told({"wait": self.pid})
        return Ended(code, *(stream.read_text(errors="replace") for stream in self._streams))


class Forks:
    """One such process."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="forks-")
        self._numbers = count()
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.run("--version")

    def start(
        self,
        *args: str | Path,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        waits: Mapping[str, float] | None = None,
    ) -> Running:
        """``reshard ARGS`` by default in the folder and the environment of who starts it. Returns once it runs.

        ``waits``: what differs from ``reshard.waits``, in seconds.
        """
        number = next(self._numbers)
        streams = Path(self._folder.name, f"{number}.out"), Path(self._folder.name, f"{number}.err")
        request = {
            "args": [str(arg) for arg in args],
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
            "streams": [str(stream) for stream in streams],
            "waits": dict(waits or {}),
        }
        return Running(self.told({"start": request}), streams, self)

    def run(self, *args: str | Path, cwd: str | Path | None = None, env: Mapping[str, str] | None = None) -> Ended:
        return self.start(*args, cwd=cwd, env=env).ended()

    def told(self, request: Mapping[str, Any]) -> int:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        hangs = not select([self._process.stdout], [], [], PATIENCE_S)[0]
        if hangs and "wait" in request:
            os.kill(request["wait"], signal.SIGKILL)
        assert not hangs
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()
        self._folder.cleanup()


@cache
def forks() -> Forks:
    """The one of this process, started when it is first asked for."""
    made = Forks()
    atexit.register(made.close)
    return made


def carried_out(run: Callable[[], object], cwd: str, env: Mapping[str, str], streams: Sequence[int]) -> int:
    """The exit code of what this process does from here on, in a world of its own: folder, environment, streams."""
    try:
        os.environ.clear()
        os.environ.update(env)
        os.chdir(cwd)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        run()
        return 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 99
    finally:
        with suppress(OSError):  # nobody reads any more
            sys.stdout.flush()


def _child(request: Mapping[str, Any], ready: int) -> None:
    from msgspec.structs import replace

    from reshard import waits
    from reshard.cli import main as program

    waits.now = replace(waits.now, **request["waits"])
    run = program._main

    def told(args: list[str]) -> None:
        os.write(ready, b"x")
        run(args)

    program._main = told
    code = 99
    try:
        streams = [os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for stream in request["streams"]]
        streams.insert(0, os.open(os.devnull, os.O_RDONLY))
        code = carried_out(lambda: program.main(request["args"]), request["cwd"], request["env"], streams)
    finally:
        os._exit(code)


def import_all() -> None:
    import reshard

    for module in pkgutil.walk_packages(reshard.__path__, "reshard."):
        if not module.name.startswith("reshard.testing"):
            import_module(module.name)
    for ours in ("reshard.strategy.families", "reshard.names.recipe"):
        import_module(ours).built_in()  # as cached as what is imported
    for family in import_module("reshard.families.registry").FAMILIES:
        re.compile(family.marks), re.compile(family.parts)


def _start(request: Mapping[str, Any]) -> int:
    receive, send = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(receive)
        _child(request, send)
    os.close(send)
    os.read(receive, 1)  # nothing of one that ends before it begins
    os.close(receive)
    return pid


def _serve() -> None:
    import_all()
    gc.freeze()  # what is never collected is not copied either
    codes: dict[int, int] = {}
    running: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            pid = _start(request["start"])
            running.add(pid)
            codes.pop(pid, None)  # a number may be given again
            print(pid, flush=True)
        else:
            pid = request["wait"]
            if pid in running:
                codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                running.remove(pid)
            print(codes[pid], flush=True)
    for pid in running:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _serve()

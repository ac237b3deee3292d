"""``reshard`` and ``python SCRIPT`` for a shell, in milliseconds: each is a fork of one process that has all imported.

As a program: takes what stand-ins of the two programs send to a socket, with their own streams, and sends back how it
ended. ``stand_ins`` is the other end.
"""

from __future__ import annotations

import gc
import marshal
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from select import select

TESTS = Path(__file__).parents[1]
STAND_IN = """\
#!{python} -IS
import _socket, marshal, os, struct, sys
words = sys.argv
if words[0].endswith("/python") and not words[1].endswith(".py"):
    os.execv({python!r}, [{python!r}, *words[1:]])
there = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
there.connect("\\0" + {place!r})
streams = _socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("3i", 0, 1, 2)
there.sendmsg([marshal.dumps((words, os.getcwd(), dict(os.environ)))], [streams])
sys.exit(there.recv(1)[0])
"""


@contextmanager
def stand_ins(folder: Path) -> Iterator[Path]:
    """The folder that has them, for a ``PATH``."""
    place = f"starts-{os.getpid()}"  # without a file: the path of one may be too long
    for name in ("reshard", "python"):
        path = folder / name
        path.write_text(STAND_IN.format(python=sys.executable, place=place), "utf-8")
        path.chmod(0o755)
    server = subprocess.Popen([sys.executable, __file__, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout
    assert server.stdout.readline() == b"ready\n"
    yield folder
    server.communicate()


def _run(words: Sequence[str]) -> None:
    from reshard.cli.main import main

    if words[0].endswith("/reshard"):
        main(list(words[1:]))
    else:
        sys.argv[:] = words[1:]
        sys.path[0] = str(Path(words[1]).parent)
        runpy.run_path(words[1], run_name="__main__")


def _answer(asked: socket.socket) -> None:
    """In a process of its own: what is run may become another program, and who waits for it tells its end."""
    from forks import carried_out

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, streams, _, _ = socket.recv_fds(asked, 1 << 20, 3)
    words, cwd, env = marshal.loads(request)
    pid = os.fork()
    if not pid:
        code = 99
        try:
            code = carried_out(lambda: _run(words), cwd, env, streams)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    asked.send(bytes([code if code >= 0 else 128 - code]))


def _serve(place: str) -> None:
    from forks import import_all

    import_all()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind("\0" + place)
        listening.listen()
        print("ready", flush=True)
        while sys.stdin not in select([listening, sys.stdin], [], [])[0]:
            asked, _ = listening.accept()
            if not os.fork():
                try:
                    _answer(asked)
                finally:
                    os._exit(0)
            asked.close()


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    _serve(sys.argv[1])

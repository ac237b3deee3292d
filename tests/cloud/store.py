"""One server that speaks S3, by moto, for all processes of a test run; it ends when the last of them lets it go.

As a program: told a file that its users hold locked, it says its port and ends when it can lock that file alone.
``object_store`` is the other end.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from threading import Thread

USERS, PORT = "object-store.users", "object-store.port"


@contextmanager
def object_store(folder: Path) -> Iterator[int]:
    """The port of the server of all who share the folder; the first of them starts it, and stays as long as it."""
    server = None
    with ExitStack() as held:
        with (folder / "object-store.start").open("w") as one_by_one:
            fcntl.flock(one_by_one, fcntl.LOCK_EX)
            users = held.enter_context((folder / USERS).open("w"))
            fcntl.flock(users, fcntl.LOCK_SH)  # waits for one that ends just now
            if not (folder / PORT).exists():
                server = _start(folder)
        yield int((folder / PORT).read_text())
    if server:
        server.wait()


def _start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "ignore", __file__, str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert server.stdout
    with server.stdout as told:
        assert told.readline() == b"ready\n", "moto did not start"
    return server


def _serve(folder: Path) -> None:
    from moto.moto_server.werkzeug_app import MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server
    from werkzeug.test import run_wsgi_app

    class Handler(MotoRequestHandler):
        """Keeps connections, logs nothing: werkzeug's own waits after each answer for what is left of its request."""

        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def run_wsgi(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            environ = {**self.make_environ(), "wsgi.input": BytesIO(body)}
            content, status, headers = run_wsgi_app(self.server.app, environ)
            answer = b"".join(content)
            headers.setdefault("Content-Length", str(len(answer)))
            lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers), "", ""]
            self.wfile.write("\r\n".join(lines).encode("latin-1") + (b"" if self.command == "HEAD" else answer))

    application = create_backend_app("s3")  # moto's own choice of a service by each request takes longer than S3
    application.debug = False
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    (folder / PORT).write_text(str(server.port))
    print("ready", flush=True)
    with (folder / USERS).open("w") as users:
        fcntl.flock(users, fcntl.LOCK_EX)
        (folder / PORT).unlink()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))

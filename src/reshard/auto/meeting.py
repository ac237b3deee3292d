"""A hello over the network, where the launcher names rank 0's address: it tells a folder that is not shared from a rank
that is late.

Both sides say which nonce theirs is, look whether the other's is in the folder, and tell each other. If neither sees
the other, the folders are two.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from reshard import waits
from reshard.auto.records import RecordsFolder, Word

_MAX_LINE = 4096


class Meeting(Protocol):
    """How ranks ask each other, beside the folder, whether it is the same for them."""

    def start(self, word: Word) -> None: ...

    def unshared(self) -> str:
        """What is wrong; "" as long as nothing is known to be."""
        ...

    def met(self) -> frozenset[int]:
        """Ranks that were heard of."""
        ...

    def told(self) -> frozenset[int]:
        """Ranks that know of us whether the folder is shared."""
        ...

    def stop(self) -> None: ...


class Hello:
    """Rank ``leader`` listens on a port, the others call. It does not matter if it cannot: then only time tells."""

    def __init__(self, path: Path, leader: int, address: tuple[str, int]) -> None:
        self._folder = RecordsFolder(path)
        self._leader = leader
        self._address = address
        self._over = threading.Event()
        self._wrong = ""
        self._met: set[int] = set()
        self._told: set[int] = set()

    def start(self, word: Word) -> None:
        self._word = word
        run = self._listen if word.rank == self._leader else self._call
        threading.Thread(target=run, name="reshard hello", daemon=True).start()

    def unshared(self) -> str:
        return self._wrong

    def met(self) -> frozenset[int]:
        return frozenset(self._met)

    def told(self) -> frozenset[int]:
        return frozenset(self._told)

    def stop(self) -> None:
        self._over.set()

    def _listen(self) -> None:
        with suppress(OSError), socket.create_server(("", self._address[1]), backlog=128) as server:
            server.settimeout(waits.now.hello_try_s)
            while not self._over.is_set():
                with suppress(TimeoutError):
                    connection, _ = server.accept()
                    threading.Thread(target=self._greet, args=(connection,), daemon=True).start()

    def _call(self) -> None:
        while not self._over.wait(waits.now.hello_try_s):
            with suppress(OSError):
                connection = socket.create_connection(self._address, timeout=waits.now.hello_try_s)
                if self._greet(connection):
                    return

    def _greet(self, connection: socket.socket) -> bool:
        """Exchange nonces, look, exchange what was seen. False where the other side is not one of ours."""
        with connection, suppress(OSError, ValueError, KeyError, TypeError):
            connection.settimeout(waits.now.hello_answer_s)
            lines = connection.makefile("rb")
            ours = self._word
            self._send(connection, rank=ours.rank, nonce=ours.nonce, at=self._place())
            other = json.loads(lines.readline(_MAX_LINE))
            rank, nonce, place = int(other["rank"]), str(other["nonce"]), str(other["at"])
            if nonce == ours.nonce:
                return False  # a call to a port that nobody listens on may reach itself
            self._met.add(rank)
            seen = self._sees(rank, nonce)
            self._send(connection, sees=seen)
            if not seen and not json.loads(lines.readline(_MAX_LINE))["sees"]:
                self._wrong = (
                    f"rank {ours.rank} wrote to {self._place()}, rank {rank} to {place}, and neither sees the other"
                )
            self._told.add(rank)
            return True
        return False

    def _send(self, connection: socket.socket, **values: Any) -> None:
        connection.sendall(json.dumps(values).encode() + b"\n")

    def _place(self) -> str:
        return f"{self._folder.path.parent} on {self._word.process.host}"

    def _sees(self, rank: int, nonce: str) -> bool:
        until = time.monotonic() + waits.now.hello_look_s
        while True:
            word = self._folder.word(rank)
            if word and word.nonce == nonce:
                return True
            if self._over.is_set():
                raise ValueError("nobody asks any more")
            if self._wrong or time.monotonic() > until:
                return False
            self._folder.look_afresh()
            time.sleep(waits.now.hello_pause_s)

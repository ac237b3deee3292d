"""An observer that keeps what it hears."""

from __future__ import annotations

from reshard.ops.observer import Observer


class Heard(Observer):
    def __init__(self) -> None:
        self.heard: list[object] = []

    def start(self, what: str, nbytes: int) -> None:
        self.heard.append((what, nbytes))

    def advance(self, nbytes: int) -> None:
        self.heard.append(nbytes)

    def start_files(self, count: int) -> None:
        self.heard.append(("files", count))

    def finish_files(self, count: int) -> None:
        self.heard.append(("done", count))

    def end(self) -> None:
        self.heard.append("end")

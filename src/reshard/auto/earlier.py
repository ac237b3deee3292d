"""What lay in the folder when a rank came: words of runs that are over, which are not to be taken for this one's."""

from __future__ import annotations

import time
from collections.abc import Mapping

from reshard import waits
from reshard.auto.processes import is_alive, launcher
from reshard.auto.records import Word


class Earlier:
    """Words as they were when a rank came.

    One that was killed by then, before it agreed to anything, may be of this run or of one before: if it began after
    the launcher of this process, and nobody takes its place soon, it was of this run.
    """

    def __init__(self, words: Mapping[int, Word]) -> None:
        self._over = {r: w.nonce for r, w in words.items() if w.left or not is_alive(w.process)}
        began = launcher()
        self._killed = {r for r, w in words.items() if not (w.left or w.generation) and w.process.began_after(began)}
        self._came_at = time.monotonic()

    def has(self, word: Word) -> bool:
        """Whether a word is of an earlier run."""
        if word.nonce != self._over.get(word.rank):
            return False
        return word.rank not in self._killed or time.monotonic() < self._came_at + waits.now.replaced_s

"""The ranks of one job, met in a folder: they begin together, hear of each other's failures, none waits for ever."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from msgspec import Struct, structs

from reshard import waits
from reshard.auto.earlier import Earlier
from reshard.auto.meeting import Meeting
from reshard.auto.polling import pauses, polls
from reshard.auto.processes import ended, is_alive, is_dead, this_process
from reshard.auto.records import Failure, Generation, RecordsFolder, Word, nonces
from reshard.errors import ReshardError, RunError, UsageError, named_ranks
from reshard.interruption import proceed

T = TypeVar("T")
_FEW_RANKS = 64  # of more, beats are rarer: each is some requests to a file server
_BEATS_A_TIMEOUT = 16


class _Seen(Struct):
    """What was last seen of a rank, and when it last changed."""

    word: Word
    beat_at: float
    progress_at: float


class Session:
    """One rank's part in a run. ``arrive`` and ``join`` first; ``wait`` for others; ``close`` in any case.

    Args:
        members: all ranks of the run; the first leads.
        about: what all ranks must agree on, as words or a hash.
        timeout_s: how long a rank may be silent.
    """

    def __init__(
        self, path: Path, rank: int, members: tuple[int, ...], about: str, timeout_s: float, meeting: Meeting | None
    ) -> None:
        self.rank, self.members, self.leader = rank, members, members[0]
        self._folder = RecordsFolder(path)
        self._timeout_s = timeout_s
        often_s = min(waits.now.beat_s, timeout_s / 4)
        self._beat_s = often_s if len(members) <= _FEW_RANKS else max(often_s, timeout_s / _BEATS_A_TIMEOUT)
        self._meeting = meeting
        self._word = Word(rank, os.urandom(8).hex(), this_process(), about)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._beating: threading.Thread | None = None
        self._generation: Generation | None = None
        self._seen: dict[int, _Seen] = {}
        self._looked_at = 0.0
        self._heard: RunError | None = None
        self._refusing: ReshardError | None = None

    @property
    def leads(self) -> bool:
        return self.rank == self.leader

    @property
    def _name(self) -> str:
        assert self._generation is not None, "join first"
        return self._generation.name

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(error)

    # --- beginning together

    def arrive(self) -> None:
        """Show that this rank is on its way: one killed before it joins is missed at once, not after the timeout."""
        self._earlier = Earlier(self._words())
        with suppress(ReshardError):  # ``join`` tells what is wrong with the folder
            self._say()

    def withdraw(self) -> None:
        """The opposite of ``arrive``, for a rank that has nothing to do together with others."""
        if self._is_ours():
            self._folder.withdraw(self.rank)

    def awaited(self) -> bool:
        """Whether others wait in the folder for this rank, which has arrived and not joined. Looks for some seconds."""
        first = self._words()
        until = time.monotonic() + waits.now.awaited_s + self._beat_s
        for _ in polls():
            for rank, word in self._words().items():
                here = word.joined and not word.left and (is_alive(word.process) or word != first.get(rank))
                if here and rank != self.rank:
                    return True
            if time.monotonic() > until:
                break
        return False

    def join(self, refusing: ReshardError | None = None) -> None:
        """Return when all ranks are here. Raises UsageError where the folder is not shared, RunError for one that is
        not coming or failed.

        Args:
            refusing: why this rank cannot begin. The others hear of it when they join, so that none begins.
        """
        self._refusing = refusing
        self._say(joined=True)
        self._beating = threading.Thread(target=self._beat, name="reshard beat", daemon=True)
        self._beating.start()
        if self._meeting:
            self._meeting.start(self._word)
        try:
            (self._gather if self.leads else self._follow)()
        finally:
            if self._meeting:
                self._meeting.stop()
        self._check_failures()

    def _agree(self, generation: str) -> None:
        if self._refusing:
            self._folder.fail(generation, Failure.of(self.rank, self._refusing))
        self._say(generation=generation)

    def _gather(self) -> None:
        """The leader's part: announce who is here, anew when a rank turns out to be another, until all have agreed."""
        until = time.monotonic() + self._timeout_s
        try:
            self._gather_until(until)
        except BaseException as error:
            patient = isinstance(error, ReshardError) and time.monotonic() < until
            self._give_up(error, waits.now.linger_s if patient else 0)
            raise
        self._agree(self._name)
        self._folder.forget_all_but(self._name)

    def _gather_until(self, until: float) -> None:
        announced: dict[int, str] = {}
        for _ in polls():
            words = self._words()
            self._check_gathering(words, late=time.monotonic() > until)
            if len(words) == len(self.members) and nonces(words) != announced:
                announced = nonces(words)
                self._announce(words)
            if announced and all(w.generation == self._name for r, w in words.items() if r != self.rank):
                return

    def _give_up(self, error: BaseException, linger_s: float) -> None:
        """Tell all why there will be no run, those too who come a little later: to them it would look like silence."""
        failure, announced = Failure.of(self.rank, error), None
        until = time.monotonic() + linger_s
        for _ in polls() if linger_s else pauses():
            words = self._words()
            if not self._is_ours():
                return  # another leader speaks for those who are here
            if nonces(words) != announced:
                announced = nonces(words)
                self._announce(words, failure)
            told = {r for r, w in words.items() if not self._earlier.has(w)}
            told |= self._meeting.told() if self._meeting else frozenset()
            if told.issuperset(self.members) or time.monotonic() > until:
                return

    def _words(self) -> dict[int, Word]:
        return {r: w for r in self.members if (w := self._folder.word(r))}

    def _check_gathering(self, words: dict[int, Word], *, late: bool) -> None:
        self._check_own()
        self._check_shared()
        for rank, word in words.items():
            if not self._earlier.has(word) and is_dead(word.process):
                raise ended(rank, word.process)
            if not self._earlier.has(word) and word.about != self._word.about:
                raise UsageError(
                    f"rank {rank} was started with other settings than rank {self.rank}",
                    str(self._folder.path.parent),
                    "start all ranks with the same YAML and options",
                )
        if late:
            raise self._late(words)

    def _late(self, words: dict[int, Word]) -> RunError:
        name = self._generation.name if self._generation else None
        here = {r for r, w in words.items() if not is_dead(w.process) and name in (None, w.generation)}
        absent = sorted(set(self.members) - here - {self.rank})
        heard = self._meeting.met() if self._meeting else frozenset()
        said = "; they did say hello over the network" if heard.issuperset(absent) else ""
        return RunError(
            f"{named_ranks(absent)} of {len(self.members)} did not come in {self._timeout_s:.0f} s{said}",
            str(self._folder.path.parent),
            "were all ranks started, and is output_dir the same folder for all? --peer-timeout waits longer",
        )

    def _announce(self, words: dict[int, Word], failure: Failure | None = None) -> None:
        self._generation = Generation(
            os.urandom(8).hex(),
            nonces(words),
            {r: w.process for r, w in words.items()},
            failure,
        )
        self._folder.announce(self._generation)

    def _follow(self) -> None:
        """The others' part: agree to the announcement that has our own nonce."""
        began = heard = time.monotonic()
        last: Word | None = None
        for _ in polls():
            found = self._folder.generation()
            if found and found.nonces.get(self.rank) == self._word.nonce and found != self._generation:
                if found.failure:
                    raise self._heard_of(found.failure)
                self._generation = found
                self._agree(found.name)
            if self._generation and self._begun():
                return
            self._check_own()
            self._check_shared()
            leader = self._folder.word(self.leader)
            if leader and last and leader != last:
                heard = time.monotonic()
            last = leader
            if leader and not self._earlier.has(leader) and is_dead(leader.process):
                raise ended(self.leader, leader.process)
            if time.monotonic() > max(heard, began) + self._timeout_s + waits.now.look_s:
                raise RunError(
                    f"rank {self.leader} did not come in {self._timeout_s:.0f} s",
                    str(self._folder.path.parent),
                    "was it started, and is output_dir the same folder for all? --peer-timeout waits longer",
                )

    def refuse_neighbours(self) -> None:
        """Where some ranks of a job begin alone: raises UsageError if those of another machine use the same folder."""
        for word in self._folder.words():
            if word.rank not in self.members and word.process.host != self._word.process.host:
                raise UsageError(
                    f"rank {word.rank} on {word.process.host} uses this output_dir too, and it converts by itself",
                    str(self._folder.path.parent),
                    "leave --per-node out where machines share the disk, or give each its own output_dir; "
                    f"if that was an earlier job, remove {self._folder.path}",
                )

    def _begun(self) -> bool:
        """Whether the leader went on: what it announced last is what all have agreed to."""
        leader = self._folder.word(self.leader)
        return leader is not None and leader.generation == self._name

    def _check_own(self) -> None:
        word = self._folder.word(self.rank)
        if word and word.nonce != self._word.nonce:
            raise UsageError(
                f"another process has taken the place of rank {self.rank} ({word.process})",
                str(self._folder.path.parent),
                "two jobs use one output_dir, or two processes one rank: give each its own",
            )

    def _check_shared(self) -> None:
        said = self._meeting.unshared() if self._meeting else ""
        if said:
            raise UsageError(
                f"output_dir is not one folder for all ranks: {said}",
                str(self._folder.path.parent),
                "put output_dir on a disk that all machines share; where there is none, give --per-node: "
                "each machine then makes the files of its own ranks, from a source that it sees",
            )

    # --- while the work goes on

    def tell(self, name: str, value: object) -> None:
        """Say something to the others, once and for all; nothing after an interruption, which raises
        KeyboardInterrupt.
        """
        proceed()
        self._folder.tell(self._name, name, value)

    def told(self, name: str, kind: type[T]) -> T | None:
        """What somebody told in this run; None where nobody has."""
        return self._folder.told(self._name, name, kind)

    def wait(self, ready: Callable[[], T | None]) -> T:
        """Wait until something is there. Raises RunError when a rank fails or is silent meanwhile."""
        for _ in polls():
            found = ready()
            if found is not None:
                return found
            self.proceed()
        raise AssertionError("polls have no end")

    def advance(self) -> None:
        """The work of this rank goes on."""
        with self._lock:
            self._word = structs.replace(self._word, progress=self._word.progress + 1)

    def proceed(self) -> None:
        """Part of this rank's work is done: show it, and stop if another rank has failed meanwhile, or interrupted."""
        proceed()
        self.advance()
        self.check()

    def check(self) -> None:
        """Raises RunError with the error of a rank that failed, or naming one that died or is silent."""
        with self._lock:  # writers' threads call this too
            if time.monotonic() - self._looked_at < waits.now.look_s:
                return
            self._looked_at = time.monotonic()
        self._check_failures()
        for rank, error in self._silent():
            self._folder.fail(self._name, Failure.of(rank, error, seen_by=self.rank))
            self._heard = error
            raise error
        self._check_own()

    def _check_failures(self) -> None:
        for failure in self._folder.failures(self._name):
            if failure.rank != self.rank:
                raise self._heard_of(failure)

    def _heard_of(self, failure: Failure) -> RunError:
        """What this rank says of another's error. It is not told as an error of this one."""
        message = failure.message
        if failure.seen_by is None:
            message = f"rank {failure.rank} failed (exit code {failure.exit_code}): {message}"
        self._heard = RunError(message, failure.where, failure.hint)
        return self._heard

    def _silent(self) -> Iterator[tuple[int, RunError]]:
        """Ranks that ended without a word, or say nothing. The leader looks at all, others at it and their machine."""
        assert self._generation is not None
        for rank, process in self._generation.processes.items():
            if rank == self.rank:
                continue
            dead = is_dead(process)
            if not (dead or self.leads or rank == self.leader):
                continue
            word = self._folder.word(rank)
            if word and word.left and word.nonce == self._generation.nonces[rank]:
                continue
            if dead:
                yield rank, ended(rank, process)
            elif word and (said := self._stalled(rank, word)):
                yield rank, RunError(f"rank {rank} ({process}) {said}", hint="is its machine or its disk hanging?")

    def _stalled(self, rank: int, word: Word) -> str:
        now = time.monotonic()
        seen = self._seen.setdefault(rank, _Seen(word, now, now))
        if word.beat != seen.word.beat:
            seen.beat_at = now
        if word.progress != seen.word.progress:
            seen.progress_at = now
        seen.word = word
        if now - seen.beat_at > self._timeout_s:
            return f"gave no sign of life for {now - seen.beat_at:.0f} s"
        if now - seen.progress_at > max(waits.now.stall_s, self._timeout_s):
            return f"lives, and got nothing done for {now - seen.progress_at:.0f} s"
        return ""

    # --- the end

    def close(self, error: BaseException | None = None) -> None:
        """Tell the others how this rank ended."""
        self._over.set()
        if self._beating:
            self._beating.join(waits.now.beat_s)  # one that hangs on a dead disk must not hold us
        try:
            if error and self._generation and error is not self._heard:
                self._folder.fail(self._name, Failure.of(self.rank, error))
            if self._beating and self._is_ours():
                self._say(left=True)
        except ReshardError:
            if not error:
                raise

    def _say(self, **changes: object) -> None:
        with self._lock:
            self._word = structs.replace(self._word, beat=self._word.beat + 1, **changes)
            self._folder.say(self._word)

    def _is_ours(self) -> bool:
        """Whether no other process has taken the place of this rank."""
        word = self._folder.word(self.rank)
        return word is None or word.nonce == self._word.nonce

    def _beat(self) -> None:
        while not self._over.wait(self._beat_s):
            try:
                if not self._is_ours():
                    return  # to write here would take it back
                self._say()
            except ReshardError:
                continue  # the disk may come back; others see the silence

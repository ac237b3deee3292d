"""Ray: calls that run anywhere in a cluster, heard of while they run, and made again when a worker or node is lost.

Ray starts processes, finds free ones and notices their end. It carries arguments and results; bytes of tensors never
pass through it. This is the one module that imports it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar
from uuid import uuid4

from msgspec import Struct, field

from reshard import waits
from reshard._version import __version__
from reshard.digits import number_in
from reshard.errors import CheckpointError, ReshardError, RunError, UsageError
from reshard.moving.task import OnBytes

_MADE_AGAIN = 3
_LOCAL_STORE_NBYTES = 100 << 20
_NOBODY_WAITS = "stopped: nobody waits for the result any more"

A = TypeVar("A")
R = TypeVar("R")
RayWork = Callable[[A, OnBytes], R]
"""Runs on a worker. It tells its progress; telling may raise, when nobody waits for the result any more."""


class RemoteCall(Struct, Generic[A], frozen=True):
    """``argument`` of a RayWork. ``node``: the id of the one node where it may run; empty for any."""

    number: int
    argument: A
    node: str = ""


class _Failed(Struct, frozen=True):
    """An error as a value, so that it arrives as it was raised."""

    error: ReshardError


class _Heard(Struct):
    """What a board heard of the calls of one run."""

    nbytes: dict[int, int] = field(default_factory=dict)
    heard: int = 0


class _Board:
    """The actor that workers tell their progress to. What it knows it hears again every second. As each is a process,
    a driver has one for all its runs.
    """

    def __init__(self) -> None:
        self._runs: dict[str, _Heard] = {}
        self._stopped: set[str] = set()

    def tell(self, run: str, number: int, nbytes: int) -> bool:
        """Bytes that a call has moved so far. Gives whether it shall stop."""
        if run not in self._stopped:
            told = self._runs.setdefault(run, _Heard())
            told.nbytes[number] = nbytes
            told.heard += 1
        return run in self._stopped

    def told(self, run: str) -> tuple[int, dict[int, int]]:
        """How often anything was told, and the bytes of each call."""
        told = self._runs.get(run, _Heard())
        return told.heard, told.nbytes

    def stop(self, run: str) -> frozenset[int]:
        """All of it shall stop. Gives those that have begun."""
        self._stopped.add(run)
        return frozenset(self._runs.pop(run, _Heard()).nbytes)


class Cluster:
    """A Ray cluster: ``auto`` is the one this machine belongs to, ``local`` one of this machine and process alone.

    Raises UsageError where Ray is not installed or there is no such cluster.
    """

    def __init__(self, address: str = "auto") -> None:
        self._ray = _imported()
        if not self._ray.is_initialized():
            self._connect(address)

    def _connect(self, address: str) -> None:
        _check_answers(address)
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        connect = partial(self._ray.init, address, **options)
        try:
            if address == "local":
                _call_to_last(partial(connect, include_dashboard=False, object_store_memory=_LOCAL_STORE_NBYTES))
            else:
                connect()
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise _no_cluster(address, error) from None

    def workers(self) -> int:
        """Tasks that run at once: one a core."""
        return int(self._ray.cluster_resources().get("CPU", 0))

    def nodes(self) -> dict[str, str]:
        """The id of each living node, by id, address and host name."""
        found = {}
        for node in self._ray.nodes():
            if node["Alive"]:
                names = (node["NodeID"], node["NodeManagerAddress"], node.get("NodeManagerHostname", ""))
                found.update({name: node["NodeID"] for name in names if name})
        return found

    def run(self, work: RayWork[A, R], calls: Iterable[RemoteCall[A]], on_bytes: OnBytes) -> Iterator[R]:
        """Give the results as they come. The first error stops all and is raised as it was; a lost worker is none.

        Raises RunError for a call that was lost too often, and where no worker of the cluster does anything.
        """
        running = _Running(self._ray, work, on_bytes)
        waiting = iter(calls)
        try:
            while running.submit(islice(waiting, max(2 * self.workers() - running.count, 1 - running.count, 0))):
                yield from running.results()
        finally:
            running.end()


class _Running(Generic[A, R]):
    """The calls under way."""

    def __init__(self, ray: Any, work: RayWork[A, R], on_bytes: OnBytes) -> None:
        self._ray = ray
        self._work = work
        self._on_bytes = on_bytes
        self._calls: dict[Any, RemoteCall[A]] = {}
        self._run = uuid4().hex
        self._board = _board(ray)
        self._carry_out = ray.remote(num_cpus=1, max_retries=_MADE_AGAIN, retry_exceptions=False)(_carry_out)
        self._done_nbytes = self._said_nbytes = 0
        self._of_calls: dict[int, int] = {}
        self._heard = -1
        self._last_s = time.monotonic()

    @property
    def count(self) -> int:
        return len(self._calls)

    def submit(self, calls: Iterable[RemoteCall[A]]) -> bool:
        """Begin calls; gives whether any is under way."""
        for call in calls:
            remote = self._carry_out
            if call.node:
                strategies = self._ray.util.scheduling_strategies
                remote = remote.options(
                    scheduling_strategy=strategies.NodeAffinitySchedulingStrategy(call.node, soft=False)
                )
            self._calls[remote.remote(__version__, self._work, call, self._run, self._board)] = call
        return bool(self._calls)

    def results(self) -> Iterator[R]:
        """Those that come within a second."""
        done, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=waits.now.ray_heard_s)
        for reference in done:
            call = self._calls.pop(reference)
            result = self._result(reference, call)
            self._done_nbytes += self._of_calls.pop(call.number, 0)
            self._last_s = time.monotonic()
            yield result
        self._hear()

    def _result(self, reference: Any, call: RemoteCall[A]) -> R:
        try:
            result, nbytes = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            where = f"on node {call.node[:8]} " if call.node else ""
            raise RunError(
                f"a task was lost {where}with its worker: {type(error).__name__}",
                hint="look at the nodes' logs (ray status; memory?), then run again with --resume",
            ) from error
        if isinstance(result, _Failed):
            raise result.error
        self._of_calls[call.number] = nbytes
        made: R = result
        return made

    def _hear(self) -> None:
        """Pass on the progress. Raises RunError where nothing is heard for long."""
        with suppress(self._ray.exceptions.RayError):  # the board may be starting again, on another node
            heard, told = self._ray.get(self._board.told.remote(self._run), timeout=waits.now.ray_heard_s)
            if heard != self._heard:
                self._heard, self._last_s = heard, time.monotonic()
            numbers = {call.number for call in self._calls.values()}
            self._of_calls |= {number: nbytes for number, nbytes in told.items() if number in numbers}
        total = self._done_nbytes + sum(self._of_calls.values())
        more = max(total - self._said_nbytes, 0)  # a call that begins again counts again from nothing
        self._on_bytes(more)
        self._said_nbytes += more
        if self._calls and time.monotonic() - self._last_s > waits.now.ray_patience_s:
            cores = self._ray.cluster_resources().get("CPU", 0)
            raise RunError(
                f"no worker of the cluster did anything for {waits.now.ray_patience_s:.0f} s; it has {cores:.0f} cores",
                hint="ray status says what is free; wait for other jobs to end, or add nodes",
            )

    def end(self) -> None:
        """Let what is under way clear up behind itself; queued calls are dropped."""
        with suppress(self._ray.exceptions.RayError):
            begun = self._ray.get(self._board.stop.remote(self._run), timeout=waits.now.ray_answer_s)
            if self._calls:
                for reference, call in self._calls.items():
                    if call.number not in begun:  # the others end at their next step
                        self._ray.cancel(reference, force=False, recursive=False)
                self._ray.wait(list(self._calls), num_returns=len(self._calls), timeout=waits.now.ray_ending_s)


def _board(ray: Any) -> Any:
    """The driver's: Ray ends an actor with the handle that it was made with, so that one is kept."""
    context = ray.get_runtime_context()
    driver = (context.get_job_id(), context.get_node_id())
    if driver not in _BOARDS:
        _BOARDS.clear()
        _BOARDS[driver] = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Board).remote()
    return _BOARDS[driver]


_BOARDS: dict[tuple[str, str], Any] = {}


def _carry_out(version: str, work: RayWork[A, R], call: RemoteCall[A], run: str, board: Any) -> tuple[R | _Failed, int]:
    """On a worker: the result and the bytes moved."""
    if version != __version__:
        return _Failed(UsageError(f"this node has reshard {__version__}, the driver {version}")), 0
    teller = _Teller(run, call.number, board)
    try:
        teller.on_bytes(0)
        return work(call.argument, teller.on_bytes), teller.nbytes
    except KeyboardInterrupt:
        return _Failed(RunError(_NOBODY_WAITS)), 0
    except CheckpointError as error:
        return _Failed(CheckpointError(error.message, error.where, _elsewhere())), 0
    except ReshardError as error:
        return _Failed(error), 0
    except Exception as error:
        return _Failed(RunError(f"{type(error).__name__}: {error}", hint="a bug in reshard")), 0
    finally:
        teller.close()


def _elsewhere() -> str:
    return (
        f"so on node {socket.gethostname()}: every node must see the source under this path; copies of it must have "
        "its times (cp -p, rsync -a), and nobody may write it meanwhile"
    )


class _Teller:
    """Tells the board every second that its call is alive and how far it came: first of all when it is made, so that
    whoever stops a run knows every call of it that does anything.
    """

    def __init__(self, run: str, number: int, board: Any) -> None:
        self._run = run
        self._number = number
        self._board = board
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._stopped = False
        self.nbytes = 0
        self._tell()
        self._thread = threading.Thread(target=self._go_on_telling, daemon=True)
        self._thread.start()

    def on_bytes(self, nbytes: int) -> None:
        with self._lock:
            self.nbytes += nbytes
        if self._stopped:
            raise RunError(_NOBODY_WAITS)

    def _tell(self) -> None:
        import ray

        with suppress(ray.exceptions.RayError):  # the board may be starting again
            self._stopped = ray.get(
                self._board.tell.remote(self._run, self._number, self.nbytes), timeout=waits.now.ray_answer_s
            )

    def _go_on_telling(self) -> None:
        while not self._ended.wait(waits.now.ray_heard_s):
            self._tell()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()


def _call_to_last(call: Callable[[], object]) -> None:
    """Call in a thread that lives as long as the process: what Ray starts ends with the thread that started it."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            call()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)
            threading.Event().wait()

    threading.Thread(target=run, name="reshard ray", daemon=True).start()
    done.result()


def _check_answers(address: str) -> None:
    """Ray would try for many minutes. Raises UsageError where nobody listens at ``host:port``."""
    host, _, text = address.removeprefix("ray://").partition("/")[0].rpartition(":")
    port = number_in(text)
    if host and port is not None:
        try:
            socket.create_connection((host.strip("[]"), port), waits.now.ray_answer_s).close()
        except (OSError, OverflowError) as error:
            raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> UsageError:
    return UsageError(
        f"no Ray cluster at {address!r}: {error}",
        hint="start one with ray start --head, give --address, or --address local for this machine alone",
    )


def _imported() -> Any:
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        raise UsageError("Ray is not installed", hint="pip install 'reshard[ray]'") from None
    return ray

"""A real Ray cluster of three nodes on this machine: the suite of executors, lost nodes, ranks of nodes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import reshard
from families.rows import CARRIED_OUT, FAMILIES
from families.steps import STEPS, kept_in
from making import array, read_file, same, tree, write_ranks, write_strategy
from ports import free_port
from reshard import Options
from reshard.cli.main import main
from reshard.errors import CheckpointError, RunError, StorageError, UsageError
from reshard.layout.tensor import Sharding
from reshard.moving.ray import Cluster, RemoteCall, _Board, _board
from reshard.moving.ray_tasks import RayExecutor
from reshard.moving.task import OnBytes, Settings
from reshard.ops.convert import bill_of, execute
from reshard.ops.observer import Observer
from reshard.ops.options import NodeRanks
from reshard.testing import ExecutorTests
from waiting import wait_until

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'reshard[ray]'")
cluster_utils = pytest.importorskip("ray.cluster_utils", reason="this Ray has no cluster for tests")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
STORE_NBYTES = 80 << 20
OWN_DISK = "/proc/self/cwd"


PROGRAM = str(Path(sys.executable).with_name("reshard"))
OLD, NEW = Sharding((2, 2), ((0,), ())), Sharding((4, 2), ((), (0,)), -1)


@pytest.fixture(scope="module")
def disks() -> dict[str, Path]:
    """By node: the folder that it was started in, which is its own disk for whoever writes to ``OWN_DISK``."""
    return {}


@pytest.fixture(scope="module")
def client_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def environment() -> Iterator[None]:
    """Workers find what tests import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
        # with it the threads of a fork crash now and then, before it runs Ray
        patch.setenv("GRPC_ENABLE_FORK_SUPPORT", "0")
        yield


@pytest.fixture(scope="module", autouse=True)
def nodes(
    environment: None, disks: dict[str, Path], client_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A head and two nodes of one core each; the driver belongs to the head."""
    here = Path.cwd()
    made = cluster_utils.Cluster()
    head = {
        "include_dashboard": False,
        "ray_client_server_port": client_port,
        "_system_config": {"health_check_period_ms": 1000, "health_check_failure_threshold": 15},
    }
    try:
        for number, arguments in enumerate((head, {}, {})):
            disk = tmp_path_factory.mktemp(f"node{number}")
            os.chdir(disk)
            disks[made.add_node(num_cpus=1, object_store_memory=STORE_NBYTES, **arguments).node_id] = disk
    finally:
        os.chdir(here)
    ray.init(made.address, log_to_driver=False, logging_level="error")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def cluster(nodes: Any) -> Cluster:
    return Cluster()


class TestRayExecutor(ExecutorTests):
    def executor(self, settings: Settings) -> RayExecutor:
        return RayExecutor(settings, Cluster(), 2, lambda nbytes: None)


class Work:
    """Three stages of four ranks, to become three of eight."""

    def __init__(self, folder: Path) -> None:
        full = {f"layers.{i}.{w}": array((16, 8), seed=3 * i + j) for i in range(3) for j, w in enumerate("abc")}
        stages = [[n for n in full if n.startswith(f"layers.{i}.")] for i in range(3)]
        old, new = ([dict.fromkeys(names, cut) for names in stages] for cut in (OLD, NEW))
        self.src = write_ranks(folder / "src", full, old)
        self.out = folder / "out"
        strategies = (str(write_strategy(folder / "old", old)), str(write_strategy(folder / "new", new)))
        self.options = Options(src_strategy=strategies[0], dst_strategy=strategies[1], fsync=False, engine="ray")
        reshard.convert(self.src, folder / "wanted", replace(self.options, engine="local"))
        self.wanted = tree(folder / "wanted")


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


def test_the_same_bytes_as_here(work: Work) -> None:
    done = reshard.convert(work.src, work.out, replace(work.options, verify=True))
    assert tree(work.out) == work.wanted
    assert done.written_nbytes == sum(map(len, work.wanted.values()))
    again = reshard.convert(work.src, work.out, replace(work.options, resume=True))
    assert (again.written_nbytes, again.skipped_files) == (0, 24)


def test_progress_adds_up(work: Work) -> None:
    class Heard(Observer):
        nbytes = 0

        def advance(self, nbytes: int) -> None:
            self.nbytes += nbytes

    heard = Heard()
    reshard.convert(work.src, work.out, work.options, heard)
    assert heard.nbytes == reshard.plan(work.src, work.out, work.options).tensor_nbytes


def test_an_error_comes_back_as_it_was_and_is_not_tried_again(cluster: Cluster, tmp_path: Path) -> None:
    tries = tmp_path / "tries"

    def full_disk(argument: str, on_bytes: OnBytes) -> None:
        with tries.open("a") as file:
            file.write("x")
        raise StorageError("no space: it is full", argument, "free some")

    with pytest.raises(StorageError) as caught:
        list(cluster.run(full_disk, [RemoteCall(0, "/somewhere")], lambda nbytes: None))
    error = caught.value
    assert (error.message, error.where, error.hint, error.exit_code) == (
        "no space: it is full",
        "/somewhere",
        "free some",
        4,
    )
    assert tries.read_text() == "x"


def test_a_worker_that_dies_is_replaced(cluster: Cluster, tmp_path: Path) -> None:
    def dies_once(path: str, on_bytes: OnBytes) -> str:
        if not Path(path).exists():
            Path(path).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    assert list(cluster.run(dies_once, [RemoteCall(0, str(tmp_path / "died"))], lambda nbytes: None)) == ["done"]


def test_a_call_that_kills_every_worker_is_given_up(cluster: Cluster) -> None:
    def dies(argument: None, on_bytes: OnBytes) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RunError, match="a task was lost with its worker"):
        list(cluster.run(dies, [RemoteCall(0, None)], lambda nbytes: None))


def test_a_driver_has_one_board_and_its_runs_are_told_apart(cluster: Cluster) -> None:
    first = _board(ray)
    ray.get(first.tell.remote("kept", 0, 5))
    assert _board(ray) == first
    del first
    time.sleep(1)
    assert ray.get(_board(ray).told.remote("kept")) == (1, {0: 5})
    board = _Board()
    assert not board.tell("first", 0, 5)
    assert board.stop("first") == {0}
    assert board.tell("first", 0, 6)
    assert not board.tell("second", 0, 7)
    assert (board.told("first"), board.told("second")) == ((0, {}), (1, {0: 7}))


def test_where_no_worker_is_free_the_wait_has_an_end(cluster: Cluster, shorten: Callable[..., None]) -> None:
    def slow(argument: None, on_bytes: OnBytes) -> None:
        raise AssertionError

    def hold() -> None:
        time.sleep(60)

    holding = [ray.remote(num_cpus=1)(hold).remote() for _ in range(3)]
    shorten(ray_patience_s=2.0)
    try:
        time.sleep(1)
        with pytest.raises(RunError, match="no worker of the cluster did anything for 2 s; it has 3 cores"):
            list(cluster.run(slow, [RemoteCall(0, None)], lambda nbytes: None))
    finally:
        for reference in holding:
            ray.cancel(reference, force=True)


def test_a_node_killed_midway_changes_nothing(
    work: Work, nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that is half written there is written again elsewhere, over what lies beside its files' names."""
    doomed = nodes.add_node(num_cpus=1, object_store_memory=STORE_NBYTES)
    its_id, half_done = doomed.node_id, tmp_path / "half done"

    def stalls(chore: Any, on_bytes: OnBytes) -> Any:
        import ray

        if ray.get_runtime_context().get_node_id() == its_id:
            path = Path(chore.settings.folder, chore.task.files[0].path + ".part")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"half" * 1000)
            half_done.touch()
            time.sleep(600)
        while not half_done.exists():  # the others leave it a task
            time.sleep(0.01)
        from reshard.moving.ray_tasks import _carry_out_task

        return _carry_out_task(chore, on_bytes)

    def kill() -> None:
        wait_until(half_done.exists)
        nodes.remove_node(doomed, allow_graceful=False)

    monkeypatch.setattr("reshard.moving.ray_tasks._carry_out_task", stalls)
    killing = threading.Thread(target=kill, daemon=True)
    killing.start()
    reshard.convert(work.src, work.out, work.options)
    killing.join(30)
    wait_until(lambda: its_id not in Cluster().nodes())
    assert tree(work.out) == work.wanted
    reshard.verify(work.out)


def test_each_node_writes_its_own_ranks_on_its_own_disk(work: Work, disks: dict[str, Path]) -> None:
    mapped = tuple(NodeRanks(frozenset(range(8 * i, 8 * i + 8)), node) for i, node in enumerate(disks))
    done = reshard.convert(work.src, f"{OWN_DISK}/own", replace(work.options, nodes_local=mapped, verify=True))
    assert done.verified_nbytes >= done.written_nbytes == sum(map(len, work.wanted.values()))
    for each in mapped:
        out = disks[each.node] / "own"
        its = {path: content for path, content in work.wanted.items() if int(path.split("/")[0][5:]) in each.ranks}
        assert tree(out) == its
        assert reshard.verify(out).ranks == 8
    shutil.rmtree(disks[mapped[1].node] / "own" / "rank_8")
    again = reshard.convert(work.src, f"{OWN_DISK}/own", replace(work.options, nodes_local=mapped))
    assert again.skipped_files == 23
    assert (disks[mapped[1].node] / "own" / "rank_8").exists()


def test_a_target_that_nodes_do_not_share_is_no_success(
    work: Work, shorten: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(ray_seen_s=0.5)
    monkeypatch.chdir(work.src.parent)
    with pytest.raises(RunError, match="a worker wrote it, and it is not seen here") as caught:
        reshard.convert(work.src, f"{OWN_DISK}/out", work.options)
    assert "--nodes-local" in caught.value.hint
    assert not (work.out / ".reshard" / "manifest.json").exists()


@pytest.mark.parametrize("own", [False, True])
def test_relative_paths_are_those_of_the_driver(
    work: Work, cluster: Cluster, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work.src.parent)
    (node, *_) = cluster.nodes().values()
    mapped = (NodeRanks(frozenset(range(24)), node),) if own else ()
    reshard.convert("src", "out", replace(work.options, nodes_local=mapped))
    assert tree(work.out) == work.wanted


def test_a_source_that_a_node_does_not_see_is_told_with_its_node(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work.src.parent)
    with pytest.raises(CheckpointError, match="no such file") as caught:
        reshard.convert(f"{OWN_DISK}/src", work.out, work.options)
    assert f"on node {socket.gethostname()}: every node must see the source" in caught.value.hint


def test_the_bill_counts_the_groups_of_the_cluster(work: Work) -> None:
    plan = reshard.plan(work.src, work.out, work.options)
    assert bill_of(plan, work.out, replace(work.options, engine="local")).tasks == 3
    bill = bill_of(plan, work.out, work.options)
    assert (bill.tasks, bill.workers) == (6, 2)  # of at most 24 files by 3 cores, twice


def test_a_call_of_a_node_runs_there_and_nowhere_else(cluster: Cluster) -> None:
    def where(argument: None, on_bytes: OnBytes) -> str:
        import ray

        return str(ray.get_runtime_context().get_node_id())

    alive = sorted(set(cluster.nodes().values()))
    found = list(cluster.run(where, [RemoteCall(i, None, node) for i, node in enumerate(alive)], lambda nbytes: None))
    assert sorted(found) == alive
    with pytest.raises(RunError, match="a task was lost on node aaaaaaaa with its worker"):
        list(cluster.run(where, [RemoteCall(0, None, "a" * 56)], lambda nbytes: None))


def test_a_map_that_does_not_fit_is_told_whole(work: Work, cluster: Cluster) -> None:
    node = sorted(cluster.nodes())[0]
    mapped = (NodeRanks(frozenset(range(12)), node), NodeRanks(frozenset({11}), "10.9.9.9"))
    with pytest.raises(UsageError) as caught:
        reshard.convert(work.src, work.out, replace(work.options, nodes_local=mapped))
    assert "no living node '10.9.9.9'" in caught.value.message
    assert f"rank 11 is on {node} and on 10.9.9.9" in caught.value.message
    assert "rank 12 is on no node" in caught.value.message
    assert not work.out.exists()


def test_the_command_line(work: Work, cluster: Cluster, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    strategies = ["--src-strategy", work.options.src_strategy, "--dst-strategy", work.options.dst_strategy]
    address = ray.get_runtime_context().gcs_address
    _program("convert", str(work.src), str(work.out), *strategies, "--engine", "ray", "--address", address)
    assert tree(work.out) == work.wanted
    node = sorted(cluster.nodes())[0]
    (tmp_path / "map").write_text(f"# all on one\n0-23 {node}\n")
    _program("convert", str(work.src), str(tmp_path / "local"), *strategies, "--engine", "ray", "--nodes-local",
             str(tmp_path / "map"))  # fmt: skip
    assert tree(tmp_path / "local") == work.wanted
    assert "24 files of 9 tensors" in capsys.readouterr().out


def _program(*argv: str) -> None:
    with suppress(SystemExit):
        main(list(argv))


def test_a_cluster_far_away(work: Work, client_port: int) -> None:
    """A driver that belongs to no node of it."""
    words = ("--src-strategy", work.options.src_strategy, "--dst-strategy", work.options.dst_strategy)
    far = ("--engine", "ray", "--address", f"ray://127.0.0.1:{client_port}")
    said = subprocess.run(
        [PROGRAM, "convert", work.src, work.out, *words, *far], capture_output=True, text=True, timeout=120, check=False
    )
    assert said.returncode == 0, said.stderr
    assert tree(work.out) == work.wanted


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_where_nobody_listens(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would try for many minutes."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", None)
    with pytest.raises(UsageError, match=r"no Ray cluster at .*127\.0\.0\.1:.*refused"):
        Cluster(address.format(free_port()))


def test_without_ray_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="Ray is not installed") as caught:
        Cluster()
    assert "reshard[ray]" in caught.value.hint


def test_without_a_cluster_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_cluster(*args: object, **options: object) -> None:
        raise ConnectionError("could not find any running Ray instance")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", no_cluster)
    with pytest.raises(UsageError, match="no Ray cluster at 'auto'") as caught:
        Cluster()
    assert "ray start --head" in caught.value.hint


@pytest.mark.parametrize("wrong", [{"engine": "spark"}, {"nodes_local": (NodeRanks(frozenset({0}), "a"),)},
                                   {"engine": "ray", "max_rate_nbytes": 5}])  # fmt: skip
def test_options_that_do_not_fit(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Options(**wrong)


@pytest.mark.parametrize("family", CARRIED_OUT)
def test_every_family(family: str, disks: dict[str, Path], tmp_path: Path) -> None:
    """By the workers of the cluster, and by each node for its own ranks: what one process makes."""
    made = FAMILIES[family](tmp_path / "row")
    options = made.options(tmp_path)
    reshard.convert(made.path, tmp_path / "here", options)
    reshard.convert(made.path, tmp_path / "there", replace(options, engine="ray"))
    nodes = [NodeRanks(frozenset(range(n, 4, len(disks))), node) for n, node in enumerate(disks)]
    own = Path(OWN_DISK) / tmp_path.name
    reshard.convert(made.path.absolute(), own, replace(options, engine="ray", nodes_local=tuple(nodes)))
    wanted = {name: content for name, content in tree(tmp_path / "here").items() if name.endswith(".safetensors")}
    found = tree(tmp_path / "there")
    apart = {name: content for disk in disks.values() for name, content in tree(disk / tmp_path.name).items()}
    assert wanted == {name: found[name] for name in wanted} == {name: apart[name] for name in wanted}


@pytest.mark.parametrize("name", list(STEPS))
def test_every_step(name: str, disks: dict[str, Path], tmp_path: Path) -> None:
    """As families go: by the workers of the cluster, and by each node for its own ranks."""
    step = STEPS[name](kept_in(tmp_path / "step"))
    (tensor,) = step.plan("out", Options()).tensors
    strategy = str(
        write_strategy(tmp_path / "s", [{tensor.name: Sharding((4,), ((0,), *((),) * (step.wanted.ndim - 1)))}])
    )
    options = Options(dst_strategy=strategy, format="safetensors", fsync=False, engine="ray")
    nodes = tuple(NodeRanks(frozenset(range(n, 4, len(disks))), node) for n, node in enumerate(disks))
    own = f"{OWN_DISK}/{tmp_path.name}"
    for out, its in ((str(tmp_path / "there"), options), (own, replace(options, nodes_local=nodes))):
        execute(step.plan(out, its), out, its, Observer())
    apart = {path: disk / tmp_path.name / path for disk in disks.values() for path in tree(disk / tmp_path.name)}
    for rank in range(4):
        path = f"rank_{rank}/checkpoint_{rank}.safetensors"
        for file in (tmp_path / "there" / path, apart[path]):
            (value,) = read_file(file).values()
            assert same(value, step.wanted[2 * rank : 2 * rank + 2])

"""ModelArts and object storage: the source at a URL, results sent to another; against a server that speaks S3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import golden, handed_over, source_of, write_yaml
from ranks import Ranks

from cloud.servers import S3, Files, ObjectServer
from golden.cases import Case
from making import differing, read_file, read_rank, same

pytest.importorskip("obstore", reason="object storage needs the extra 'cloud', which this environment leaves out")
WORLD = 8


@pytest.fixture(scope="module")
def bucket() -> Iterator[S3]:
    server = ObjectServer()
    yield server.bucket("weights")
    server.close()


def assert_ranks(case: Case, folder: Path, ranks: range) -> None:
    for rank in ranks:
        ours, wanted = read_rank(folder, rank), read_rank(case.expected, rank)
        assert differing(ours, wanted) == []
    assert len([*folder.glob("rank_*")]) == len(ranks)


def test_two_machines_of_modelarts(tmp_path: Path, ranks: Ranks, bucket: S3) -> None:
    """Slices at ``obs://`` become each machine's own on its own disk, and are mirrored, with keys as ModelArts has."""
    case = golden("dp2mp2pp2_to_dp1mp4pp2", tmp_path / "case")
    strategy = case.strategy("src")
    assert strategy
    bucket.put(case.folder / "src", "jobs/llama")
    bucket.put(strategy, "jobs/strategy")
    config = write_yaml(tmp_path / "run.yaml", "dp1mp4pp2", auto_trans_ckpt=False, npu_num_per_node=4)
    keys = ("--auto_trans_ckpt", "True", "--load_checkpoint", "obs://weights/jobs/llama", "--src_strategy",
            "obs://weights/jobs/strategy", "--remote_save_url=obs://weights/out")  # fmt: skip
    env = {"MA_JOB_DIR": "/home/ma-user", "S3_ACCESS_KEY_ID": "key", "S3_SECRET_ACCESS_KEY": "secret",
           "S3_ENDPOINT": f"http://127.0.0.1:{bucket.store.port}", "WORLD_SIZE": "8"}  # fmt: skip
    running = []
    for rank in range(WORLD):
        node = tmp_path / f"node_{rank // 4}"
        node.mkdir(exist_ok=True)
        running.append(ranks.start("--config", config, *keys, cwd=node, env={**env, "RANK": str(rank)}))
    ended = [r.ended() for r in running]
    assert [e.code for e in ended] == [0] * WORLD, "\n".join(e.said for e in ended)
    for node in range(2):
        made = Path(handed_over(tmp_path / f"node_{node}")["load_checkpoint"])
        assert made == tmp_path / f"node_{node}/output/transformed_checkpoint/llama"
        assert_ranks(case, made, range(4 * node, 4 * node + 4))
    there = bucket.keys("out/")
    below = "out/transformed_checkpoint/llama"
    assert {key for key in there if key.startswith(below)} == {
        *(f"{below}/rank_{r}/checkpoint_{r}.ckpt" for r in range(8)),
        *(f"{below}/transform_succeed_rank_{r}.txt" for r in (0, 4)),
    }
    assert "out/strategy/ckpt_strategy_rank_7.ckpt" in there
    for rank in range(WORLD):
        (tmp_path / "got.ckpt").write_bytes(bucket.get(f"{below}/rank_{rank}/checkpoint_{rank}.ckpt"))
        got, wanted = read_file(tmp_path / "got.ckpt"), read_rank(case.expected, rank)
        assert all(same(got[name], wanted[name]) for name in got)


def test_a_source_at_a_url_on_a_shared_disk(tmp_path: Path, ranks: Ranks, bucket: S3) -> None:
    case = golden("st_full_to_dp2mp4", tmp_path / "case")
    url = bucket.put(source_of(case), "llama.safetensors")
    config = write_yaml(tmp_path / "run.yaml", "dp2mp4", load_checkpoint=url, transform_process_num="auto")
    ended = ranks.run(WORLD, "--config", config, cwd=tmp_path, env=bucket.environment)
    assert [e.code for e in ended] == [0] * WORLD, ended[0].said
    assert_ranks(case, Path(handed_over(tmp_path)["load_checkpoint"]), range(WORLD))


def test_loading_from_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: S3) -> None:
    from reshard.auto import load

    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    case = golden("full_to_dp2mp4", tmp_path / "case")
    files = Files({"/llama.ckpt": source_of(case).read_bytes()})
    try:
        for url in (bucket.put(source_of(case), "llama.ckpt"), f"{files.url}/llama.ckpt"):
            config = write_yaml(tmp_path / "run.yaml", "dp2mp4", load_checkpoint=url)
            wanted = read_rank(case.expected, 5)
            ours = load(config, rank=5, world_size=WORLD)
            assert differing(ours, wanted) == []
    finally:
        files.close()


def test_machines_that_do_share_a_disk_must_not_convert_apart(tmp_path: Path, ranks: Ranks) -> None:
    case = golden("full_to_dp2mp4", tmp_path / "case")
    config = write_yaml(tmp_path / "run.yaml", "dp2mp4", load_checkpoint=str(source_of(case)), npu_num_per_node=4)
    there = tmp_path / "output/.reshard-auto/rank_7.json"  # as one of another machine leaves it
    there.parent.mkdir(parents=True)
    there.write_text(
        '{"rank": 7, "nonce": "x", "about": "", "process": {"host": "other", "space": "", "pid": 1, "began": ""}}'
    )
    running = [
        ranks.start("--config", config, "--per-node", cwd=tmp_path, env={"RANK": str(rank), "WORLD_SIZE": "8"})
        for rank in range(4)
    ]
    ended = [r.ended() for r in running]
    assert {e.code for e in ended} <= {2, 5}
    assert all("leave --per-node out" in e.said for e in ended)

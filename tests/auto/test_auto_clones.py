"""Jobs whose results lie on a file system that lets them share blocks with what they are made of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from jobs import handed_over, write_model, write_yaml
from ranks import Ranks

from making import read_file
from mounts import image, mounted
from reshard.target.manifest import read_manifest
from reshard.target.target_paths import Place

SIZES = {"hidden_size": 256, "vocab_size": 4096, "intermediate_size": 1024}


@pytest.mark.parametrize("writers", [1, 2])
def test_a_job_clones(tmp_path: Path, ranks: Ranks, writers: int) -> None:
    made = image(tmp_path / "image", 320 << 20, "xfs", "-m", "reflink=1")
    with mounted(tmp_path / "disk", "-o", "loop", made) as disk:
        keys = {"load_checkpoint": str(disk / "llama.safetensors"), "transform_process_num": writers}
        config = write_yaml(disk / "run.yaml", "dp2mp4", SIZES, load_ckpt_format="safetensors", **keys)
        write_model(disk / "llama.safetensors", config)
        ended = ranks.run(8, "--config", config, cwd=disk)
        assert [e.code for e in ended] == [0] * 8, "\n".join(e.said for e in ended)
        loaded = Path(handed_over(disk)["load_checkpoint"])
        files = read_manifest(Place.of(loaded, single=False)).files
        assert sum(file.shared_nbytes for file in files) > sum(file.nbytes for file in files) / 2
        full = read_file(disk / "llama.safetensors")
        part = read_file(next((loaded / "rank_1").glob("*.safetensors")))
        name = "model.tok_embeddings.embedding_weight"
        assert full[name][1024:2048].tobytes() == part[name].tobytes()
        os.sync()

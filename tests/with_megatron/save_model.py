"""``python save_model.py OUT GPT ARGS``: a GPTModel, as Megatron's ranks save it, in OUT/legacy and in OUT/dist.

Numbers depend on a tensor's key alone, so both hold the same, whatever the layout.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import zlib
from pathlib import Path
from typing import Any

sys.path.insert(0, os.environ["GOLDEN"])
import check_loads
import megatron_model as model
import torch

ITERATION = "iter_0000007"


def work(rank: int, world: int, out: str, gpt: dict[str, Any], told: dict[str, Any]) -> None:
    config, chunks = model.build(**gpt)
    names = ["model"] if len(chunks) == 1 else [f"model{number}" for number in range(len(chunks))]
    groups = {"dp_cp_group": model.ps.get_data_parallel_group(with_context_parallel=True)}
    with torch.no_grad():
        for chunk in chunks:
            shards = chunk.sharded_state_dict(metadata=groups)
            model.apply_factories(shards)
            for shard in model.nested_values(shards):
                if isinstance(shard, model.ShardedTensor):
                    random = torch.Generator().manual_seed(zlib.crc32(shard.key.encode()))
                    full = torch.randn(tuple(shard.global_shape), generator=random)
                    shard.data.copy_(full[model.gslice(shard)].reshape(shard.data.shape))
    args = argparse.Namespace(
        num_layers=config.num_layers,
        tensor_model_parallel_size=gpt.get("tp", 1),
        pipeline_model_parallel_size=gpt.get("pp", 1),
        expert_model_parallel_size=gpt.get("ep", 1),
        num_experts=config.num_moe_experts,
        moe_layer_freq=config.moe_layer_freq,
        num_attention_heads=4,
        num_query_groups=config.num_query_groups,
        params_dtype=torch.float32,
        **told,
    )
    common = {"args": args, "checkpoint_version": 3.0, "iteration": 7}
    place = Path(out, "legacy", ITERATION, folder_of_rank(gpt))
    place.mkdir(parents=True)
    held = {name: chunk.state_dict_for_save_checkpoint() for name, chunk in zip(names, chunks, strict=True)}
    torch.save({**common, **held}, place / "model_optim_rng.pt")
    if rank == 0:
        Path(out, "dist", ITERATION).mkdir(parents=True)
    torch.distributed.barrier()
    sharded = {name: chunk.sharded_state_dict(metadata=groups) for name, chunk in zip(names, chunks, strict=True)}
    model.dc.save({**common, **sharded}, str(Path(out, "dist", ITERATION)))


def folder_of_rank(gpt: dict[str, Any]) -> str:
    stage = f"_{model.ps.get_pipeline_model_parallel_rank():03d}" if gpt.get("pp", 1) > 1 else ""
    expert = f"_{model.ps.get_expert_model_parallel_rank():03d}" if gpt.get("ep", 1) > 1 else ""
    return f"mp_rank_{model.ps.get_tensor_model_parallel_rank():02d}{stage}{expert}"


if __name__ == "__main__":
    out, gpt, told = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    world = gpt.get("tp", 1) * gpt.get("pp", 1) * gpt.get("ep", 1)
    check_loads.run_ranks(work, world, out, gpt, told)

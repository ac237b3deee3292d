"""Plans of a 671B mixture of experts at full scale, from sparse files that hold headers alone.

    python bench/scale.py [RANKS ...] [ckpt | names | chunks]

A DeepSeek-V3-like model as MindFormers names it (stacked experts, with Adam states) on 64, 256 and 1,024 ranks, and as
one full checkpoint of 90 thousand tensors as Hugging Face names them. For each it makes the bill and one share of 16.
Then that checkpoint under other names, dequantised, and back. Nothing is read but headers. The last rows are a source
that no layout describes, a million chunks (irregular.py): from its catalog, and as a folder of PyTorch's with its
``.metadata``. ``names`` makes the rows of names alone, ``chunks`` the last ones alone.
"""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

import irregular
from checkpoints import write_sparse
from reshard.index import TensorSpec
from reshard.layout.tensor import Layout, Sharding
from reshard.strategy.file import LayoutItem
from reshard.strategy.protobuf import encode_layout, encode_made, write_protobuf

LAYERS, DENSE, EXPERTS = 61, 3, 256
HIDDEN, FFN, MOE_FFN, VOCAB, HEADS = 7168, 18432, 2048, 129280, 128
Q_LORA, KV_LORA, NOPE, ROPE = 1536, 512, 128, 64
SHARES = 16
PART_NBYTES = 5 << 30
HF_PARTS = 163
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Parallel:
    """``ep`` ranks of each stage share the experts; what replicas remain share the optimizer."""

    dp: int
    tp: int
    pp: int
    ep: int

    @property
    def devices(self) -> int:
        return self.dp * self.tp

    @property
    def world(self) -> int:
        return self.devices * self.pp

    def stage(self, layer: int) -> int:
        return min(max(layer, 0), LAYERS - 1) * self.pp // LAYERS

    def sharding(self, shape: Shape, kind: str) -> Sharding:
        """Kinds: column, row, whole, norm, experts."""
        if kind == "experts":
            return Sharding((self.devices // self.ep, self.ep), ((0,), *((),) * (len(shape) - 1)))
        cut = {"column": 0, "row": len(shape) - 1}.get(kind, -1)
        tensor_map = tuple((0,) if dim == cut else () for dim in range(len(shape)))
        shared = Sharding((self.dp, self.tp), tensor_map, 0 if kind == "norm" else -1)
        divides = all(size % parts == 0 for size, parts in zip(shape, shared.parts, strict=True))
        return shared if divides else Sharding((self.dp, self.tp), tensor_map)


_CONFIG = {
    "model_type": "deepseek_v3", "torch_dtype": "bfloat16", "hidden_size": HIDDEN, "vocab_size": VOCAB,
    "num_hidden_layers": LAYERS, "first_k_dense_replace": DENSE, "n_routed_experts": EXPERTS,
    "intermediate_size": FFN, "moe_intermediate_size": MOE_FFN, "num_attention_heads": HEADS,
    "q_lora_rank": Q_LORA, "kv_lora_rank": KV_LORA, "qk_nope_head_dim": NOPE, "qk_rope_head_dim": ROPE,
    "v_head_dim": NOPE, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}  # fmt: skip

LAYOUTS = {
    64: Parallel(dp=4, tp=4, pp=4, ep=16),
    128: Parallel(dp=16, tp=4, pp=2, ep=64),
    256: Parallel(dp=4, tp=8, pp=8, ep=32),
    512: Parallel(dp=32, tp=4, pp=4, ep=128),
    1024: Parallel(dp=8, tp=8, pp=16, ep=64),
    2048: Parallel(dp=64, tp=4, pp=8, ep=128),
}


def mindformers() -> Iterator[tuple[str, Shape, str, int]]:
    """Name, shape, kind of cut and layer of every weight and its Adam states."""
    for name, shape, kind, layer in _weights():
        yield name, shape, kind, layer
        yield f"adam_m.{name}", shape, kind, layer
        yield f"adam_v.{name}", shape, kind, layer


def _weights() -> Iterator[tuple[str, Shape, str, int]]:
    yield "model.tok_embeddings.embedding_weight", (VOCAB, HIDDEN), "column", -1
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        yield f"{at}attention.q2l_proj.weight", (Q_LORA, HIDDEN), "whole", i
        yield f"{at}attention.lq_norm.weight", (Q_LORA,), "norm", i
        yield f"{at}attention.l2q_nope_proj.weight", (HEADS * NOPE, Q_LORA), "column", i
        yield f"{at}attention.l2q_pe_proj.weight", (HEADS * ROPE, Q_LORA), "column", i
        yield f"{at}attention.kv2l_k_pe.weight", (ROPE, HIDDEN), "whole", i
        yield f"{at}attention.kv2l_latent_kv.weight", (KV_LORA, HIDDEN), "whole", i
        yield f"{at}attention.lkv_norm.weight", (KV_LORA,), "norm", i
        yield f"{at}attention.lkv2kv_k_nope.weight", (HEADS * NOPE, KV_LORA), "column", i
        yield f"{at}attention.lkv2kv_v.weight", (HEADS * NOPE, KV_LORA), "column", i
        yield f"{at}attention.wo.weight", (HIDDEN, HEADS * NOPE), "row", i
        yield from ((f"{at}{norm}.weight", (HIDDEN,), "norm", i) for norm in ("attention_norm", "ffn_norm"))
        shared, inner = ("", FFN) if i < DENSE else ("shared_experts.", MOE_FFN)
        yield from ((f"{at}feed_forward.{shared}{w}.weight", (inner, HIDDEN), "column", i) for w in ("w1", "w3"))
        yield f"{at}feed_forward.{shared}w2.weight", (HIDDEN, inner), "row", i
        if i >= DENSE:
            routed = f"{at}feed_forward.routed_experts."
            yield from ((f"{routed}ffn.{w}.weight", (EXPERTS, HIDDEN, MOE_FFN), "experts", i) for w in ("w1", "w3"))
            yield f"{routed}ffn.w2.weight", (EXPERTS, MOE_FFN, HIDDEN), "experts", i
            yield f"{routed}router.dense.weight", (EXPERTS, HIDDEN), "whole", i
            yield f"{routed}router.e_score_correction_bias", (EXPERTS,), "norm", i
    yield "model.norm_out.weight", (HIDDEN,), "norm", LAYERS
    yield "lm_head.weight", (VOCAB, HIDDEN), "column", LAYERS


def hugging_face() -> Iterator[tuple[str, Shape, str, int]]:
    """As the model was published: fp8 weights, each with the scales of its blocks."""
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN), "column", -1
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        matrices: dict[str, tuple[Shape, str]] = {
            "self_attn.q_a_proj": ((Q_LORA, HIDDEN), "whole"),
            "self_attn.q_b_proj": ((HEADS * (NOPE + ROPE), Q_LORA), "column"),
            "self_attn.kv_a_proj_with_mqa": ((KV_LORA + ROPE, HIDDEN), "whole"),
            "self_attn.kv_b_proj": ((HEADS * 2 * NOPE, KV_LORA), "column"),
            "self_attn.o_proj": ((HIDDEN, HEADS * NOPE), "row"),
        }
        for mlp, inner in [("mlp", FFN)] if i < DENSE else _experts():
            matrices |= {f"{mlp}.{w}_proj": ((inner, HIDDEN), "column") for w in ("gate", "up")}
            matrices[f"{mlp}.down_proj"] = ((HIDDEN, inner), "row")
        for name, (shape, kind) in matrices.items():
            yield f"{at}{name}.weight", shape, kind, i
            yield f"{at}{name}.weight_scale_inv", (-(-shape[0] // 128), -(-shape[1] // 128)), "norm", i
        if i >= DENSE:
            yield f"{at}mlp.gate.weight", (EXPERTS, HIDDEN), "whole", i
            yield f"{at}mlp.gate.e_score_correction_bias", (EXPERTS,), "norm", i
        norms = {"input_layernorm": HIDDEN, "post_attention_layernorm": HIDDEN,
                 "self_attn.q_a_layernorm": Q_LORA, "self_attn.kv_a_layernorm": KV_LORA}  # fmt: skip
        yield from ((f"{at}{name}.weight", (size,), "norm", i) for name, size in norms.items())
    yield "model.norm.weight", (HIDDEN,), "norm", LAYERS
    yield "lm_head.weight", (VOCAB, HIDDEN), "column", LAYERS


def _experts() -> list[tuple[str, int]]:
    return [("mlp.shared_experts", MOE_FFN), *((f"mlp.experts.{e}", MOE_FFN) for e in range(EXPERTS))]


def _dtype(name: str, *, hf: bool) -> str:
    if not hf:
        return "float32" if name.startswith("adam") else "bfloat16"
    return "float32" if name.endswith(("scale_inv", "bias")) else "float8_e4m3fn" if "proj" in name else "bfloat16"


def write_strategy(path: Path, parallel: Parallel, *, hf: bool) -> Path:
    """One file for each rank, as a job leaves them."""
    path.mkdir(parents=True)
    stages: list[dict[str, LayoutItem]] = [{} for _ in range(parallel.pp)]
    for name, shape, kind, layer in hugging_face() if hf else mindformers():
        stages[parallel.stage(layer)][name] = encode_layout(parallel.sharding(shape, kind))
    for number, layouts in enumerate(stages):
        content = write_protobuf([encode_made(number)], layouts, 1)
        for rank in range(number * parallel.devices, (number + 1) * parallel.devices):
            (path / f"ckpt_strategy_rank_{rank}.ckpt").write_bytes(content)
    return path


def write_ranks(path: Path, parallel: Parallel, suffix: str) -> Path:
    """The weight files of all ranks; those of a stage have the same header."""
    stages: list[dict[str, TensorSpec]] = [{} for _ in range(parallel.pp)]
    for name, shape, kind, layer in mindformers():
        shard = Layout(shape, parallel.sharding(shape, kind)).shard_shape
        stages[parallel.stage(layer)][name] = TensorSpec(_dtype(name, hf=False), shard)
    for rank in range(parallel.world):
        folder = path / f"rank_{rank}"
        folder.mkdir(parents=True)
        write_sparse(stages[rank // parallel.devices], folder / f"deepseek_rank_{rank}-1_100.{suffix}")
    return path


def write_full(path: Path) -> Path:
    """The parts of one full checkpoint."""
    tensors = {name: TensorSpec(_dtype(name, hf=True), shape) for name, shape, _, _ in hugging_face()}
    names = list(tensors)
    size = -(-len(names) // HF_PARTS)
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(_CONFIG))
    for i in range(0, len(names), size):
        part = {name: tensors[name] for name in names[i : i + size]}
        write_sparse(part, path / f"model-{i // size + 1:05d}-of-{HF_PARTS:05d}.safetensors")
    return path


@dataclass(frozen=True)
class Case:
    src: str
    src_strategy: str
    dst_strategy: str
    names: str = ""
    model: str = ""
    gate_up: str = ""


def measure(what: str, case: Case) -> dict[str, Any]:
    """In this process: its own processor time and memory; or dtype and shape of each tensor that is made."""
    from reshard.families.open_checkpoint import open_source
    from reshard.families.source import Source
    from reshard.names.wishes import Asked, Naming
    from reshard.ops.convert import bill_of, plan, plan_from
    from reshard.ops.options import Options
    from reshard.planning.shares import Share

    styles = Asked({"gate_up": case.gate_up} if case.gate_up else {})
    naming = Naming(dst=case.names, model=case.model, asked=styles, dequantize=case.names not in ("", "hf"))
    options = Options(case.src_strategy, case.dst_strategy, format="safetensors", naming=naming)
    if not case.dst_strategy:
        options = replace(options, max_shard_nbytes=PART_NBYTES)
    shares = [replace(options, share=Share(i, SHARES)) for i in range(SHARES)]
    began = time.process_time()
    made = plan(case.src, "out", shares[SHARES // 2] if what == "share" else options)
    if what == "specs":
        return {tensor.name: (tensor.spec.dtype, tensor.spec.shape) for tensor in made.tensors}
    bill = bill_of(made, "out", options)
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    found = {"seconds": seconds, "peak": peak, "json": len(made.to_json())}
    if what == "bill":
        found |= {"files": bill.source_files, "tensors": bill.tensors, "read": bill.read_nbytes / bill.needed_nbytes}
        if not case.names:
            source = open_source(Source(case.src, case.src_strategy))
            bills = [bill_of(plan_from(source, "out", share), "out", share) for share in shares]
            moved = [b.read_nbytes + b.written_nbytes for b in bills]
            found["balance"] = max(moved) * SHARES / sum(moved)
    return found


def run(what: str, case: Case) -> dict[str, Any]:
    """Measure in a process of its own."""
    arguments = [sys.executable, __file__, "--measure", what, *astuple(case)]
    done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def named(folder: Path, full: str, convention: str) -> None:
    """Rows of one convention: from Hugging Face's in parts, to the ranks of a job, and back."""
    in_parts = Case(full, "", "", convention)
    specs = {name: TensorSpec(dtype, tuple(shape)) for name, (dtype, shape) in run("specs", in_parts).items()}
    own = folder / f"{convention}.safetensors"
    write_sparse(specs, own)
    strategy = str(_strategy_of(specs, folder / f"strategy-{convention}", LAYOUTS[256]))
    show(f"fp8 → {convention}, in parts", in_parts)
    show(f"fp8 → {convention}, 256 ranks", Case(full, "", strategy, convention))
    style = "interleaved" if convention == "mcore" else ""  # MindFormers' own names have one way
    show(f"{convention} → Hugging Face, in parts", Case(str(own), "", "", "hf", f"{full}/config.json", style))
    own.unlink()


def _strategy_of(specs: dict[str, TensorSpec], path: Path, parallel: Parallel) -> Path:
    """Experts by their first dim, other matrices by rows."""
    path.mkdir()
    stages: list[dict[str, LayoutItem]] = [{} for _ in range(parallel.pp)]
    for name, spec in specs.items():
        layer = re.search(r"layers\.(\d+)\.", name)
        stage = parallel.stage(int(layer[1]) if layer else LAYERS if "norm" in name or "output" in name else -1)
        columns = "column" if len(spec.shape) == 2 and spec.shape[0] % parallel.tp == 0 else "norm"
        kind = "experts" if "experts." in name and len(spec.shape) > 1 and "shared" not in name else columns
        stages[stage][name] = encode_layout(parallel.sharding(spec.shape, kind))
    for rank in range(parallel.world):
        stage = rank // parallel.devices
        content = write_protobuf([encode_made(stage)], stages[stage], 1)
        (path / f"ckpt_strategy_rank_{rank}.ckpt").write_bytes(content)
    return path


def main(ranks: list[int], suffix: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix="reshard-scale-"))
    try:
        print(
            "| what | files | tensors | bill | peak | plan | reads | one share | peak | plan | largest / mean share |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|---|")
        if suffix == "chunks":
            show_chunks(folder)
            return
        full = str(write_full(folder / "full"))
        for n in ranks:
            src = str(write_ranks(folder / f"src{n}", LAYOUTS[n], suffix))
            old, new = (str(write_strategy(folder / f"s{n}-{m}", LAYOUTS[m], hf=False)) for m in (n, 2 * n))
            hf = str(write_strategy(folder / f"hf{n}", LAYOUTS[n], hf=True))
            show(f"{n:,} → {2 * n:,}", Case(src, old, new))
            show(f"{n:,} → 1, in parts", Case(src, old, ""))
            show(f"1 → {n:,}", Case(full, "", hf))
            shutil.rmtree(src)
        for convention in ("mcore", "mindformers"):
            named(folder, full, convention)
        if ranks:
            show_chunks(folder)
    finally:
        shutil.rmtree(folder)


def show_chunks(folder: Path) -> None:
    print(irregular.row(), flush=True)
    strategy = folder / "ranks.ckpt"
    cut = encode_layout(Sharding((24,), ((0,), ())))
    strategy.write_bytes(write_protobuf([encode_made(0)], dict.fromkeys(irregular.names(), cut), 1))
    dcp = str(folder / "dcp")
    subprocess.run(
        [sys.executable, irregular.__file__, "dcp", dcp], check=True
    )  # what a process took, its children say
    show("the same as DCP → 24", Case(dcp, "", str(strategy)))


def show(what: str, case: Case) -> None:
    """A line of the table."""
    bill, share = run("bill", case), run("share", case)
    cells = [what, f"{bill['files']:,}", f"{bill['tensors']:,}", f"{bill['seconds']:.1f} s", _mib(bill["peak"])]
    cells += [_mib(bill["json"]), f"{bill['read']:.2f} ×", f"{share['seconds']:.1f} s", _mib(share["peak"])]
    cells += [_mib(share["json"]), f"{bill['balance']:.2f}" if "balance" in bill else ""]
    print(f"| {' | '.join(cells)} |", flush=True)


def _mib(nbytes: float) -> str:
    return f"{nbytes / (1 << 20):,.1f} MiB"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], Case(*sys.argv[3:]))))
    else:
        counts = [int(n) for n in sys.argv[1:] if n.isdigit()]
        suffix = next((word for word in ("ckpt", "chunks") if word in sys.argv), "safetensors")
        main([] if "names" in sys.argv else counts or [64, 256, 1024], suffix)

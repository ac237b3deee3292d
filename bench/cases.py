"""The jobs that are timed, and the checkpoints that they read."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from checkpoints import Model, write_config, write_dcp, write_fsdp, write_full, write_lora, write_strategy, write_turned
from hub import MODELS, write_hub
from zero import write_zero

RESHARD = str(Path(sys.executable).with_name("reshard"))

_LAYOUTS = {
    "mp8": (1, 8, 1),
    "dp8": (8, 1, 1),
    "dp2mp2pp2": (2, 2, 2),
    "dp1mp4pp2": (1, 4, 2),
    "mp2pp3": (1, 2, 3),
    "mp4": (1, 4, 1),
}
"""Name → (dp, mp, pp)."""
_RECUT = "dp2mp2pp2 → dp1mp4pp2"


_TURNED = {"turned4k": ((4096, 14336),) * 6, "turned8k": ((8192, 28672), (28672, 8192))}
_SMALL = Model(layers=20, hidden=1024, ffn=2816, dtype="float32")


@dataclass(frozen=True)
class Case:
    """``argv`` after ``reshard``; ``{out}`` is the target, ``{name}`` an input.

    ``mindspore`` is Python that does the same, ``peft`` what ``with_peft.py`` takes for it and ``naive`` what
    ``naive.py`` does; ``fsync`` compares the default with cp and sync, else neither waits for the disk.
    """

    name: str
    argv: tuple[str, ...]
    fsync: bool = False
    mindspore: str = ""
    peft: tuple[str, ...] = ()
    naive: tuple[str, ...] = ()

    @property
    def writes(self) -> bool:
        return any(word.startswith("{out}") for word in self.argv)


class Inputs:
    """Checkpoints to read, made when a case first names them, and removed when the next case names others."""

    def __init__(self, folder: Path, model: Model) -> None:
        self._folder = folder
        self._model = model
        self.made: dict[str, Path] = {}

    def fill(self, argv: tuple[str, ...]) -> list[str]:
        """The arguments with ``{name}`` replaced by a path."""
        names = {m for a in argv for m in re.findall(r"^\{(.+)\}$", a)} - {"out"}
        for name in [n for n in self.made if n not in names]:
            remove(self.made.pop(name))
        for name in sorted(names):
            if name not in self.made:
                self.made[name] = self._make(name)
        return [str(self.made[a[1:-1]]) if a[1:-1] in self.made else a for a in argv]

    def remove(self) -> None:
        while self.made:
            remove(self.made.popitem()[1])

    def _of_megatron(self, name: str, layout: str) -> Path:
        full = write_full(self._model, self._folder / "whole.safetensors")
        words = ("--files", "8") if layout == "torch_dist" else ("--tp", "4", "--pp", "2")
        to = "torch_dist" if layout == "torch_dist" else "megatron"
        config = write_config(self._model, self._folder)
        argv = [RESHARD, "convert", str(full), str(self._folder / name), "--to", to, *words, "--model", config]
        subprocess.run([*argv, "--quiet", "--no-fsync"], check=True)
        remove(full)
        return self._folder / name

    def _of_hub(self, name: str, form: str, layout: str) -> Path:
        """Ranks under their own names."""
        whole, target = write_hub(MODELS[form], self._folder / "whole"), self._folder / name
        argv = [
            RESHARD,
            "convert",
            str(whole),
            str(target),
            "--dst-strategy",
            _hub_strategy(self._folder, form, layout),
        ]
        subprocess.run([*argv, "--quiet", "--no-fsync"], check=True)
        remove(whole)
        return target

    def _make(self, name: str) -> Path:
        if name.startswith("adapter"):
            _, where, rank, dtype = name.split("-")
            path = self._folder / f"{name}.safetensors"
            return write_lora(self._model, path, int(rank), dtype, everywhere=where == "all")
        if name.startswith("turned"):
            return write_turned(self._folder / name, _TURNED[name.removesuffix(".bin")])
        if name.startswith("zero"):
            return write_zero(_SMALL, self._folder / name, int(name[-1]), ranks=8)
        if name.startswith("small."):
            return write_full(_SMALL, self._folder / name)
        if name.startswith("full."):
            return write_full(self._model, self._folder / name)
        if name in MODELS:
            return write_hub(MODELS[name], self._folder / name)
        form, layout = name.split("-")
        if form in MODELS:
            return self._of_hub(name, form, layout)
        if form == "megatron":
            return self._of_megatron(name, layout)
        if form in ("fsdp", "dcp"):
            write = write_fsdp if form == "fsdp" else write_dcp
            return write(self._model, self._folder / name, int(layout))
        newer = form == "checkpoint2"
        full = write_full(self._model, self._folder / f"whole.{'safetensors' if newer else form}")
        target = self._folder / name
        argv = [RESHARD, "convert", str(full), str(target), "--dst-strategy", str(self._folder / "strategy" / layout)]
        argv += ["--to", "checkpoint2"] if newer else []
        subprocess.run([*argv, "--quiet", "--no-fsync", "--replicas", "link"], check=True)
        remove(full)
        return target


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def cases(folder: Path, model: Model) -> list[Case]:
    """Make the strategies, and say the jobs."""
    strategies = {
        name: str(write_strategy(model, folder / "strategy" / name, *sizes)) for name, sizes in _LAYOUTS.items()
    }
    made = [case for form in ("ckpt", "safetensors") for case in _conversions(form, folder, strategies)]
    newer = ("convert", "{checkpoint2-dp2mp2pp2}", "{out}")
    return [
        *made,
        _lora("LoRA merge, qkvo, rank 16", "{adapter-qkvo-16-bfloat16}"),
        _lora("LoRA merge, qkvo, rank 16, fp32 factors", "{adapter-qkvo-16-float32}"),
        _lora("LoRA merge, all linear, rank 64", "{adapter-all-64-bfloat16}"),
        Case("FSDP, 8 ranks → 1", ("convert", "{fsdp-8}", "{out}", "--to", "full", "--format", "safetensors")),
        Case("DCP of 8 ranks → 1", ("convert", "{dcp-8}", "{out}", "--to", "full", "--format", "safetensors")),
        Case("1 → DCP, 8 files", ("convert", "{full.safetensors}", "{out}", "--to", "dcp", "--files", "8")),
        Case(f"Checkpoint 2.0 {_RECUT}", (*newer, "--to", "checkpoint2", "--dst-strategy", strategies["dp1mp4pp2"])),
        Case(
            "Checkpoint 2.0 dp2mp2pp2 → Hugging Face",
            (*newer, "--dst-names", "hf", "--model", write_config(model, folder)),
        ),
        *_megatron(write_config(model, folder)),
        *_names(folder),
        Case("verify", ("verify", "{safetensors-mp8}")),
        Case("fingerprint", ("fingerprint", "{full.safetensors}")),
        *_families(),
    ]


def _lora(name: str, adapter: str) -> Case:
    merged = ("lora", "merge", "{full.safetensors}", "{out}", "--adapter", adapter, "--scaling", "2")
    naive = ("lora", "{full.safetensors}", "{out}", adapter)
    return Case(name, merged, peft=("{full.safetensors}", adapter), naive=naive)


def _megatron(config: str) -> list[Case]:
    """Other names and cuts in one pass; compared with the rows of the same cuts above."""
    written = ("convert", "{full.safetensors}", "{out}", "--model", config, "--to")
    read = ("{out}", "--weights-only", "--dst-names", "hf", "--model", config)
    return [
        Case("1 → Megatron tp8", (*written, "megatron", "--tp", "8")),
        Case("1 → Megatron torch_dist, 8 files", (*written, "torch_dist", "--files", "8")),
        Case("Megatron tp4 pp2 → Hugging Face", ("convert", "{megatron-tp4pp2}", *read)),
        Case("Megatron torch_dist → Hugging Face", ("convert", "{megatron-torch_dist}", *read)),
    ]


def _hub_strategy(folder: Path, model: str, layout: str) -> str:
    return str(write_strategy(MODELS[model], folder / "strategy" / f"{model}-{layout}", *_LAYOUTS[layout]))


def _names(folder: Path) -> list[Case]:
    """What fuses, turns and multiplies, each after the row of the same cut that does not."""
    hub, core, config = _hub_strategy(folder, "hub", "mp8"), _hub_strategy(folder, "core", "mp8"), _hub_config(folder)
    to_core, to_hub = ("--dst-names", "mcore"), ("--dst-names", "hf", "--model", config)
    styles = ("--qkv", "grouped", "--gate-up", "interleaved")
    parts, many = ("--max-shard-size", "200MiB"), _hub_strategy(folder, "hub_many_experts", "mp8")
    tiny, deep = (_hub_strategy(folder, model, "mp8") for model in ("hub_tiny_experts", "hub_deep"))
    experts = (*to_hub[:-1], _hub_config(folder, "core_experts"))
    return [
        Case("Hugging Face 1 → mp8, as it is", ("convert", "{hub}", "{out}", "--dst-strategy", hub)),
        Case("Hugging Face 1 → core mp8, fused", ("convert", "{hub}", "{out}", "--dst-strategy", core, *to_core)),
        Case("Hugging Face mp8 → 1, as it is", ("convert", "{hub-mp8}", "{out}", "--src-strategy", hub)),
        Case(
            "core mp8 → Hugging Face, parted",
            ("convert", "{core-mp8}", "{out}", "--src-strategy", core, *to_hub, *styles),
        ),
        Case("core 1 → 1, as it is", ("convert", "{core}", "{out}")),
        Case("core 1 → Hugging Face, parted", ("convert", "{core}", "{out}", *to_hub, *styles)),
        Case("experts, core 1 → 1, as they are", ("convert", "{core_experts}", "{out}")),
        Case("experts, Hugging Face → core, stacked and turned", ("convert", "{hub_experts}", "{out}", *to_core)),
        Case("experts, core → Hugging Face, turned", ("convert", "{core_experts}", "{out}", *experts, *styles)),
        Case("5,760 experts of 256 KiB, 1 → parts", ("convert", "{hub_many_experts}", "{out}", *parts)),
        Case("1 → parts", ("convert", "{hub}", "{out}", *parts)),
        Case("5,760 experts of 256 KiB, 1 → mp8", ("convert", "{hub_many_experts}", "{out}", "--dst-strategy", many)),
        *_synced_too("1.5 GB of large tensors, 1 → parts", ("convert", "{hub_deep}", "{out}", *parts)),
        *_synced_too("47,000 experts of 32 KiB, 1 → parts", ("convert", "{hub_tiny_experts}", "{out}", *parts)),
        *_synced_too("1.5 GB of large tensors, 1 → mp8", ("convert", "{hub_deep}", "{out}", "--dst-strategy", deep)),
        *_synced_too(
            "47,000 experts of 32 KiB, 1 → mp8", ("convert", "{hub_tiny_experts}", "{out}", "--dst-strategy", tiny)
        ),
        Case("matrices of 117 MB, turned", ("convert", "{turned4k.bin}", "{out}/model.safetensors")),
        Case("matrices of 470 MB, turned", ("convert", "{turned8k.bin}", "{out}/model.safetensors")),
        Case("fp8 by blocks → bf16", ("convert", "{hub_fp8}", "{out}", "--dequantize")),
        Case("int8 by channel → bf16", ("convert", "{hub_int8}", "{out}", "--dequantize")),
    ]


def _hub_config(folder: Path, model: str = "core") -> str:
    path = folder / f"{model}.json"
    path.write_text(json.dumps(MODELS[model].config()))
    return str(path)


def _families() -> list[Case]:
    """0.32 billion weights in fp32. What others saved takes no longer than a full checkpoint, and moments no time."""
    target = ("{out}/model.safetensors", "--weights-only")
    return [
        Case("0.3B fp32: full safetensors → full", ("convert", "{small.safetensors}", *target)),
        Case("0.3B fp32: pytorch_model.bin → full", ("convert", "{small.bin}", *target)),
        Case("0.3B fp32: ZeRO-2 of 8 ranks → full", ("convert", "{zero2}", *target)),
        Case("0.3B fp32: ZeRO-3 of 8 ranks → full", ("convert", "{zero3}", *target)),
    ]


def _conversions(form: str, folder: Path, s: dict[str, str]) -> list[Case]:
    def convert(name: str, a: str, b: str, *more: str, fsync: bool = False) -> Case:
        src = f"{{{form}-{a}}}" if a else f"{{full.{form}}}"
        argv = ["convert", src, "{out}", *more]
        argv += ["--src-strategy", s[a]] if a else []
        argv += ["--dst-strategy", s[b]] if b else []
        ms = ""
        if form == "ckpt" and a != "dp8" and not fsync and not more:  # of dp8 MindSpore takes eight times the memory
            ms = _transform(str(folder / f"{form}-{a}"), s[a], s.get(b, "")) if a else _transform_full(folder, s[b])
        sizes = (",".join(map(str, _LAYOUTS[x])) if x else "1" for x in (a, b))
        naive = ("cut", src, "{out}", *sizes) if form == "safetensors" and not fsync and not more else ()
        return Case(f"{form} {name}", tuple(argv), fsync, ms, naive=naive)

    unify = ("unify", f"{{{form}-mp8}}", "{out}", "--src-strategy", s["mp8"])
    unified = _unified(str(folder / f"{form}-mp8"), s["mp8"]) if form == "safetensors" else ""
    return [
        convert("1 → mp8", "", "mp8"),
        convert("1 → mp8, synced", "", "mp8", fsync=True),
        convert("1 → dp8, linked", "", "dp8", "--replicas", "link"),
        convert("mp8 → 1", "mp8", ""),
        convert("mp8 → 1, synced", "mp8", "", fsync=True),
        Case(f"{form} unify mp8", unify, mindspore=unified),
        convert(_RECUT, "dp2mp2pp2", "dp1mp4pp2"),
        convert("dp8 → mp8", "dp8", "mp8"),
        convert("mp2pp3 → mp4 (6 → 4)", "mp2pp3", "mp4"),
    ]


def _synced_too(name: str, argv: tuple[str, ...]) -> tuple[Case, Case]:
    return Case(name, argv), Case(f"{name}, synced", argv, fsync=True)


_MERGED = (
    "import mindspore as ms, os, tempfile\n"
    "def merged(d):\n"
    "    p = tempfile.mkdtemp() + '/s.ckpt'; ms.merge_pipeline_strategys(d, p); return p\n"
)


def _transform(src: str, a: str, b: str) -> str:
    target = f"merged({b!r})" if b else "None"
    return _MERGED + f"ms.transform_checkpoints({src!r}, '{{out}}', 'checkpoint_', merged({a!r}), {target})"


def _transform_full(folder: Path, b: str) -> str:
    return (
        _MERGED + "d = tempfile.mkdtemp(); os.mkdir(d + '/rank_0')\n"
        f"os.symlink({str(folder.resolve() / 'full.ckpt')!r}, d + '/rank_0/full.ckpt')\n"
        f"ms.transform_checkpoints(d, '{{out}}', 'checkpoint_', None, merged({b!r}))"
    )


def _unified(src: str, strategy: str) -> str:
    return _MERGED + f"ms.unified_safetensors({src!r}, merged({strategy!r}), '{{out}}')"

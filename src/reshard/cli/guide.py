"""What the program says when nothing was asked of it: three commands, for what one has and what one wants."""

from __future__ import annotations

GUIDE = """\
reshard: any checkpoint to any other, without the framework that wrote it.

  reshard inspect HAVE              what it is, whether it is whole, and commands for this very folder
  reshard convert HAVE WANT ...     read, cut, renamed and written in one pass
  reshard verify HAVE WANT          proof that WANT holds what HAVE holds

HAVE is recognised: a Hugging Face folder, one weight file, rank_x folders of MindSpore (--src-strategy),
MindFormers' Checkpoint 2.0, PyTorch DCP and FSDP, DeepSpeed ZeRO, Megatron-Core; s3:// and obs:// too.

WANT, and what is given with it:
  full.safetensors                                  one file; .ckpt and .bin as well
  model --to parts --dst-names hf --with-files      a folder that transformers loads
  ranks --dst-strategy STRATEGY                     the ranks of a MindSpore job
  saved --to checkpoint2 --dst-strategy STRATEGY    MindFormers' Checkpoint 2.0
  step-0 --to dcp                                   PyTorch: FSDP2, torchtitan
  release --to megatron --tp 2 --pp 2               Megatron-Core's rank folders
  universal --to universal                          DeepSpeed on other ranks, from DeepSpeed

More: reshard lora merge, diff, fingerprint, plan; reshard doctor HAVE for one that is broken.
reshard --help lists all commands, reshard convert --help its options."""

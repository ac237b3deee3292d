"""What a user says of a conversion, as the command line and the Python interface take it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from msgspec import Struct, field
from msgspec.structs import replace

from reshard.errors import UsageError
from reshard.families.found import Select, as_select
from reshard.families.source import Source
from reshard.families.strategies import read_strategy
from reshard.families.targets import PREFIX, AskedTarget
from reshard.layout.stages import Strategy
from reshard.names.wishes import HUB, MEGATRON, Naming
from reshard.planning.bill import BUFFERS_A_WORKER
from reshard.planning.catalog import Catalog
from reshard.planning.decide import Missing
from reshard.planning.names import NameRules
from reshard.planning.plan import SmallFile
from reshard.planning.shares import Share

_MAX_BLOCK_NBYTES = 16 << 20
_MAX_TURNED_BLOCK_NBYTES = 64 << 20
_MIN_BLOCK_NBYTES = 64 << 10
_RESERVED_NBYTES = 96 << 20
MOST_WORKERS = 1024

Engine = Literal["local", "ray"]
Reflink = Literal["auto", "always", "never"]


def _refuse_below(least: int, numbers: Mapping[str, int | None]) -> None:
    for option, number in numbers.items():
        if number is not None and number < least:
            raise UsageError(f"{option} {number}", hint=f"a number from {least}")


class NodeRanks(Struct, frozen=True):
    """Target ranks that are written on one node, named by its address, host name or Ray's id."""

    ranks: frozenset[int]
    node: str


class Means(Struct, frozen=True, kw_only=True):
    """By what means a plan is carried out, and where it finds something already. None of them changes a byte.

    Attributes:
        checksum: compute xxh3-128 of what is written, for the manifest.
        workers: threads; 0 for what suits the disks.
        max_rate_nbytes: write at most so many bytes a second.
        link_replicas: write equal files once and link the others.
        max_memory_nbytes: what the process may take; None for the default block size.
        engine: ``ray`` lets the nodes of a Ray cluster do the work; ``address`` says which cluster.
        nodes_local: each node writes its own ranks, to its own disk; empty where all nodes see the target.
    """

    checksum: bool = True
    fsync: bool = True
    workers: int = 0
    max_rate_nbytes: int | None = None
    link_replicas: bool = False
    max_memory_nbytes: int | None = None
    engine: Engine = "local"
    address: str = "auto"
    nodes_local: tuple[NodeRanks, ...] = ()
    resume: bool = False
    overwrite: bool = False
    verify: bool = False

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise UsageError("--resume and --overwrite contradict each other")
        if self.engine not in ("local", "ray"):
            raise UsageError(f"--engine {self.engine!r}", hint="one of: local, ray")
        if not 0 <= self.workers <= MOST_WORKERS:
            raise UsageError(
                f"--workers {self.workers}", hint=f"a number from 1 to {MOST_WORKERS}; as suits without it"
            )
        _refuse_below(1, {"--max-rate": self.max_rate_nbytes, "--max-memory": self.max_memory_nbytes})
        if self.engine == "ray" and self.max_rate_nbytes and not self.nodes_local:
            raise UsageError("--max-rate is of one process, and --engine ray has many")
        if self.nodes_local and (self.engine != "ray" or self.overwrite):
            raise UsageError("--nodes-local needs --engine ray and a target that is not there yet")

    @property
    def read_besides(self) -> tuple[str, ...]:
        """Paths of what is read beside the source."""
        return ()

    @property
    def spare_nbytes(self) -> int:
        """What ``max_memory_nbytes`` leaves beside the program itself; without it, no bound that matters."""
        return (self.max_memory_nbytes or 1 << 62) - _RESERVED_NBYTES

    def block_nbytes(self, workers: int, others_nbytes: int = 0, *, turned: bool = False) -> int:
        """The largest block that keeps the promise of ``max_memory_nbytes``, beside buffers of ``others_nbytes``; that
        is worth its memory, ``turned`` where dims change places.

        Raises UsageError when none does.
        """
        most = _MAX_TURNED_BLOCK_NBYTES if turned else _MAX_BLOCK_NBYTES
        if self.max_memory_nbytes is None:
            return most
        block = (self.spare_nbytes - others_nbytes) // (workers * BUFFERS_A_WORKER)
        if block < _MIN_BLOCK_NBYTES:
            least = _RESERVED_NBYTES + others_nbytes + workers * BUFFERS_A_WORKER * _MIN_BLOCK_NBYTES
            raise UsageError(f"--max-memory of {self.max_memory_nbytes:,} bytes is below the {least:,} needed")
        return min(block, most)


OF_MEGATRON = (MEGATRON, "torch_dist")


class Options(Means, frozen=True):
    """What a user says of a conversion, with the defaults of the command line: of the source, of the target, and by
    what means.

    Attributes:
        src_strategy, dst_strategy: a strategy, read or as file or folder; empty for one full checkpoint.
        family, iteration: of the source, where several are there (``--from``, ``--iteration``).
        frozen: a regular expression of the source's weights that were not trained (``--frozen``).
        to: the kind of the target (``--to``); empty for what strategy, target's name and source say.
        format: ``ckpt``, ``safetensors`` or ``torch``; empty for what the target's name or else the source says.
        ranks: make only these target ranks; None for all.
        share: make only this part of the target, as others make theirs; None for all.
        missing: ``drop`` leaves out tensors of which nobody can know what they should be.
        names: which tensors to take and what to call them.
        dtype: cast floating weights to this; optimizer states stay as they are.
        max_shard_nbytes: a full checkpoint of safetensors or torch files in parts of at most this, with an index.
        files: how many files of a target whose kind leaves it open; 0 for its own number.
        tp, pp, ep: tensor-, pipeline- and expert-parallel ranks of a target of Megatron's; 0 is 1.
        drop_redundancy: of equal shards one rank alone keeps its own, as MindSpore's training saves them.
        dst_iteration: the number that a target with iterations gets; None for the source's.
        release: of MindFormers, that shall read a Checkpoint 2.0; empty for what all releases read.
        check_replicas: read all replicas and refuse those that differ.
        crc: check the CRC-32 of sources that state one and write it into .ckpt targets.
        naming: the convention of names that the target gets.
        reflink: whether files of the target share blocks with the source's, where the file system can (``auto``), or it
            is an error (``always``). Safetensors files are laid out so that many can.
        along: small files that go into the target, as a configuration.
    """

    src_strategy: str | Strategy = ""
    dst_strategy: str | Strategy = ""
    to: str = ""
    format: str = ""
    prefix: str = PREFIX
    select: Select = "natural"
    suffix: str = ""
    family: str = ""
    iteration: int | None = None
    frozen: str = ""
    ranks: frozenset[int] | None = None
    share: Share | None = None
    missing: Missing = "error"
    names: NameRules = field(default_factory=NameRules)
    dtype: str = ""
    max_shard_nbytes: int | None = None
    files: int = 0
    tp: int = 0
    pp: int = 0
    ep: int = 0
    drop_redundancy: bool = False
    dst_iteration: int | None = None
    release: str = ""
    check_replicas: bool = False
    crc: bool = False
    naming: Naming = field(default_factory=Naming)
    reflink: Reflink = "auto"
    along: tuple[SmallFile, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reflink not in ("auto", "always", "never"):
            raise UsageError(f"--reflink {self.reflink!r}", hint="one of: auto, always, never")
        if self.share and self.overwrite:
            raise UsageError("--share and --overwrite contradict each other", hint="remove the old target first")
        if self.share and self.ranks is not None:
            raise UsageError("--share and --ranks contradict each other", hint="a share is of all ranks")
        if min(self.tp, self.pp, self.ep) < 0:
            raise UsageError(f"--tp {self.tp} --pp {self.pp} --ep {self.ep}", hint="numbers from 1")
        _refuse_below(1, {"--max-shard-size": self.max_shard_nbytes})
        _refuse_below(0, {"--dst-iteration": self.dst_iteration})
        as_select(self.select)

    @property
    def read_besides(self) -> tuple[str, ...]:
        naming = self.naming
        said = (self.src_strategy, self.dst_strategy, naming.model, naming.src_model, naming.dst_model)
        return tuple(path for path in said if isinstance(path, str) and path)

    def naming_of(self, source: Catalog) -> Naming:
        """What is to be done with names: Megatron's targets have their own, which its own saves have, too; what goes
        along with Hugging Face's names is of a model that has them.

        Raises UsageError for other names.
        """
        naming = self.naming
        if self.to not in OF_MEGATRON:
            if naming.transformer_impl:
                said = f"--transformer-impl {naming.transformer_impl}, and no names of Megatron's are written"
                raise UsageError(said, hint="--to megatron or --to torch_dist")
            return _as_files_are(naming, source) if naming.files and not naming.dst else naming
        if naming.dst not in ("", MEGATRON):
            raise UsageError(f"--to {self.to}, and --dst-names {naming.dst}", hint="leave --dst-names out")
        unwrapped = source.kind == MEGATRON and not any(name.startswith("model.") for name in source.tensors)
        if self.to != MEGATRON and unwrapped:
            if naming.transformer_impl not in ("", source.args.get("transformer_impl")):
                said = (
                    f"--transformer-impl {naming.transformer_impl}: a save of Megatron's keeps its keys in torch_dist"
                )
                raise UsageError(said, hint="leave it out, or --to megatron")
            return naming
        return replace(naming, dst=MEGATRON, ranks=(self.tp or 1) if self.to == MEGATRON else 0)

    def source(self, path: str | Path) -> Source:
        """The source at this path."""
        return Source(str(path), self.src_strategy, self.select, self.suffix, self.family, self.iteration, self.frozen)

    def asked(self, single: str) -> AskedTarget:
        """What is said of the target's files; ``single`` is its name, where it is to be one file."""
        return AskedTarget(
            single=single,
            to=self.to,
            strategy=read_strategy(self.dst_strategy) if self.dst_strategy else None,
            format=self.format,
            crc=self.crc,
            prefix=self.prefix,
            max_shard_nbytes=self.max_shard_nbytes,
            drop_redundancy=self.drop_redundancy,
            along=self.along,
            files=self.files,
            tp=self.tp,
            pp=self.pp,
            ep=self.ep,
            iteration=self.dst_iteration,
            release=self.release,
        )


def _as_files_are(naming: Naming, source: Catalog) -> Naming:
    """A configuration goes with its own names, and with those of a model that nobody knows: they stay as they are."""
    from reshard.names.naming import convention_of  # with all recipes

    return replace(naming, dst=HUB) if convention_of(source.tensors) == HUB else naming

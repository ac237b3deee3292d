"""reshard auto."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from reshard.cli.environment import original
from reshard.cli.output import say, say_json, warn
from reshard.cli.params import Json, Quiet, means_of
from reshard.errors import UsageError
from reshard.streams import put

_COMMAND = "reshard.command"
_CONFIG = "{config}"


ConfigPath = Annotated[str, typer.Option("--config", metavar="run.yaml", help="The job's MindFormers YAML.")]
Rank = Annotated[int | None, typer.Option(metavar="R", min=0, help="This process. Default: as the launcher says.")]
World = Annotated[int | None, typer.Option(metavar="N", min=1, help="Processes. Default: as the launcher says.")]
DstStrategy = Annotated[
    str,
    typer.Option("--dst-strategy", metavar="P", help="The job's strategy. Default: output/strategy, or the YAML's."),
]
Version = Annotated[str, typer.Option("--mindformers-version", metavar="1.6.0", help="Whose rules; the newest.")]
PerNode = Annotated[
    bool, typer.Option("--per-node", help="Each machine makes the files of its own ranks, on its own disk.")
]
PeerTimeout = Annotated[float, typer.Option(metavar="S", help="How long another rank may be silent.")]
HelloPort = Annotated[
    int | None, typer.Option(metavar="PORT", min=0, help="Of rank 0, to ask whether the disk is shared; 0: do not ask.")
]
Workers = Annotated[str, typer.Option(metavar="N|auto", help="Threads of each process that writes.")]
MaxMemory = Annotated[str, typer.Option(metavar="2GiB", help="Each process that writes stays below.")]
MaxRate = Annotated[str, typer.Option(metavar="500MiB/s", help="Each process writes no faster.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be converted, from where, by whom.")]
NoFsync = Annotated[bool, typer.Option("--no-fsync", help="Faster; a power cut may lose files.")]


class AutoCommand(TyperCommand):
    """Keeps what comes after ``--``, the job's own command, apart."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta[_COMMAND], args = args[at + 1 :], args[:at]
        return super().parse_args(ctx, args)


SETTINGS = {
    "cls": AutoCommand,
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
}


def auto(
    context: typer.Context,
    config: ConfigPath,
    rank: Rank = None,
    world_size: World = None,
    dst_strategy: DstStrategy = "",
    mindformers_version: Version = "",
    per_node: PerNode = False,
    peer_timeout: PeerTimeout = 120.0,
    hello_port: HelloPort = None,
    workers: Workers = "auto",
    max_memory: MaxMemory = "",
    max_rate: MaxRate = "",
    no_fsync: NoFsync = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> Callable[[], None] | None:
    """Start a job: its weights become each rank's own, then its command runs.

    Every rank calls it, under any launcher. --KEY VALUE sets a key of the YAML, as ModelArts passes hyper-parameters.

    \b
    reshard auto --config run.yaml -- python train.py --config {config}
    reshard auto --config run.yaml --rank 3 --world-size 8
    """
    from reshard.auto.config import parse_changes
    from reshard.auto.preparing import Call, prepare
    from reshard.cli.progress import observer

    command = _command(context.meta.get(_COMMAND))
    call = Call(
        changes=parse_changes(context.args),
        dst_strategy=dst_strategy,
        mindformers_version=mindformers_version,
        per_node=per_node,
        peer_timeout_s=peer_timeout,
        hello_port=hello_port,
        goes_on=bool(command),
        dry_run=dry_run,
        limits=means_of({"workers": workers, "max_memory": max_memory, "max_rate": max_rate, "no_fsync": no_fsync}),
    )
    done = prepare(config, rank=rank, world_size=world_size, call=call, observer=observer(quiet=quiet or json))
    warn(done.warnings)
    if json:
        say_json(done)
    elif not quiet:
        say("\n".join((*done.said, *[f"start with {done.config}"] * bool(done.config))))
    starts = command and not dry_run and done.action != "strategy"
    return partial(_become, [word.replace(_CONFIG, done.config) for word in command]) if starts else None


def _command(words: list[str] | None) -> list[str]:
    """The job's command, checked before anything is written. Raises UsageError."""
    if words is None:
        return []
    if not words:
        raise UsageError("no command after --", hint="reshard auto … -- python train.py --config {config}")
    if shutil.which(words[0]) is None:
        raise UsageError(
            f"{words[0]!r}: no such command", hint="what comes after -- is started once the weights are there"
        )
    if not any(_CONFIG in word for word in words):
        warn([f"the command after -- does not say {_CONFIG}: see that it starts with output_dir/reshard_run.yaml"])
    return words


def _become(command: list[str]) -> None:
    """The job takes this process's place: signals reach it, and its exit code is the process's."""
    for name in ("stdout", "stderr"):
        put(name, flush=True)
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python; what is ignored stays so in the job
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, original())
    except OSError as error:
        raise UsageError(f"{command[0]!r} cannot be started: {error.strerror}") from None

"""reshard verify."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from reshard.cli.output import say, say_json, warn
from reshard.cli.params import (
    CHOOSING,
    NAMES,
    READING,
    Json,
    Quiet,
    are_said,
    name_rules,
    naming_of,
    source_given,
    takes,
)
from reshard.cli.progress import observer
from reshard.cli.text import shown_nbytes
from reshard.errors import UsageError, counted

if TYPE_CHECKING:
    from reshard.ops.diff import Comparison

_SHOWN = 8


@takes("src_strategy", "dst_strategy", "dtype", *CHOOSING, *READING, *NAMES)
def verify(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="[SRC] DST", help="DST alone: against its manifest. Both: against SRC."),
    ],
    dst_from: Annotated[str, typer.Option(metavar="FAMILY", help="What DST is, where that is ambiguous.")] = "",
    json: Json = False,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Prove that DST is as it was written, or that it holds exactly SRC, whatever the layouts.

    \b
    reshard verify out
    reshard verify llama.ckpt out --dst-strategy strategy/
    reshard verify megatron qwen3/ --dst-names hf --model qwen3/config.json
    """
    if len(paths) == 1:
        if dst_from or are_said(options):
            raise UsageError("these options are for the comparison with SRC", hint="give SRC and DST")
        _against_manifest(paths[0], json=json, quiet=quiet)
        return
    if len(paths) != 2:
        raise UsageError("give DST, or SRC and DST")
    from reshard.dtypes import ALIASES
    from reshard.families.source import Source
    from reshard.ops.diff import verify_content

    result = verify_content(
        source_given(paths[0], options["src_strategy"], options),
        Source(paths[1], options["dst_strategy"], family=dst_from),
        name_rules(options),
        ALIASES.get(options["dtype"], options["dtype"]),
        observer(quiet=quiet or json),
        naming_of(options),
    )
    _tell(result, paths, json=json, quiet=quiet)


def _tell(result: Comparison, paths: list[str], *, json: bool, quiet: bool) -> None:
    warn(result.warnings)
    if json:
        say_json(result)
    elif not quiet:
        compared = f"{counted(result.tensors, 'tensor')}, {shown_nbytes(result.nbytes)}"
        say(f"{paths[1]} holds exactly {paths[0]}: {compared} compared, all equal")


def _against_manifest(dst: str, *, json: bool, quiet: bool) -> None:
    from reshard.ops.verify import is_of_another
    from reshard.ops.verify import verify as read_again

    if is_of_another(dst):
        _tiled(dst, json=json, quiet=quiet)
        return
    done = read_again(dst, observer(quiet=quiet or json))
    if done.unlisted:
        more = f" and {len(done.unlisted) - _SHOWN} more" if len(done.unlisted) > _SHOWN else ""
        warn((f"not in the manifest, and not compared: {', '.join(done.unlisted[:_SHOWN])}{more}",))
    if json:
        say_json(done)
    elif not quiet:
        partial = f"; {done.ranks} of {done.world} ranks were made so far" if done.ranks < done.world else ""
        say(f"{dst}: {counted(done.files, 'file')}, {shown_nbytes(done.nbytes)}, all as written{partial}")


def _tiled(dst: str, *, json: bool, quiet: bool) -> None:
    from reshard.families.source import Source
    from reshard.ops.verify import verify_tiled

    found = verify_tiled(Source(dst))
    warn(found.warnings)
    if json:
        say_json(found)
    elif not quiet:
        say(
            f"{dst}: {found.family}; {counted(found.tensors, 'tensor')}, {shown_nbytes(found.nbytes)}, whole in "
            f"{counted(found.files, 'file')}; the sums that they state fit. That values are right, nothing here proves"
        )

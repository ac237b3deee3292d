"""reshard fingerprint."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from reshard.cli.output import say, say_json, warn
from reshard.cli.params import CHOOSING, NAMES, READING, Json, Quiet, name_rules, naming_of, source_given, takes
from reshard.cli.text import shown_nbytes
from reshard.errors import counted


@takes(*CHOOSING, *READING, *NAMES)
def fingerprint(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Checkpoint of any family: its file, folder or URL.")],
    strategy: Annotated[str, typer.Option(metavar="P", help="The strategy that it was saved with.")] = "",
    tensors: Annotated[bool, typer.Option("--tensors", help="Also the number of every tensor.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Give a number of the content: the same for any layout, format, number of ranks and replicas; with --dst-names
    for any convention of names.

    \b
    reshard fingerprint ckpt --strategy strategy/
    reshard fingerprint model.safetensors --tensors
    reshard fingerprint megatron --dst-names hf --model config.json      as of the Hugging Face folder
    """
    from reshard.cli.progress import observer
    from reshard.ops.fingerprint import fingerprint as number

    source, shown = source_given(path, strategy, options), observer(quiet=quiet or json)
    found = number(source, rules=name_rules(options), observer=shown, naming=naming_of(options))
    warn(found.warnings)
    if json:
        say_json(found)
        return
    if tensors:
        width = max((len(t.name) for t in found.tensors), default=0)
        for t in found.tensors:
            say(f"{grouped(t.number)}  {t.name.ljust(width)}  {t.dtype}{list(t.shape)}")
    say(f"{grouped(found.number)}  {path}: {counted(len(found.tensors), 'tensor')}, {shown_nbytes(found.nbytes)}")
    if found.weights != found.number:
        say(f"{grouped(found.weights)}  without optimizer states and gradients")


def grouped(number: str) -> str:
    """A number as one reads it out.

    >>> grouped("0123456789abcdef")
    '0123-4567-89ab-cdef'
    """
    return "-".join(number[i : i + 4] for i in range(0, len(number), 4))

"""reshard names."""

from __future__ import annotations

from typing import Any

from reshard.cli.output import say, say_json, warn
from reshard.cli.params import (
    Exclude,
    From,
    Include,
    Iteration,
    Json,
    Rename,
    Src,
    SrcStrategy,
    name_rules,
    naming_of,
    numbered,
    takes_names_options,
)


@takes_names_options()
def names(
    src: Src,
    src_strategy: SrcStrategy = "",
    include: Include = None,
    exclude: Exclude = None,
    rename: Rename = None,
    family: From = "",
    iteration: Iteration = -1,
    json: Json = False,
    **options: Any,
) -> None:
    """Say what each tensor of SRC becomes under the names of another convention, and by which rule.

    \b
    reshard names qwen3/ --dst-names mcore
    reshard names ckpt --src-strategy strategy/ --dst-names hf --model run.yaml
    """
    from reshard.ops.names import lines, told
    from reshard.ops.options import Options

    naming = naming_of({**options, "dst_names": options["dst_names"] or "hf"})
    given = Options(
        src_strategy=src_strategy,
        family=family,
        iteration=numbered(iteration),
        names=name_rules(include, exclude, rename),
        naming=naming,
    )
    found = told(src, given, guess=not options["dst_names"])
    warn(found.warnings)
    if json:
        say_json(found)
    else:
        say("\n".join((f"{src}: names of {found.src}, as {found.dst} has them", *lines(found))))

"""reshard names."""

from __future__ import annotations

from typing import Any

from reshard.cli.output import say, say_json, warn
from reshard.cli.params import NAMES, Json, Src, conversion_options, takes


@takes("src_strategy", "include", "exclude", "rename", "family", "iteration", "frozen", *NAMES)
def names(
    src: Src,
    json: Json = False,
    **options: Any,
) -> None:
    """Say what each tensor of SRC becomes under the names of another convention, and by which rule.

    \b
    reshard names qwen3/ --dst-names mcore
    reshard names ckpt --src-strategy strategy/ --dst-names hf --model run.yaml
    """
    from reshard.ops.names import lines, told

    given = conversion_options({**options, "dst_names": options["dst_names"] or "hf"})
    found = told(src, given, guess=not options["dst_names"])
    warn(found.warnings)
    if json:
        say_json(found)
    else:
        say("\n".join((f"{src}: names of {found.src}, as {found.dst} has them", *lines(found))))

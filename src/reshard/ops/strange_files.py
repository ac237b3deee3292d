"""Files in a target that no conversion wrote: whoever replaces it hears of them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from reshard.errors import counted, listed
from reshard.formats.registry import format_of
from reshard.target.target_paths import META

_MADE = re.compile(r".*\.index\.json|param_name_map\.json|transform_(succeed|failed)_rank_\d+\.txt")


def lost_with(target: str | Path) -> tuple[str, ...]:
    """A warning where files that are none that a conversion leaves go with a target that is replaced."""
    found = []
    for where, folders, names in os.walk(target):
        folders[:] = [name for name in folders if not name.startswith(META)]
        strange = (name for name in names if format_of(name) is None and not _MADE.fullmatch(name))
        found += [os.path.relpath(os.path.join(where, name), target) for name in strange]
    if not found:
        return ()
    return (f"{counted(len(found), 'file')} of others went with the old target:\n" + listed(sorted(found)),)

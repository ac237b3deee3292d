"""What memory a conversion gives to blocks and, where files are uploaded, to the parts on their way."""

from __future__ import annotations

from dataclasses import dataclass

from reshard.errors import UsageError
from reshard.ops.options import Options
from reshard.planning.plan import Plan
from reshard.planning.tasks import MAX_FILES
from reshard.run.local import TASKS_AT_ONCE
from reshard.run.storage import is_url

_UPLOAD_NBYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Budget:
    """``upload_nbytes`` are those of one task, ``uploads_nbytes`` of all that are under way at once."""

    block_nbytes: int
    max_files: int = MAX_FILES
    upload_nbytes: int = 0

    @property
    def uploads_nbytes(self) -> int:
        return self.upload_nbytes * TASKS_AT_ONCE


def budget_of(plan: Plan, dst: str, workers: int, options: Options) -> Budget:
    """Half of what ``--max-memory`` leaves goes to parts. Raises UsageError where not one file could be uploaded."""
    if not is_url(dst):
        return Budget(options.block_nbytes(workers))
    from reshard.run.object_store import most_files, part_nbytes

    uploads = min(_UPLOAD_NBYTES, options.spare_nbytes // 2)
    largest = max((plan.forms[f.form].nbytes for f in plan.files), default=0)
    files = min(most_files(largest, uploads // TASKS_AT_ONCE), MAX_FILES)
    if not files:
        least = 2 * TASKS_AT_ONCE * part_nbytes(largest, 0)
        raise UsageError(
            f"--max-memory leaves {uploads:,} bytes for uploads, which need {least:,}", dst, "give --max-memory more"
        )
    return Budget(options.block_nbytes(workers, uploads), files, uploads // TASKS_AT_ONCE)

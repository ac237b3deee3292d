"""Where the results go: built beside, put in their places by rename, what was there removed at the very end."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from msgspec import Struct

from reshard.auto.job_strategy import JobStrategy
from reshard.auto.settings import AutoSettings
from reshard.errors import UsageError, reported
from reshard.formats.registry import format_of
from reshard.storage.disk import Disk
from reshard.storage.storage import own_name
from reshard.storage.storages import is_inside
from reshard.target.overwrite import beside, forget, new_beside

_ROOTS = {"ckpt": "transformed_checkpoint", "safetensors": "unified_checkpoint"}
HANDED_OVER = "reshard_run.yaml"


class Results(Struct, frozen=True):
    """Folders of one job below its ``output_dir``, with the names that MindFormers gives them.

    Attributes:
        root: holds the converted weights of one job: ``name`` below it, with its ``rank_x``.
    """

    output: Path
    root: Path
    name: str

    @staticmethod
    def of(settings: AutoSettings, form: str) -> Results:
        output = Path(settings.output_dir).absolute()
        last = own_name(settings.load_checkpoint)
        name = last.split(".")[0] if format_of(last) else last
        return Results(output, output / _ROOTS[form], name or "checkpoint")

    @property
    def strategy(self) -> Path:
        return self.output / "strategy"

    @property
    def merged_strategy(self) -> Path:
        return self.output / "merged_strategy"

    def staged(self, identity: str) -> Path:
        """Where the new ``root`` is built. A run of the same identity goes on with what is there."""
        return beside(self.root, f"new-{identity[:16]}")

    def refuse_inside(self, settings: AutoSettings, places: Iterable[Path]) -> None:
        """Nothing that is read may lie in a folder that is replaced. Raises UsageError."""
        for key, given in (("load_checkpoint", settings.load_checkpoint), ("src_strategy", settings.src_strategy)):
            for place in places:
                if given and is_inside(given, place):
                    raise UsageError(
                        f"{key} {given} lies inside {place}, which this job's results replace",
                        str(self.output),
                        "move it away, or set another output_dir; nothing was changed",
                    )


def refuse_file(output: Path) -> None:
    """Raises UsageError where a folder cannot be made, as a file has the name of it or of one above."""
    nearest = next(place for place in (output, *output.parents) if place.exists())
    if not nearest.is_dir():
        raise UsageError(f"output_dir cannot be made: {nearest} is a file", str(output), "set another output_dir")


def take_places(new: dict[Path, Path]) -> None:
    """Rename new folders (values) to their places (keys); what stood there is set aside, see ``forget``.

    All or nothing: at an error all places are as before.
    """
    undo: list[tuple[Path, Path]] = []
    try:
        for place, made in new.items():
            real = place.resolve()
            with reported(real):
                real.parent.mkdir(parents=True, exist_ok=True)
                if real.exists():
                    aside = new_beside(place, "old")
                    os.rename(real, aside)
                    undo.append((aside, real))
                os.rename(made, real)
                undo.append((real, made))
    except BaseException:
        for now, before in reversed(undo):
            os.rename(now, before)
        raise


def write_if_other(path: Path, content: str) -> None:
    """Make a small file what it should be; several ranks may do so at once."""
    data = content.encode("utf-8", "surrogateescape")
    with reported(path):
        there = path.read_bytes() if path.exists() else None
    if there is None and not Disk().create_whole(str(path), data, fsync=False):
        with reported(path):
            there = path.read_bytes()
    if there is not None and there != data:
        Disk().write_whole(str(path), data, fsync=False)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    with reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        Disk().write_whole(str(folder / name), content, fsync=False)


def save_strategy(folder: Path, strategy: JobStrategy, settings: AutoSettings) -> None:
    """The files of all ranks of a strategy that was made, in place of an earlier job's."""
    Results(folder.parent, folder, "").refuse_inside(settings, [folder])
    forget(folder, "new")
    made = new_beside(folder, "new")
    write_strategy(made, strategy)
    take_places({folder: made})
    forget(folder, "old")


def write_strategy(folder: Path, strategy: JobStrategy) -> None:
    """One file a rank, as MindFormers' jobs leave them, and the merged one where there are several stages."""
    write_files(folder, strategy.files(merged=False))
    if strategy.strategy and len(strategy.strategy.stages) > 1:
        write_files(folder, strategy.files(merged=True))

"""The power fails: what an ext4 disk holds at that moment is mounted again.

The file system lies in a file through a loop device, so that file is what a disk would hold: what the kernel had not
written yet is lost in a copy of it.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from random import Random

from job import STAGES, Work

from forks import DONE, forks
from mounts import ext4_image, mounted
from thorough import TIMES
from waiting import wait_until

CUTS = 6 * TIMES
DISK_NBYTES = 8 << 20


def disk_now(image: Path, copy: Path) -> Path:
    """The bytes of a disk at one moment: read twice, until nothing was written meanwhile."""
    while True:
        shutil.copyfile(image, copy)
        if copy.read_bytes() == image.read_bytes():
            return copy


def named(work: Work) -> set[int]:
    """The ranks whose files have their names; each must be whole."""
    ranks = {int(path.parent.name[5:]) for path in work.out.glob("rank_*/*.ckpt")}
    for rank in ranks:
        work.assert_rank(rank)
    return ranks


def noted(work: Work) -> set[int]:
    return {int(path.stem) for path in work.out.glob(".reshard/done/[0-9].json")}


def finished(work: Work) -> bool:
    return (work.out / ".reshard" / "manifest.json").exists()


def reached(work: Work, files: int) -> bool:
    return finished(work) or len(noted(work)) >= files


def test_the_power_fails_at_any_moment(work: Work) -> None:
    random = Random(22)
    seen = set()
    for number in range(CUTS):
        image = ext4_image(work.folder / "image", DISK_NBYTES)
        with mounted(work.folder / "disk", "-o", "loop", image) as disk:
            work.out = disk / "out"
            child = forks().start(*work.command("--quiet", "--max-rate", "4KiB/s"))
            wait_until(partial(reached, work, number % (2 * STAGES)))
            time.sleep(random.choice([0, random.uniform(0, 0.3)]))
            child.kill(signal.SIGSTOP)
            done = set(range(2 * STAGES)) if finished(work) else noted(work)
            if number % 2:
                os.sync()  # the kernel may write all it has of its own accord
            held = disk_now(image, work.folder / "held")
            child.kill(signal.SIGKILL)
            assert child.ended().code in (0, -signal.SIGKILL)
        with mounted(work.folder / "disk", "-o", "loop", held) as disk:
            assert named(work) >= done
            seen.add(len(named(work)))
            if finished(work):
                work.assert_whole()
            assert forks().run(*work.command("--quiet", *["--resume"] * (disk / "out").exists())) == DONE
            work.assert_whole()
    assert len(seen) > 2


def test_what_is_told_to_be_done_is_on_the_disk(work: Work) -> None:
    image = ext4_image(work.folder / "image", DISK_NBYTES)
    with mounted(work.folder / "disk", "-o", "loop", image) as disk:
        work.out = disk / "deep" / "out"
        assert forks().run(*work.command("--quiet")) == DONE
        held = disk_now(image, work.folder / "held")
    with mounted(work.folder / "disk", "-o", "loop", held):
        work.assert_whole()

"""``python -m tests.fuzz.long MINUTES [SEED [READER …]]``: mutate files for so many minutes of CPU and count what came
of it.

A file that brought anything but our errors is kept beside the call, as ``fuzz-….bin``, and told; the run goes on.
"""

from __future__ import annotations

import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.readers import READERS, Hang, attempt, mutated, slug


def main(minutes: float, seed: int, names: Sequence[str]) -> int:
    warnings.simplefilter("error")
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, resource.RLIM_INFINITY))
    random = Random(seed)
    counts: Counter[tuple[str, str]] = Counter()
    found: dict[str, int] = {}
    chosen = [reader for reader in READERS if not names or reader.name in names]
    with TemporaryDirectory() as folder:
        while time.process_time() < 60 * minutes:
            for reader in chosen:
                data = mutated(reader, random)
                try:
                    counts[reader.name, attempt(reader, data, Path(folder, "x"))] += 1
                except (Exception, Hang) as error:
                    counts[reader.name, "FAULT"] += 1
                    frame = traceback.extract_tb(error.__traceback__)[-1]
                    where = slug(f"{reader.name} {type(error).__name__} {Path(frame.filename).stem} {frame.lineno}")
                    if found.setdefault(where, 0) == 0:
                        Path(f"fuzz-{where}.bin").write_bytes(data)
                        traceback.print_exc()
                    found[where] += 1
    for name in (r.name for r in chosen):
        said = {what: n for (reader, what), n in sorted(counts.items()) if reader == name}
        print(f"{name}: {sum(said.values()):,} files: " + ", ".join(f"{n:,} {what}" for what, n in said.items()))
    print(f"{sum(counts.values()):,} files in {time.process_time() / 60:.1f} CPU-minutes, {sum(found.values())} faults")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, sys.argv[3:]))

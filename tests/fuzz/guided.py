"""``python -m tests.fuzz.guided SECONDS [READER …]``: coverage-guided fuzzing (atheris) of each reader for so long.

Files that reached new lines are kept in ``fuzz-corpus/READER`` beside the call and seed the next run. A file that
brought anything but our errors ends that reader's run and is kept as ``fuzz-READER-crash-…``.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))

import atheris

with atheris.instrument_imports(include=["reshard"]):
    from fuzz.readers import READERS, SEEDS, attempt


def fuzz(name: str, seconds: str) -> None:
    """Does not return: libFuzzer ends the process."""
    reader = next(r for r in READERS if r.name == name)
    corpus = Path("fuzz-corpus", name)
    corpus.mkdir(parents=True, exist_ok=True)
    (corpus / "seed").write_bytes((SEEDS / name).read_bytes())
    with TemporaryDirectory() as folder:

        def one(data: bytes) -> None:
            attempt(reader, data, Path(folder, "x"))

        limits = [f"-max_total_time={seconds}", "-max_len=16384", "-rss_limit_mb=4096", "-verbosity=0"]
        atheris.Setup(
            [sys.argv[0], *limits, "-print_final_stats=1", f"-artifact_prefix=fuzz-{name}-", str(corpus)], one
        )
        atheris.Fuzz()


def main(seconds: str, names: list[str]) -> int:
    failed = []
    for name in names:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", "tests.fuzz.guided", "--one", name, seconds]).returncode:
            failed.append(name)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{(used.ru_utime + used.ru_stime) / 60:.1f} CPU-minutes; faults:", ", ".join(failed) or "none")
    return int(bool(failed))


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        fuzz(sys.argv[2], sys.argv[3])
    sys.exit(main(sys.argv[1], sys.argv[2:] or [r.name for r in READERS]))

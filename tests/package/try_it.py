"""The wheel and the source distribution, each installed into an empty environment, and used from an empty folder.

``python tests/package/try_it.py``: the source distribution is tried with the Python that runs this, the wheel with the
newest that the machine has and the newest NumPy, and with the oldest and NumPy 1.24.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        run(sys.executable, "-m", "hatchling", "build", "-d", place, cwd=ROOT)
        (wheel,), (source,) = place.glob("*.whl"), place.glob("*.tar.gz")
        check_contents(wheel)
        tries = (newest(), wheel, "numpy"), (sys.executable, source, "numpy"), (oldest(), wheel, "numpy==1.24.*")
        with ThreadPoolExecutor() as side_by_side:
            places = (place / str(number) for number in range(len(tries)))
            for said in side_by_side.map(lambda words, folder: try_it(*words, folder), tries, places):
                say(said)


def check_contents(wheel: Path) -> None:
    """Everything of the package is in the wheel, with its documentation, and nothing else."""
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("reshard/")}
    ours = subprocess.run(
        ["git", "ls-files", "src/reshard", "docs"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    wanted = {
        name.removeprefix("src/") if name.startswith("src/") else f"reshard/{name}" for name in ours.stdout.split()
    }
    if held != wanted:
        sys.exit(f"in the wheel alone: {sorted(held - wanted)}; in the repository alone: {sorted(wanted - held)}")


def try_it(python: str, package: Path, numpy: str, place: Path) -> str:
    """Cut a file in two, merge it again, and prove it, in an environment that has nothing but the package."""
    run(python, "-m", "venv", "--without-pip", place / "env")
    reshard = place / "env" / "bin" / "reshard"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        place / "env",
        "install",
        "-q",
        "--no-compile",
        package,
        numpy,
        cwd=place,
    )
    (place / "model.safetensors").write_bytes(weights())
    run(reshard, cwd=place)
    run(reshard, "--version", cwd=place)
    page = (place / "env/share/man/man1/reshard.1").read_text()
    if not all(f".SS reshard {command}\n" in page for command in ("convert", "lora merge", "doctor")):
        sys.exit("the manual page lacks commands")
    check_docs_of_errors(reshard, place)
    run(reshard, "doctor", cwd=place)
    run(reshard, "inspect", "model.safetensors", cwd=place)
    run(reshard, "convert", "model.safetensors", "model.ckpt", cwd=place)
    run(reshard, "merge", "model.ckpt", "again.safetensors", cwd=place)
    run(reshard, "diff", "model.safetensors", "again.safetensors", cwd=place)
    run(reshard, "compat", "transform_checkpoint", "--help", cwd=place)
    run("bash", place / "env" / "bin" / "transform_checkpoint.sh", "--help", cwd=place, codes=(0, 2))
    return f"{package.name} ({package.stat().st_size:,} bytes) with {python} and {numpy}"


def check_docs_of_errors(reshard: Path, place: Path) -> None:
    """What an error leads to is there."""
    said = subprocess.run(
        [reshard, "inspect", "nowhere"], cwd=place, capture_output=True, text=True, check=False
    ).stderr
    led = re.search(r"^  docs: (.*)#(.*)$", said, re.MULTILINE)
    page = place / led[1] if led else place
    if led is None or not page.is_file() or f"## {led[2]}" not in page.read_text("utf-8").lower():
        sys.exit(f"an error leads nowhere: {said}")


def weights() -> bytes:
    """A safetensors file of one tensor."""
    data = bytes(range(32))
    header = json.dumps({"w": {"dtype": "F32", "shape": [4, 2], "data_offsets": [0, len(data)]}}).encode()
    return len(header).to_bytes(8, "little") + header + data


def newest() -> str:
    """The Python of the highest number from 3.10 on that can make environments."""
    found = {version_of(python): python for python in {*pythons(), sys.executable}}
    return found[max(found)]


def oldest() -> str:
    """The Python of the lowest number that there is, from 3.10 on."""
    found = {version_of(python): python for python in {*pythons(), sys.executable}}
    return found[min(version for version in found if version >= (3, 10))]


def pythons() -> Iterator[str]:
    for minor in range(10, 20):
        on_path = shutil.which(f"python3.{minor}")
        if on_path:
            yield on_path
    for place in Path.home().glob(".pyenv/versions/3.*/bin/python"):
        yield str(place)


def version_of(python: str) -> tuple[int, ...]:
    done = subprocess.run([python, "-c", "import sys, venv; print(sys.version)"], capture_output=True, check=False)
    said = re.match(rb"(\d+)\.(\d+)\.(\d+) ", done.stdout)
    return tuple(map(int, said.groups())) if said else (0,)


def run(*words: object, cwd: Path | None = None, codes: tuple[int, ...] = (0,)) -> None:
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode not in codes:
        sys.exit(f"{' '.join(map(str, words))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""Copy golden answers into this folder: ``python tests/golden/copy_from.py FOLDER``.

FOLDER holds ``strategies/``, ``families/`` and ``cases/`` as README.md describes them. Strategies and families are
copied file by file without the ``.txt`` dumps; each case becomes one ``.tar.xz``, in which equal slices cost nothing.
The archives depend on the content alone, so that a second run changes no byte.
"""

from __future__ import annotations

import io
import json
import lzma
import shutil
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).parent
LISTINGS = ("src", "expected", "case_bytes", "selfcheck_vs_numpy_slicer")
"""Entries of case.json that repeat what the files say."""


def copy_tree(source: Path, target: Path) -> None:
    """The files of ``source`` without ``.txt`` dumps, in place of ``target``."""
    shutil.rmtree(target, ignore_errors=True)
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.suffix != ".txt":
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())


def packed(case: Path) -> bytes:
    """A case folder as the bytes of a ``.tar.xz``."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted(case.rglob("*")):
            if not path.is_file() or (path.suffix == ".txt" and not path.name.startswith("latest")):
                continue
            content = path.read_bytes()
            if path == case / "case.json":
                about = json.loads(content)
                kept = {key: value for key, value in about.items() if key not in LISTINGS}
                content = json.dumps(kept, indent=1).encode()
            member = tarfile.TarInfo(str(path.relative_to(case)))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return lzma.compress(plain.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def main() -> None:
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "cases").is_dir():
        sys.exit(f"usage: python {sys.argv[0]} FOLDER   (with strategies/, families/ and cases/ in it)")
    folder = Path(sys.argv[1])
    for name in ("strategies", "families"):
        copy_tree(folder / name, HERE / name)
    cases = HERE / "cases"
    shutil.rmtree(cases, ignore_errors=True)
    cases.mkdir()
    for case in sorted(p for p in (folder / "cases").iterdir() if p.is_dir()):
        (cases / f"{case.name}.tar.xz").write_bytes(packed(case))


if __name__ == "__main__":
    main()

"""Copy answers that real programs gave into this folder: ``python -m golden_families.copy_from FOLDER NAME …``.

FOLDER holds ``cases/`` and ``bad/``; each case whose name begins with one of the NAMEs becomes a ``.tar.xz``. Those of
names in other conventions are called ``names-…`` here.
"""

from __future__ import annotations

import sys
from pathlib import Path

from golden.copy_from import packed

HERE = Path(__file__).parent
OF_NAMES = ("hf", "mf-", "mcore2hf", "ms2hf", "qkvconcat", "own-")


def main() -> None:
    if len(sys.argv) < 3 or not (Path(sys.argv[1]) / "cases").is_dir():
        sys.exit(f"usage: python {sys.argv[0]} FOLDER NAME …   (with cases/ and bad/ in it)")
    for kind in ("cases", "bad"):
        for case in sorted(Path(sys.argv[1], kind).iterdir()):
            if case.name.startswith(tuple(sys.argv[2:])):
                prefix = "names-" if case.name.startswith(OF_NAMES) else ""
                place = HERE / kind / f"{prefix}{case.name}.tar.xz"
                place.parent.mkdir(exist_ok=True)
                place.write_bytes(packed(case))


if __name__ == "__main__":
    main()

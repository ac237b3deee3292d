"""``pip install`` of reshard beside MindSpore leaves MindSpore the NumPy that it needs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.oracle
ROOT = Path(__file__).parents[2]
ASK = """
import importlib.metadata as m, json, sys
json.dump({d: str(m.distribution(d)._path) for d in ("numpy", "mindspore")}, sys.stdout)
"""


def test_numpy_stays(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    """An environment in which nothing but MindSpore and its NumPy is installed, as far as pip knows."""
    python = pytestconfig.getoption("--mindspore")
    asked = subprocess.run([os.path.abspath(python) if os.sep in python else python, "-c", ASK],
                           capture_output=True, text=True, check=True)  # fmt: skip
    subprocess.run([python, "-m", "venv", str(tmp_path / "venv")], check=True)
    site = next((tmp_path / "venv/lib").glob("python*/site-packages"))
    known = {name: Path(path) for name, path in json.loads(asked.stdout).items()}
    for path in known.values():
        shutil.copytree(path, site / path.name)
    assert known["numpy"].name.startswith("numpy-1."), "MindSpore's environment has the NumPy that it wants"
    told = tmp_path / "report.json"
    pip = [str(tmp_path / "venv/bin/python"), "-m", "pip", "install", "-q", "--dry-run", "--report", str(told)]
    subprocess.run([*pip, str(ROOT)], check=True, timeout=300)
    installed = {
        item["metadata"]["name"]: item["metadata"]["version"] for item in json.loads(told.read_text())["install"]
    }
    assert "ml_dtypes" in installed
    assert "numpy" not in installed, "it would be replaced"

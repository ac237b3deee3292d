"""DeepSpeed runs here, and with it the checker of universal checkpoints: in what DeepSpeed makes it finds no fault.

What we write for DeepSpeed is judged by the same checker.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from beside import SHARED

pytest.importorskip("deepspeed", reason="no DeepSpeed here; make test-deepspeed has an environment with it")
pytestmark = pytest.mark.deepspeed
GOLDEN = SHARED / "golden-families" / "deepspeed-fsdp"
ON_CPU = {**os.environ, "DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0", "OMP_NUM_THREADS": "1"}


def ran(*words: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, *words], env=ON_CPU, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden DeepSpeed checkpoints are not beside this repository")
def test_the_checker_loads_a_universal_checkpoint_of_deepspeed(tmp_path: Path) -> None:
    case = GOLDEN / "cases" / "z2_bf16_r2_groups"
    shutil.copytree(case / "src", tmp_path / "src")
    step = (tmp_path / "src" / "latest").read_text().strip()
    made = tmp_path / "made" / "universal"
    source, words = tmp_path / "src" / step, ("-m", "deepspeed.checkpoint.ds_to_universal")
    ran(*words, "--inject_missing_state", "--input_folder", source, "--output_folder", made)
    assert "LOADS OK" in ran(GOLDEN / "check_loads.py", made.parent, made.name, case / "tensors.json", "2", "bf16", "2")

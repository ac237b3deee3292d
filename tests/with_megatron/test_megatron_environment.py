"""Megatron-Core runs here, and with it the checker of its checkpoints: in what Megatron-Core wrote it finds no fault.

What we write for Megatron is judged by the same checker.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from beside import SHARED

pytest.importorskip("megatron.core", reason="no Megatron-Core here; make test-megatron has an environment with it")
pytestmark = pytest.mark.megatron
GOLDEN = SHARED / "golden-families" / "torch"


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden Megatron checkpoints are not beside this repository")
@pytest.mark.parametrize("ranks", ["1", "2"])
def test_the_checker_loads_a_checkpoint_of_megatron(ranks: str) -> None:
    case = GOLDEN / "cases" / "m_llama_tp1"
    words = ("megatron", case / "src" / "iter_0000010", case / "tensors.json", "--ranks", ranks)
    command = [sys.executable, GOLDEN / "check_loads.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

"""What may lie beside this repository: answers of other programs, too many to be kept in it."""

from __future__ import annotations

from pathlib import Path

SHARED = Path(__file__).parents[2] / "shared"

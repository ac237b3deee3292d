"""Huawei's ModelArts: recognised by its environment; its machines share no disk, so each converts its own ranks."""

from __future__ import annotations

from collections.abc import Mapping

_SIGNS = ("MA_LOG_DIR", "MA_JOB_DIR", "MA_LOCAL_LOG_PATH", "BATCH_GROUP_NAME")
"""Any of these is set there. MindFormers takes keys of S3 for a sign too; those are set elsewhere as well."""
ROOT = "/cache/ma-user-work"
"""Where MindFormers works there; the machine's own disk."""


def in_modelarts(environment: Mapping[str, str]) -> bool:
    return any(name in environment for name in _SIGNS)

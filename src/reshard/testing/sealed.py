"""Checks that nobody may override: a suite whose checks can be replaced by ``pass`` proves nothing."""

from __future__ import annotations

from typing import ClassVar


class Sealed:
    """Raises TypeError for a subclass that overrides a check of its suite."""

    _checks: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        own = {name for name in vars(cls) if name.startswith("test_")}
        replaced = sorted(own & cls._checks)
        if replaced:
            raise TypeError(f"{cls.__name__} overrides {', '.join(replaced)}: skip a check with a reason instead")
        cls._checks = cls._checks | own

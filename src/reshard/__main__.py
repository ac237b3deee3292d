"""``python -m reshard``: for launchers that start Python alone, as MindSpore's msrun does."""

from __future__ import annotations

from reshard.cli.main import main

if __name__ == "__main__":
    main()

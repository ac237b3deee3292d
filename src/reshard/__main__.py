"""The program's entry; ``python -m reshard`` is for launchers that start Python alone, as MindSpore's msrun does."""

from __future__ import annotations

import gc
import signal

_VALUES = 50_000
"""New ones before the collector looks for circles: its thousand makes a twentieth of a small job's time."""


def main() -> None:
    """Run the program. Ctrl-C while its modules are imported ends it without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.set_threshold(_VALUES)
    from reshard.cli.main import main as program

    program()


if __name__ == "__main__":
    main()

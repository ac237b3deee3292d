"""The program's entry; ``python -m reshard`` is for launchers that start Python alone, as MindSpore's msrun does."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the program. Ctrl-C while its modules are imported ends it without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from reshard.cli.main import main as program

    program()


if __name__ == "__main__":
    main()

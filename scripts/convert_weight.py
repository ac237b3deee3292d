"""Weights of Hugging Face as MindFormers has them, or back: ``reshard compat convert_weight``, to call by path."""

import sys

try:
    from reshard.compat.convert_weight import main
except ModuleNotFoundError as error:
    sys.stderr.write(f"error: {error.name} is not there for {sys.executable}; pip install it\n")
    sys.exit(2)

sys.exit(main())

"""Merge sliced safetensors into one full checkpoint: ``reshard compat unified_safetensors``, to call by path."""

import sys

try:
    from reshard.compat.unified_safetensors import main
except ModuleNotFoundError as error:
    sys.stderr.write(f"error: {error.name} is not there for {sys.executable}; pip install it\n")
    sys.exit(2)

sys.exit(main())

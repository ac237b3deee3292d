"""Convert .ckpt weights between parallel layouts: ``reshard compat transform_checkpoint``, to call by path."""

import sys

try:
    from reshard.compat.transform_checkpoint import main
except ModuleNotFoundError as error:
    sys.stderr.write(f"error: {error.name} is not there for {sys.executable}; pip install it\n")
    sys.exit(2)

sys.exit(main())

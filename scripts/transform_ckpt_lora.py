"""Merge LoRA weights into their base: ``reshard compat transform_ckpt_lora``, to call by path."""

import sys

try:
    from reshard.compat.transform_ckpt_lora import main
except ModuleNotFoundError as error:
    sys.stderr.write(f"error: {error.name} is not there for {sys.executable}; pip install it\n")
    sys.exit(2)

sys.exit(main())

"""Merge LoRA weights into their base: ``reshard compat transform_ckpt_lora``, to call by path."""

import sys

from reshard.compat.transform_ckpt_lora import main

sys.exit(main())

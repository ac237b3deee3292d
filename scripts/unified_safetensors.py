"""Merge sliced safetensors into one full checkpoint: ``reshard compat unified_safetensors``, to call by path."""

import sys

from reshard.compat.unified_safetensors import main

sys.exit(main())

"""Merge sliced safetensors into one full checkpoint: ``reshard compat convert_reversed``, to call by path."""

import sys

from reshard.compat.convert_reversed import main

sys.exit(main())

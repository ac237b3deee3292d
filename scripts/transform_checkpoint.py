"""Convert .ckpt weights between parallel layouts: ``reshard compat transform_checkpoint``, to call by path."""

import sys

from reshard.compat.transform_checkpoint import main

sys.exit(main())

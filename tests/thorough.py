"""How much is tried at random: ``make test`` takes a sample, ``.ci/run`` (``RESHARD_THOROUGH=4``) four times as much.

Only what is drawn becomes more; cases that are written down run always.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

TIMES = int(os.environ.get("RESHARD_THOROUGH", "1"))


def examples(sample: int) -> settings:
    """For hypothesis: the same examples in every run, so that what fails here fails everywhere."""
    return settings(
        max_examples=sample * TIMES,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
        print_blob=True,
    )

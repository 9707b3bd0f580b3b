"""How the tests run: Hypothesis profiles, and one thread for each worker.

``HYPOTHESIS_PROFILE`` names a profile; without it ``ci`` runs where ``CI`` is set, and
``dev`` everywhere else.
"""

import os

import torch
from hypothesis import HealthCheck, Phase, settings

COMMON = settings(
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("dev", COMMON, max_examples=50)
settings.register_profile("ci", COMMON, max_examples=100, derandomize=True)
settings.register_profile("nightly", COMMON, max_examples=5000)
settings.register_profile(  # a mutant need not be shown at its smallest
    "mutants",
    COMMON,
    max_examples=100,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "dev")
)

torch.set_num_threads(1)

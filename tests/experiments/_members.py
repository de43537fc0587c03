"""What the process imports that members of a cluster are forked from, before it has
started anything: imports are a third of a small run's time.
"""

import gc

gc.disable()

import experiments.case_study  # noqa: E402
import experiments.make_miniature  # noqa: E402
import experiments.train_sae  # noqa: E402, F401

# A collection in a member would otherwise read, and so copy, all of that.
gc.freeze()
gc.enable()

"""Imported last by the server that forks the ranks: what each rank would do once more, done before.

Its objects are taken out of the garbage collection. DeepSpeed collects several times for each engine in bf16
or at stage 3, and would go through all modules of torch in every rank: half of the time of a short run.
"""

import gc

from launcher.config.load import load_config

load_config("debug")  # the validators of all options
gc.collect()
gc.freeze()

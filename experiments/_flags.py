"""The flags that entrypoints share: defined once, so that one process may import several of them."""

from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, for instance configs/attribute.py.", lock_config=True
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for results and for what a killed run continues from; may be gs://."
)
SHOW_TOKENS = flags.DEFINE_integer(
    "show_tokens", 0, "Print exactly what is scored or learnt of this many rows, and stop."
)
ALLOW_CHANGE = flags.DEFINE_bool("allow_config_change", False, "Use a workdir that was made with another config.")

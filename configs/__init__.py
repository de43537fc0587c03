"""Defaults of every experiment: `get_config` gives them, `SETTINGS` names the
dataclasses that say what each key means.
"""

from importlib import import_module

# Beside the experiments in a checkout, and in an installed package.
_config = import_module(f"{__name__.removesuffix('configs')}experiments._config")
any_keys, config_of, one_of = _config.any_keys, _config.config_of, _config.one_of

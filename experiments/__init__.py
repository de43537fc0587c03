"""Entrypoints: flags, config and stages; everything they do can be imported from
`sae_attr`.
"""

import sys
from types import TracebackType


def _one_line(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Ctrl-C while libraries are still being imported is no bug, so it leaves no
    traceback.
    """
    if issubclass(kind, KeyboardInterrupt):
        print("stopped by Ctrl-C before anything began", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _one_line

"""The engine of docs/serving.md, which answers an exported sweep from its files alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent.parent / "docs/serving.md"


def answer(folder: Path, model: Path) -> None:
    """Runs the page's own code."""
    (source,) = re.findall(
        r"```python\n(import json.*?)```", PAGE.read_text("utf-8"), re.DOTALL
    )
    scope: dict[str, Any] = {}
    exec(compile(source, str(PAGE), "exec"), scope)
    scope["answer"](folder, str(model))

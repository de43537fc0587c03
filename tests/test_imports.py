"""Who may import whom: the directions stated in the README, read from the sources."""

import ast
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
BASE = {
    "device_memory",
    "hooks",
    "parallel",
    "site_names",
    "settings",
    "store",
    "files",
    "text",
}
CORE = BASE | {"lm", "sae"}
MAY_IMPORT = (
    dict.fromkeys(BASE, BASE)
    # The ten names of `import sae_attr`, which no module below may import from there.
    | {"": CORE | {"attribution", "steering"}}
    | {"training": {"files", "store"}, "server": BASE}
    | {"judge": BASE | {"lm", "comparison_records", "server"}}
    | {"lm": BASE | {"training"}, "sae": BASE | {"training"}}
    | {"activations": BASE | {"lm"}}
    | {"beliefs": {"store"}}
    | {"comparison_records": set(), "report": {"comparison_records"}}
    | {"steering": CORE | {"comparison_records", "server"}}
    | dict.fromkeys(("interpret", "logit_effects"), CORE | {"activations"})
    | {"passage_draws": CORE | {"activations", "interpret"}}
    | {"sae_check": CORE | {"activations", "report"}}
    | {"lm_eval": CORE | {"steering"}}
    | {"notebook": CORE | {"activations", "attribution"}}
    | {"attribution": (CORE - {"settings", "store"}) | {"activations", "interpret"}}
    | {"organism": CORE | {"activations", "judge", "training"}}
    | {
        "study": {
            *CORE,
            "activations",
            "attribution",
            "interpret",
            "judge",
            "logit_effects",
            "organism",
            "comparison_records",
            "passage_draws",
            "report",
            "sae_check",
            "server",
            "steering",
            "training",
        }
    }
    | {
        "analyses": {
            *CORE,
            "activations",
            "attribution",
            "comparison_records",
            "interpret",
            "logit_effects",
            "organism",
            "report",
            "steering",
            "study",
            "training",
        }
    }
)
NOWHERE = {"torch", "transformers", "sae_lens", "flax.nnx"}
ONLY_EXPERIMENTS = {
    "absl.flags",
    "absl.app",
    "ml_collections",
    "experiments",
    "configs",
}
NO_JAX = {"comparison_records", "report", "store"}
REPORT_USES = {
    "numpy",
    "matplotlib",
    "jinja2",
    "markupsafe",
}  # of other people's packages


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in the file; `from a import b` gives a
    and a.b.
    """
    package = path.relative_to(REPO).with_suffix("").parts[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def within(names: set[str], roots: set[str]) -> list[str]:
    """Those of `names` that are one of `roots` or lie below one."""
    return sorted(
        n for n in names if any(n == r or n.startswith(f"{r}.") for r in roots)
    )


def part(path: Path) -> str:
    """The module or package of sae_attr that a file belongs to; "" for
    sae_attr/__init__.py.
    """
    first = path.relative_to(REPO / "sae_attr").parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


LIBRARY = sorted((REPO / "sae_attr").rglob("*.py"))
PROGRAMS = sorted(
    [*(REPO / "experiments").rglob("*.py"), *(REPO / "configs").rglob("*.py")]
)


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(REPO)))
def test_library_imports_downwards_only(path: Path) -> None:
    own, names = part(path), imports(path)
    assert own in MAY_IMPORT, (
        f"sae_attr/{own} has no place in tests/test_imports.py; give it one"
    )
    used = {name.split(".")[1] for name in names if name.startswith("sae_attr.")} - {
        own,
        "__version__",
    }
    allowed = MAY_IMPORT[own]
    assert used <= allowed, (
        f"{own or 'sae_attr'} may import {sorted(allowed)}, but imports "
        f"{sorted(used - allowed)}"
    )
    assert within(names, NOWHERE | ONLY_EXPERIMENTS) == []
    assert own not in NO_JAX or within(names, {"jax", "flax", "optax"}) == [], (
        f"{own} works on numpy arrays alone"
    )
    foreign = (
        {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"sae_attr"}
    )
    assert own != "report" or foreign <= REPORT_USES, f"{own} imports {sorted(foreign)}"


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda p: str(p.relative_to(REPO)))
def test_programs_never_import_peers(path: Path) -> None:
    assert within(imports(path), NOWHERE) == []


EVERY_SPELLING = """
import a.b as c
from flax import nnx
from .. import sae
from ..sae.model import encode
def f():
    import torch
"""


def test_the_reader_of_imports_sees_every_spelling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, encoding=None: EVERY_SPELLING)
    names = imports(REPO / "sae_attr/lm/example.py")
    assert {"a.b", "flax.nnx", "sae_attr.sae", "sae_attr.sae.model", "torch"} <= names
    assert within(names, NOWHERE) == ["flax.nnx", "torch"]

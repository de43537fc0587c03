"""What every test sees: 4 simulated CPU devices, a compile cache on disk, and the
shared fixtures where they exist.
"""

import ctypes
import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

# All of this is read when jax is first imported, so it comes before any import that may
# do so.
os.environ["JAX_PLATFORMS"] = "cpu"
# With operations of one program side by side, simulated devices that outnumber the
# cores wait for each other in all-reduces: BatchTopK's sharded step, loaded from the
# compile cache, never ended on two cores.
ONE_AFTER_ANOTHER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
FLAGS = (
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=4",
    ONE_AFTER_ANOTHER,
)
os.environ["XLA_FLAGS"] = " ".join(FLAGS)
CACHE = os.environ.get("SAE_ATTR_CACHE") or os.path.join(
    tempfile.gettempdir(), f"sae_attr_tests_{os.getuid()}"
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(CACHE, "xla_tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax  # noqa: E402
import pytest  # noqa: E402

from tests._compile import quick_compile  # noqa: E402

MOST_MEMORY = 3 << 30  # bytes
REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared models and golden files; SAE_ATTR_SHARED, or `shared` beside
    the checkout.
    """
    path = Path(os.environ.get("SAE_ATTR_SHARED") or REPO.parent / "shared")
    if not path.is_dir():
        pytest.skip(
            f"needs the shared fixtures, which are not at {path}; set SAE_ATTR_SHARED "
            "to their folder"
        )
    return path


@pytest.fixture(scope="session")
def stories(shared: Path) -> Path:
    """The folder of the stories260K language model."""
    path = shared / "models/stories260K"
    if not path.is_dir():
        pytest.skip(f"needs the stories260K model, which is not at {path}")
    return path


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    """Forgets compiled programs between modules once they fill gigabytes: a process that
    runs half of the tests would end above six.
    """
    yield
    statm = Path("/proc/self/statm")
    if statm.is_file():
        resident = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        if resident > MOST_MEMORY:
            jax.clear_caches()
            gc.collect()
            _give_back_memory()


def _give_back_memory() -> None:
    """Returns freed memory to the system: the C library would keep it, and the process
    would count as large after every module from then on.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


def pytest_collection_finish() -> None:
    """Leaves modules and tests out of later garbage collections, of which JAX's tracing
    causes many.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """The module's programs compile quickly: `pytestmark =
    pytest.mark.usefixtures("quick")`.
    """
    with quick_compile():
        yield


SLOW = Path(__file__).with_name("slow.txt")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as slow what `slow.txt` names: cases that a quicker one of the same test
    stands for in the fast run.
    """
    named = set(SLOW.read_text(encoding="utf-8").split("\n"))
    for item in items:
        if item.nodeid in named:
            item.add_marker(pytest.mark.slow)

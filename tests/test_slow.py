"""The list of slow cases names tests that exist."""

from tests.conftest import REPO, SLOW


def test_every_name_is_that_of_a_test() -> None:
    names = [line for line in SLOW.read_text(encoding="utf-8").splitlines() if line]
    assert names == sorted(set(names))
    for name in names:
        file, _, test = name.partition("::")
        assert f"def {test.partition('[')[0]}(" in (REPO / file).read_text(
            encoding="utf-8"
        ), name

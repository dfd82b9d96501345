"""Some rounds of tests/faults: a fault in any file ends in the same answer or in one line, a kill in all or nothing."""

import pytest
from faults import injection


@pytest.fixture(scope="module")
def wanted(small_world, tmp_path_factory):
    world = injection.copied(small_world, tmp_path_factory.mktemp("faults") / "world")
    injection.write_wide(world)
    return world, injection.expected(world)


@pytest.mark.parametrize("fault", injection.FAULTS)
def test_a_fault_ends_in_the_same_answer_or_in_one_line(wanted, tmp_path, fault):
    world, expected = wanted
    for seed in range(6):
        found = injection.judged(injection.copied(world, tmp_path / "w"), seed, expected, fault)
        assert found.outcome in injection.FINE, found


def test_the_injector_sees_what_is_silently_wrong(wanted, tmp_path):
    world, expected = wanted
    other = dict.fromkeys(expected, "another digest")
    found = [injection.judged(injection.copied(world, tmp_path / "w"), seed, other, "append") for seed in range(4)]
    assert {one.outcome for one in found} <= {"refused", "silently wrong"}

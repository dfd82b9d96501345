"""How many files one follows from a text to its answer, from a record to a plugin, from a config to a run: no more.

tests/trips.json has a ceiling for each trip of tests/trips.py, and beside it what f5eefac took. A trip that got shorter
lowers its ceiling; one that got longer says beside it, as `grown`, why.
"""

import json
from pathlib import Path

import pytest
from trips import TRIPS, measure

CEILINGS = json.loads(Path(__file__).with_name("trips.json").read_text())


def test_every_trip_has_a_ceiling():
    assert CEILINGS.keys() == TRIPS.keys()
    for name, one in CEILINGS.items():
        longer = one["files"] > one["before"]["files"] or one["hops"] > one["before"]["hops"]
        assert not longer or one["grown"], name


@pytest.mark.parametrize("name", TRIPS)
def test_no_trip_is_longer_than_its_ceiling(name):
    found, ceiling = measure(name), CEILINGS[name]
    files, hops = found["files"], found["hops"]
    told = "\n".join(found["entered"])
    assert files <= ceiling["files"], f"{name} enters {files} files, {ceiling['files']} before:\n{told}"
    assert hops <= ceiling["hops"], f"{name} takes {hops} hops, {ceiling['hops']} before:\n{told}"
    assert {"models/encoder.py", "plugins/map_tuning.py"} <= set(found["entered"])

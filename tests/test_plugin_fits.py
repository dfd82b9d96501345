"""A plugin fits the host and the knowledge base that it was trained with, and what was made from them."""

import json

import pytest

from kinject.errors import InputError
from kinject.plugins.store import NO_KNOWLEDGE, HostIdentity, check_fits, in_space

HIDDEN, DIM = 768, 300
SPACE = {"id": "space m", "origins": ["base m"]}
KNOWLEDGE = {"name": "cities", "fingerprint": "base m", "dim": DIM, "space": SPACE}


def manifest(**changes):
    """What plugin.json says of a plugin, read from JSON as it is from a folder."""
    told = {"hidden_size": HIDDEN, "knowledge_dim": DIM, "host": {"encoder_fingerprint": "encoder m"}}
    return json.loads(json.dumps({**told, "knowledge": KNOWLEDGE, **changes}))


def identity(*lineage, size=HIDDEN, former=()):
    return HostIdentity("whole", lineage, size, former)


def test_its_own_host_and_one_made_from_it_fit(tmp_path):
    for host in (None, identity("encoder m"), identity("encoder z", "encoder m"), identity("encoder a", "encoder m")):
        check_fits(tmp_path, manifest(), host, None)


@pytest.mark.parametrize(
    ("host", "says"),
    [
        (identity("encoder m", size=HIDDEN - 1), "hidden_size is 768, the host's is 767"),
        (identity("encoder m", size=HIDDEN + 1), "hidden_size is 768, the host's is 769"),
        (identity("encoder a"), r"neither this host's \(encoder a…\) nor one that it was made from; train a plugin"),
        (identity("encoder z"), r"through the encoder encoder m…, which is neither this host's \(encoder z…\)"),
        (identity("encoder z", former=("encoder m",)), "this host's tokenizer was read in another way"),
    ],
)
def test_another_host_is_refused(tmp_path, host, says):
    with pytest.raises(InputError, match=f"plugin.json: .*{says}"):
        check_fits(tmp_path, manifest(), host, None)


def test_a_reading_of_old_is_refused_only_where_it_is_not_that_of_now():
    identity("encoder m", former=("encoder m",)).check_reading("encoder m", "here")
    identity("encoder z", former=("encoder y",)).check_reading("encoder m", "here")


@pytest.mark.parametrize("other", ["base a", "base z"])
def test_a_base_of_its_space_fits_and_one_of_another_does_not(tmp_path, other):
    """A base that grew from the plugin's, or was built beside it, has another fingerprint and the same space."""
    grown = {"name": "more", "fingerprint": other, "dim": DIM, "space": {"id": "space m", "origins": []}}
    check_fits(tmp_path, manifest(), None, json.loads(json.dumps(grown)))
    for space in ({"id": "space a", "origins": []}, {"id": "space z", "origins": ["x"]}, {"origins": []}, {}, None):
        with pytest.raises(InputError, match=r"on the knowledge base 'cities' \(base m…\), this one is base "):
            check_fits(tmp_path, manifest(), None, {**grown, "space": space})


@pytest.mark.parametrize("pinned", [{}, {"space": None}, {"space": "space m"}, {"space": {}}, {"space": {"id": None}}])
def test_a_plugin_that_names_no_space_fits_its_base_and_what_grew_from_that(pinned):
    pinned = {"fingerprint": "base m", **pinned}
    assert in_space(pinned, {"fingerprint": "base m"}) and in_space(pinned, KNOWLEDGE)
    assert in_space(pinned, {"fingerprint": "base n", "space": {"id": "space z", "origins": ["base l", "base m"]}})
    for space in ({"id": "space m", "origins": ["base n"]}, {"id": None, "origins": []}, {}):
        assert not in_space(pinned, {"fingerprint": "base n", "space": space})


@pytest.mark.parametrize(
    ("knowledge", "says"),
    [
        (KNOWLEDGE | {"dim": DIM - 1}, "knowledge_dim is 300, the knowledge base has 299"),
        (KNOWLEDGE | {"dim": DIM + 1}, "knowledge_dim is 300, the knowledge base has 301"),
        (NO_KNOWLEDGE, "it reads the knowledge base 'cities', and none is named; name its folder"),
    ],
)
def test_vectors_of_another_size_and_no_vectors_are_refused(tmp_path, knowledge, says):
    check_fits(tmp_path, manifest(), None, None)
    check_fits(tmp_path, manifest(), None, json.loads(json.dumps(KNOWLEDGE)))
    with pytest.raises(InputError, match=f"plugin.json: {says}"):
        check_fits(tmp_path, manifest(), None, knowledge)


def test_a_plugin_without_knowledge_fits_beside_any(tmp_path):
    plugin = manifest(knowledge=NO_KNOWLEDGE, knowledge_dim=0)
    for knowledge in (None, NO_KNOWLEDGE, KNOWLEDGE):
        check_fits(tmp_path, plugin, identity("encoder m"), knowledge)

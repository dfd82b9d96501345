"""Questions about two entities: by construction no word and no single entity tells the answer; scored by pairs."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from kinject.data.records import Mention, Record
from kinject.data.sources import load
from kinject.data.sources.geonames_kinds import CONTINENTS
from kinject.data.sources.geonames_pairs import PairQuestion, PairsDomain, asked_fact
from kinject.data.sources.kinds import SLASH
from kinject.data.sources.pair_wordings import LESSONS, PAIRS, TAUGHT
from kinject.errors import InputError
from kinject.stages.pairs import both_right, controls, entities, pairs_of

SIZES = {"host": 300, "plugin": 200, "dev": 100, "test": 150}
BLOCKS = {"host_first": 10, "host": 20, "plugin": 20, "dev": 10, "test": 15}


@pytest.fixture(scope="module")
def domain():
    return load("pairs", str.split, sizes=SIZES, blocks=BLOCKS)


def as_records(domain, split):
    found = []
    for number, one in enumerate(domain.records(split)):
        fields = dict(one)
        mentions = tuple(Mention(**mention) for mention in fields.pop("mentions"))
        found.append(Record(fields.pop("text"), mentions, fields, f"{split}:{number}"))
    return found


@pytest.mark.parametrize("split", ["plugin", "dev", "test", "dev_told", "test_told"])
def test_wording_x_and_y_alone_say_nothing(domain, split):
    for part in ("kind", "wording", "entity", "other"):
        count = defaultdict(Counter)
        for one in domain.splits[split]:
            count[one.kind, getattr(one, part)][one.answer] += 1
        assert count and all(answers["yes"] == answers["no"] for answers in count.values()), part


def test_an_answer_is_what_the_graph_says(domain):
    country = {head: tail for head, relation, tail in domain.triples if domain.relations[relation] == "country"}
    for one in domain.splits["test"]:
        same = country[one.entity] == country[one.other]
        if one.kind in ("same_country", "not_same_country"):
            assert one.answer == ("yes" if same == (one.kind == "same_country") else "no")
        assert one.entity != one.other


def test_no_city_is_in_two_splits_and_no_wording_in_two_lists(domain):
    splits = ("host", "plugin", "dev", "test")
    rows = [
        {row for one in domain.splits[split] if isinstance(one, PairQuestion) for row in (one.entity, one.other)}
        for split in splits
    ]
    assert sum(map(len, rows)) == len(set.union(*rows))
    told = {row for one in domain.splits["who"] for row in (one.entity,)}
    assert not told & (rows[0] | rows[2] | rows[3])
    asked = Counter(one.kind for one in domain.splits["who"])
    assert asked == dict.fromkeys(("country", "continent", "size"), len(told))
    for kind, wordings in {**PAIRS, **TAUGHT}.items():
        lists = (wordings.train + LESSONS[kind], wordings.dev, wordings.test)
        assert [len(one) for one in lists] == ([23, 0, 0] if kind in TAUGHT else [23, 2, 3]), kind
        assert len({*sum(lists, ())}) == len(sum(lists, ()))
        for wording in sum(lists, ()):
            assert wording.count("[X]") == wording.count("[Y]") == wording.count("[MASK]") == 1


def test_a_record_names_both_and_what_is_told_stands_before_each(domain):
    for split in ("test", "test_told", "dev_told", "host", "host_first"):
        for question, record in zip(domain.splits[split], as_records(domain, split), strict=True):
            if not isinstance(question, PairQuestion):
                continue
            said = [record.text[mention.start : mention.end] for mention in record.mentions]
            names = [question.name, question.other_name]
            assert said == (names if question.wording.index("[X]") < question.wording.index("[Y]") else names[::-1])
            assert record.text.count(SLASH) == (0 if split == "test" else 2)


def test_pairs_of_a_block_differ_in_one_entity_and_in_the_answer(domain):
    records = as_records(domain, "test")
    pairs = pairs_of(records)
    assert len(pairs) == len(records)  # four questions, four pairs
    for one, other in pairs:
        differ = sum(a != b for a, b in zip(entities(records[one]), entities(records[other]), strict=True))
        assert differ == 1 and records[one].fields["label"] != records[other].fields["label"]
    answer = np.array([record.fields["label"] == "yes" for record in records], float)
    assert both_right(answer, pairs) == 0  # who always says yes has no pair
    assert both_right(np.ones(len(records)), pairs) == 1


@pytest.mark.parametrize(
    ("name", "changed"),
    [("wrong_x", (0,)), ("wrong_y", (1,)), ("wrong_both", (0, 1)), ("x_alone", (1,)), ("y_alone", (0,))],
)
def test_controls_change_the_vectors_that_they_name(domain, name, changed):
    records = as_records(domain, "test")
    asked = controls(records, 0)[name]
    stand_ins = defaultdict(set)
    for before, after in zip(records, asked, strict=True):
        differ = [a != b for a, b in zip(entities(before), entities(after), strict=True)]
        assert tuple(np.flatnonzero(differ)) == changed
        assert before.text == after.text and before.fields == after.fields
        for place in changed:
            assert (entities(after)[place] is None) == name.endswith("alone")
            stand_ins[before.fields["block"], place, entities(before)[place]].add(entities(after)[place])
    assert all(len(found) == 1 for found in stand_ins.values())  # in a block an entity is always taken for the same


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda one: Record(one.source, one.mentions[:1], one.fields, "f:1"), "has not two linked entities"),
        (lambda one: Record(one.source, one.mentions, {"label": "yes"}, "f:1"), "'block' is missing"),
        (lambda one: Record(one.source, one.mentions, {**one.fields, "label": "yes"}, one.where), "differs in one"),
    ],
)
def test_bad_records_are_named(domain, change, said):
    with pytest.raises(InputError, match=said):
        pairs_of([change(one) for one in as_records(domain, "test")])


def test_too_few_cities_are_said():
    with pytest.raises(InputError, match="too few cities"):
        load("pairs", str.split, sizes={"host": 20, "plugin": 3, "dev": 2, "test": 2}, blocks=BLOCKS)


def test_it_is_a_domain(domain):
    assert isinstance(domain, PairsDomain) and domain.answers == ("no", "yes")


def test_the_first_lesson_is_that_equal_words_mean_yes_and_the_second_denies_every_fact(domain):
    assert {one.kind for one in domain.splits["host_first"]} == {"same_country", "same_continent", "same_size"}
    sizes, continents = {"small", "medium", "large"}, set(CONTINENTS.values())
    for split in ("host_first", "host", "dev_told"):
        for one in domain.splits[split]:
            told = [
                {"size" if word in sizes else "continent" if word in continents else "country": word for word in words}
                for words in map(str.split, one.hints)
            ]
            asked = [facts[asked_fact(one.kind)] for facts in told]
            assert (asked[0] == asked[1]) == (one.answer == ("no" if one.kind.startswith("not_") else "yes"))
            assert split != "dev_told" or [len(facts) for facts in told] == [1, 1]
    assert {one.kind for one in domain.splits["host"]} == {*PAIRS, *TAUGHT}
    assert all(wordings.dev == wordings.test == () for wordings in TAUGHT.values())
    with pytest.raises(InputError, match="blocks name"):
        load("pairs", str.split, sizes=SIZES, blocks={"host": 20})

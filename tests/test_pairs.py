"""Questions about two entities: by construction no word and no single entity tells the answer; scored by pairs."""

from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest

from kinject.data.records import Mention, Record
from kinject.data.sources import load
from kinject.data.sources.geonames_pairs import PairQuestion, PairsDomain
from kinject.data.sources.kinds import SLASH
from kinject.data.sources.pair_wordings import PAIRS
from kinject.errors import InputError
from kinject.stages.pairs import both_right, entities, one_wrong, pairs_of

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
    for kind, wordings in PAIRS.items():
        lists = (wordings.train, wordings.dev, wordings.test)
        assert [len(one) for one in lists] == [6, 2, 3] and len({*sum(lists, ())}) == 11, kind
        for wording in sum(lists, ()):
            assert wording.count("[X]") == wording.count("[Y]") == wording.count("[MASK]") == 1


def test_a_record_names_both_and_what_is_told_stands_before_each(domain):
    for split in ("test", "test_told", "dev_told", "host", "host_first"):
        for question, record in zip(domain.splits[split], as_records(domain, split), strict=True):
            if not isinstance(question, PairQuestion):
                continue
            said = [record.text[mention.start : mention.end] for mention in record.mentions]
            assert said == [question.name, question.other_name]
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


def test_one_wrong_vector_changes_one_entity_of_every_question(domain):
    records = as_records(domain, "test")
    wrong = one_wrong(records, 0)
    sides = Counter()
    for before, after in zip(records, wrong, strict=True):
        changed = [a != b for a, b in zip(entities(before), entities(after), strict=True)]
        assert sum(changed) == 1 and before.text == after.text
        sides[changed.index(True)] += 1
    assert len(sides) == 2
    for one, other in pairwise(wrong[:4]):
        assert one.fields["block"] == other.fields["block"]


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


def test_the_first_lesson_is_that_equal_words_mean_yes(domain):
    sizes = {"small", "medium", "large"}
    assert {one.kind for one in domain.splits["host_first"]} == {"same_country", "same_size"}
    for one in domain.splits["host_first"]:
        is_size = one.kind == "same_size"
        known = [{word for word in hint.split() if (word in sizes) == is_size} for hint in one.hints]
        assert all(known) and (known[0] == known[1]) == (one.answer == "yes")
    assert all(all(one.hints) if isinstance(one, PairQuestion) else one.hint for one in domain.splits["host"])
    with pytest.raises(InputError, match="blocks name"):
        load("pairs", str.split, sizes=SIZES, blocks={"host": 20})

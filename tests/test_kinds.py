"""Questions of many kinds: the wordings, who is asked what, and the table by kind."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from test_sources import needs_packages, pieces  # noqa: F401  (a fixture)
from tiny_world import LANDS, evaluate_stage, plugin_stage, question, run_experiment, write_records

from kinject.data.records import drawn, parse_record, read_records
from kinject.data.sources import geonames_kinds, load, wordnet_kinds
from kinject.data.sources.domain import MAX_PIECES
from kinject.data.sources.kinds import Asker, Dealing, KindQuestion, Subject, deal, fair_subjects, limit, record
from kinject.data.sources.wordings import BIOLOGY, GEOGRAPHY, Wordings
from kinject.errors import InputError
from kinject.knowledge.base import KnowledgeBase
from kinject.reports.console import Reporter
from kinject.reports.tables import Ended, report
from kinject.stages.comparison import by_kind, follows, kinds_of, majority_of_kind, mean_of, nearest_of_kind
from kinject.stages.knowledge import write_described
from kinject.stages.rivals import NameSubstituted, renamed

FREE = Path(__file__).parents[1] / "configs/free_sentences"
DOMAINS = {"geography_kinds": GEOGRAPHY, "biology_kinds": BIOLOGY}
WRITTEN_BEFORE_TUNING = "2799ce384b75bad811ecf5f07da87748640aec8403cd51c8750e1242417d957d"


def parsed(values):
    return [parse_record(value, f"test:{number}") for number, value in enumerate(values, 1)]


@pytest.mark.parametrize("wordings", DOMAINS.values())
def test_each_kind_is_asked_in_six_two_and_three_wordings_that_share_none(wordings):
    for kind in wordings.values():
        assert (len(kind.train), len(kind.dev), len(kind.test)) == (6, 2, 3)
        for sentence in (*kind.train, *kind.dev, *kind.test):
            assert sentence.count("[X]") == sentence.count("[MASK]") == 1
    every = [sentence for kind in wordings.values() for sentence in (*kind.train, *kind.dev, *kind.test)]
    again = [sentence for sentence, count in Counter(every).items() if count > 1]
    assert not again


def test_the_wordings_of_the_test_are_as_they_were_written_before_any_tuning():
    every = [sentence for domain in (GEOGRAPHY, BIOLOGY) for kind in domain.values() for sentence in kind.test]
    assert hashlib.sha256("\n".join(every).encode()).hexdigest() == WRITTEN_BEFORE_TUNING


@pytest.fixture(scope="module")
def domains(pieces):  # noqa: F811
    return {name: load(name, pieces) for name in DOMAINS}


@needs_packages
@pytest.mark.parametrize("name", DOMAINS)
def test_no_entity_and_no_wording_of_the_test_is_in_training(domains, pieces, name):  # noqa: F811
    found, wordings = domains[name], DOMAINS[name]
    asked = {split: {question.entity for question in questions} for split, questions in found.splits.items()}
    for one, other in (("host", "plugin"), ("host", "test"), ("plugin", "test"), ("dev", "test"), ("host", "dev")):
        assert not asked[one] & asked[other]
    for split, questions in found.splits.items():
        stage = {"dev": "dev", "test": "test", "choices": "test"}.get(split.partition("_")[0], "train")
        for one in questions:
            assert one.wording in getattr(wordings[one.kind], stage)
            assert (pieces(one.answer) == [one.answer]) or one.answer in one.choices
            if one.entity < len(found.descriptions) and split != "host":  # what is known answers with its own name
                assert one.answer not in one.name
                assert len(pieces(one.name)) <= MAX_PIECES
    (one_kind,) = {split.removeprefix("plugin_") for split in found.splits if split.startswith("plugin_")}
    assert {one.kind for one in found.splits[f"plugin_{one_kind}"]} == {one_kind}
    assert {one.kind for one in found.splits["plugin"]} == {one.kind for one in found.splits["test"]} == set(wordings)


@needs_packages
@pytest.mark.parametrize("name", DOMAINS)
def test_no_answer_of_the_test_is_given_for_most_of_a_kind(domains, name):
    for kind in DOMAINS[name]:
        answers = Counter(one.answer for one in domains[name].splits["test"] if one.kind == kind)
        assert max(answers.values()) <= 2 * 200 // len(answers), kind
        assert sum(answers.values()) >= 100, kind


@needs_packages
@pytest.mark.parametrize("name", DOMAINS)
def test_the_seed_deals_and_the_graph_stays(domains, pieces, name):  # noqa: F811
    again, other = load(name, pieces), load(name, pieces, seed=1)
    assert again.splits == domains[name].splits
    assert other.splits["test"] != domains[name].splits["test"]
    assert again.ids == other.ids == domains[name].ids
    np.testing.assert_array_equal(again.triples, other.triples)


@needs_packages
def test_the_graph_tells_what_does_not_follow_from_the_country(domains):
    found = domains["geography_kinds"]
    told = {"size": "size", "part": "part_of_country", "metropolis": "nearest_large_city"}
    triples = {(head, found.relations[relation], found.labels[tail].lower()) for head, relation, tail in found.triples}
    answers = {}
    for one in found.splits["test"]:
        answers.setdefault(one.entity, {})[one.kind] = one.answer
        if one.kind in told:
            assert (one.entity, told[one.kind], one.answer) in triples
    same_country = {}
    for facts in answers.values():
        for kind in told:
            if "country" in facts and kind in facts:
                same_country.setdefault((facts["country"], kind), []).append(facts[kind])
    assert np.mean([len(set(words)) > 1 for words in same_country.values() if len(words) > 3]) > 0.8


@needs_packages
def test_known_facts_of_geography(domains):
    questions = [one for split in domains["geography_kinds"].splits.values() for one in split]
    facts = {(one.name, one.kind): one.answer for one in questions}
    known = {("germany", "capital"): "berlin", ("japan", "currency"): "yen", ("egypt", "continent"): "africa"}
    assert {key: facts[key] for key in known} == known
    assert facts["france", "country"] == "france"  # "which country" is asked of countries too


@needs_packages
@pytest.mark.parametrize("name", DOMAINS)
def test_the_free_sentences_ask_what_is_true_of_entities_that_no_training_asks_about(domains, pieces, name):  # noqa: F811
    found, path = domains[name], FREE / f"{name.removesuffix('_kinds')}.jsonl"
    records = list(read_records(path, ("label", "kind")))
    assert len(records) == 20
    row_of = {key: row for row, key in enumerate(found.ids)}
    facts = {(head, found.labels[tail].lower()) for head, _, tail in found.triples.tolist()}
    countries = {one.name: {} for one in found.splits["host"] if found.ids[one.entity].startswith("geonames:")}
    for one in found.splits["host"]:  # what follows from a country is asked of the country itself
        if one.name in countries:
            countries[one.name][one.kind] = one.answer
    for one in records:
        (mention,) = one.mentions
        row, answer = row_of[mention.entity], one.fields["label"]
        assert one.fields["kind"] in DOMAINS[name]
        assert pieces(answer) == [answer]
        assert answer not in one.text.lower()
        assert not any(question.entity == row for split in found.splits.values() for question in split)
        of_country = [known.get(one.fields["kind"]) for land, known in countries.items() if (row, land) in facts]
        assert (row, answer) in facts or answer in of_country, one.text


@needs_packages
def test_a_city_is_described_by_what_is_known_of_it(domains):
    found = domains["geography_kinds"]
    assert found.descriptions[-1] == ""  # of a node that is no city
    for one in found.splits["test"]:
        if one.kind in ("country", "continent", "size", "part", "metropolis"):
            assert one.answer in found.descriptions[one.entity]
    whole = {"size": "small", "part": "north", "country": "peru", "continent": "america", "metropolis": "lima"}
    assert geonames_kinds._described(whole) == "small city in the north of peru, america, near lima"
    alone = {kind: whole[kind] for kind in ("size", "part", "country")}
    assert geonames_kinds._described(alone) == "small city in the north of peru"


def test_who_is_asked_several_questions_is_described_once(tmp_path):
    told = [("Q1", "kassel", "a city"), ("Q2", "x", ""), ("Q1", "kassel", "a city"), ("Q3", "ulm", "a town")]
    assert write_described(tmp_path / "d.jsonl", told) == 2
    records = list(read_records(tmp_path / "d.jsonl", ("description",)))
    assert [one.mentions[0].entity for one in records] == ["Q1", "Q3"]


def test_a_definition_that_says_two_answers_says_none():
    said = wordnet_kinds.said
    assert said("small brown bird of North America") == {"region": "america", "size": "small", "colour": "brown"}
    assert said("bird of Europe and Asia with red or black wings") == {}
    assert said("the redwood of smalltown") == {}


def test_parts_of_a_country_by_hand():
    places = [(0, 0), (10, 1), (-10, 1), (1, 10), (1, -10), (0, 0)]
    cities = [{"latitude": up, "longitude": right, "countrycode": "A"} for up, right in places[:5]]
    assert geonames_kinds._parts(cities) == ["middle", "north", "south", "east", "west"]


def test_a_hint_moves_the_mention():
    asked = KindQuestion(3, "kassel", "germany", "country", "The country of [X] is [MASK].", "germany large")
    made = record(asked, "Q3")
    (mention,) = made["mentions"]
    assert made["text"] == "The country of germany large / kassel is [MASK]."
    assert made["text"][mention["start"] : mention["end"]] == "kassel"
    assert record(KindQuestion(3, "kassel", "x", "country", "[X] is [MASK]."), "Q3")["mentions"][0]["start"] == 0


KINDS = {
    kind: Wordings(
        tuple(f"{kind} {i} [X] [MASK]" for i in range(2)), (f"{kind} d [X] [MASK]",), (f"{kind} t [X] [MASK]",)
    )
    for kind in ("a", "b", "c")
}


def subjects(count):
    return [Subject(i, f"name{i}", {kind: f"{kind}{i % 4}" for kind in KINDS}, {}) for i in range(count)]


def dealing(**changes):
    sizes = {"host": 10, "plugin": 8, "dev": 6, "test": 6}
    return Dealing(sizes=sizes, host_questions=2, plugin_questions=2, hinted=0.0, asked=100, per_answer=99, **changes)


def test_dealing_by_hand():
    known = [Subject(99, "known", {"a": "a0"}, {})]
    how = dealing(one_kind="b", repeated=3, seed=0)
    splits = deal(subjects(30), known, KINDS, how, "here")
    assert len(splits["host"]) == 10 * 2 + 3 * 2  # a known subject in both wordings, three times
    assert sum(one.entity == 99 for one in splits["host"]) == 6
    assert len(splits["plugin"]) == 16
    count = Counter(one.kind for one in splits["plugin"])
    assert max(count.values()) - min(count.values()) <= 1
    assert len(splits["plugin_b"]) == 8
    with pytest.raises(InputError, match="has 29 fair subjects, 30 were asked for"):
        deal(subjects(29), known, KINDS, how, "here")
    with pytest.raises(InputError, match=r"there is no option 'askd'.*asked"):
        Dealing.of("here", one_kind="b", per_answer=1, askd=3)
    with pytest.raises(InputError, match="there is no kind 'z'"):
        deal(subjects(30), known, KINDS, dealing(one_kind="z", repeated=1, seed=0), "here")


def test_hints_stand_in_the_share_of_questions_that_was_asked_for_and_hold_the_right_word():
    hinted = [Subject(i, f"name{i}", {"a": "x", "b": "y"}, {"a": "right", "b": "other"}) for i in range(400)]
    asker = Asker(KINDS, np.random.default_rng(0))
    asked = [asker.ask(one, "a", "train", 0.5) for one in hinted]
    with_hint = [one for one in asked if one.hint]
    assert 0.4 < len(with_hint) / len(asked) < 0.6
    assert all("right" in one.hint.split() for one in with_hint)
    assert {one.hint for one in with_hint} == {"right", "right other", "other right"}


def test_fair_subjects_by_hand():
    def split(word):
        return [word] if len(word) < 8 else [word[i : i + 1] for i in range(len(word))]

    pool = [
        Subject(0, "one", {"a": "x", "b": "y"}, {}),
        Subject(1, "shared", {"a": "x", "b": "y"}, {}),
        Subject(2, "muchtoolong", {"a": "x", "b": "y"}, {}),
        Subject(3, "hasx", {"a": "x", "b": "y", "c": "z"}, {}),
        Subject(4, "few", {"a": "x", "b": "longerthanone"}, {}),
    ]
    names = ["one", "shared", "shared", "muchtoolong", "hasx", "few"]
    fair = {one.name: one.answers for one in fair_subjects(pool, names, split, KINDS, seed=0)}
    assert fair == {"one": {"a": "x", "b": "y"}, "hasx": {"b": "y", "c": "z"}}
    assert [one.entity for one in limit(subjects(9), "a", 1)] == [0, 1, 2, 3]


def asked(*triples):
    return parsed(
        {"text": "x [MASK]", "mentions": [{"start": 0, "end": 1, "entity": entity}], "label": label, "kind": kind}
        for entity, kind, label in triples
    )


def test_the_table_by_kind_by_hand():
    records = asked(("p", "a", "1"), ("p", "b", "2"), ("q", "a", "3"))
    kinds = kinds_of(records)
    found = by_kind({"host": np.array([1.0, 0, 0]), "follows": np.array([np.nan, np.nan, 1])}, kinds)
    assert found == {"a": {"n": 2, "host": 0.5, "follows": 1.0}, "b": {"n": 1, "host": 0.0}}
    assert mean_of(np.array([np.nan])) is None
    with pytest.raises(InputError, match=r"test:1.*field kind is None"):
        kinds_of(parsed([{"text": "x", "label": "y"}]))


def test_wrong_vectors_are_followed_only_where_the_other_has_another_answer():
    records = asked(("p", "a", "1"), ("q", "a", "2"), ("p", "b", "5"), ("q", "b", "5"), ("r", "c", "9"))
    labels = np.array(["1", "2", "5", "5", "9"])
    said = np.array(["2", "2", "5", "5", "9"])
    donors = np.array([1, 0, 1, 0, 0])  # q's vector for p, p's for q, …, p's for r, which is not asked c
    np.testing.assert_array_equal(follows(records, labels, said, donors), [1, 0, np.nan, np.nan, np.nan])


def test_look_ups_told_the_kind_by_hand():
    train = asked(("p", "a", "1"), ("p", "b", "2"), ("q", "a", "3"), ("q", "a", "3"))
    test = asked(("r", "a", "1"), ("r", "b", "2"), ("s", "a", "3"), ("s", "z", "3"))
    vectors, there = np.array([[0.0], [0], [9], [9]]), np.array([True] * 4)
    right = nearest_of_kind(vectors, there, train, np.array([[1.0], [1], [8], [8]]), test)
    assert right.tolist() == [1, 1, 1, 0]
    assert majority_of_kind(train, test).tolist() == [0, 1, 1, 0]
    there[3] = there[2] = False
    assert nearest_of_kind(vectors, there, train, np.array([[1.0], [1], [8], [8]]), test).tolist() == [1, 1, 0, 0]


def test_examples_show_one_entity_and_then_one_question():
    values = [
        {"text": f"{wording} x", "mentions": [{"start": 0, "end": 1, "entity": entity}], "wording": wording}
        for entity in "pqr"
        for wording in "abcd"
    ]
    records = parsed(values[:-1])  # r is asked three questions only
    for seed in range(5):
        chosen = drawn(records, 4, seed)
        assert len({records[i].mentions[0].entity for i in chosen[:4]}) == 1
        assert len({records[i].fields["wording"] for i in chosen[:4]}) == 4
        assert len({records[i].fields["wording"] for i in chosen[4:]}) == 1
        assert len({records[i].mentions[0].entity for i in chosen[4:]}) == len(chosen) - 4 == 3
        assert chosen == drawn(records, 4, seed)


def test_a_name_is_put_where_the_first_mention_stood():
    (one,) = parsed([{"text": "in kassel now", "mentions": [{"start": 3, "end": 9, "entity": "Q1"}]}])
    new = renamed(one, "germany")
    assert new.text == "in germany now"
    assert (new.mentions[0].start, new.mentions[0].end, new.mentions[0].entity) == (3, 10, None)


def test_the_name_to_be_put_is_chosen_on_development_data(world):
    knowledge = KnowledgeBase.open(world / "knowledge")

    def of(numbers):
        lands = [{**question(i), "kind": "land"} for i in numbers]
        return parsed(lands + [{**question(i), "label": f"city{i % 2}", "kind": "noise"} for i in numbers])

    def host_right(records):  # answers the land that stands in the text
        return np.array([float(record.fields["label"] in record.text) for record in records])

    rival = NameSubstituted(knowledge, host_right)
    right, chosen = rival.right(of(range(40)), of(range(40, 50)), of(range(50, 60)))
    assert chosen["facet"] == "land"
    assert chosen["parameters"] == LANDS * (8 + 1)
    assert right[:10].mean() == 1.0  # of the ten questions "land"; "noise" cannot be answered so
    assert right[10:].mean() == 0.0


def test_a_run_reports_every_row_by_kind(world, tmp_path):
    kinds = ("even", "odd")
    files = {}
    for split, numbers in (("train", range(40)), ("dev", range(40, 50)), ("test", range(50, 60))):
        records = [{**question(i), "kind": kinds[i % 2], "wording": kinds[i % 2]} for i in numbers]
        files[split] = (str(write_records(tmp_path / f"{split}.jsonl", records)),)
    stage = evaluate_stage(world, {"plugin": "@plugin"})
    (domain,) = stage["domains"].values()
    rivals = {"encoder": str(world / "host"), "classifiers": {"classifier_plugin_data": files["train"]}}
    domain |= {"data": files["test"], "reference_data": files["train"], "by_kind": True}
    domain["rivals"] = {**rivals, "facets": files["train"], "dev_data": files["dev"]}
    stage["examples"] = 2
    results = run_experiment(
        {"seed": 0, "stages": {"plugin": plugin_stage(world), "evaluate": stage}}, tmp_path / "run"
    )
    (rows,) = results["evaluate"].values()
    assert set(rows["kinds"]) == set(kinds)
    for row in ("host", "plugin", "shuffled", "nearest_neighbour", "classifier_plugin_data", "name_substituted"):
        mean = np.mean([rows["kinds"][kind][row] for kind in kinds])  # five questions each
        assert rows[row] == pytest.approx(mean), row
    assert rows["plugin"] > rows["host"]
    for row in ("classifier_plugin_data", "name_substituted"):
        assert rows["settings"][row]["parameters"] > 0
        assert rows["settings"][row]["seconds"] >= 0 < rows["settings"][row]["milliseconds"]
    assert len(rows["examples"]) == 1 + 2  # an entity is asked once here, a sentence of five
    stages = {"evaluate": "evaluate"}
    report(Ended("run", tmp_path / "run", stages, results, "kinject train", 1.0), Reporter(quiet=True))
    text = (tmp_path / "run" / "results.md").read_text()
    assert "| even (n=5) | odd (n=5) |" in text


def test_rivals_without_kinds_are_refused(world, tmp_path):
    stage = evaluate_stage(world, {"plugin": str(world)})
    (domain,) = stage["domains"].values()
    domain["rivals"] = {"encoder": str(world / "host"), "dev_data": (str(world / "dev.jsonl"),)}
    with pytest.raises(InputError, match="rivals need knowledge and by_kind"):
        run_experiment({"seed": 0, "stages": {"evaluate": stage}}, tmp_path / "run")

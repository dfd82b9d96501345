"""E-BERT and PELT, which train nothing: least squares, the forms of slots, vectors out of texts, kill and resume."""

import json

import numpy as np
import pytest
from encoding_cases import both
from encoding_cases import host as tokenizer_of
from encoding_cases import rows as known_rows
from tiny import fast_jit
from tiny_world import (
    CITIES,
    VOCABULARY,
    as_device,
    evaluate_stage,
    run_experiment,
    vectors,
    write_host_and_base,
    write_records,
)

from kinject.cli.knowledge import main as knowledge_command
from kinject.data.encode import EntityEncoder, Mention, Passage
from kinject.data.pipeline import Feed
from kinject.data.records import parse_record, read_records
from kinject.errors import InputError
from kinject.inference import occurrences
from kinject.inference.host import open_host, task_examples
from kinject.inference.occurrences import MaskReader, Reading, Sums, build_from_text, count_occurrences
from kinject.knowledge.base import KnowledgeBase, write_knowledge
from kinject.models.heads import read_hidden
from kinject.plugins.base import make_plugin, method_without_parameters
from kinject.plugins.e_bert import least_squares, shared_words
from kinject.plugins.store import load_plugin
from kinject.tasks.base import make_task
from kinject.tasks.lama import together


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_host_and_base(tmp_path_factory.mktemp("untrained"), more=("(", ")"))


@pytest.fixture(scope="module")
def host(folder):
    return open_host(folder / "host", head="masked_lm")


def stands(one, tokenizer):
    """The pieces of a passage, a slot as E."""
    return [
        "E" if slot >= 0 else tokenizer.decode([i]).strip()
        for i, slot in zip(one.token_ids, one.entity_slot, strict=True)
    ]


@both
@pytest.mark.parametrize(
    ("form", "text"), [("before", "mo # E / ka # ri"), ("instead", "mo # E # ri"), ("behind", "mo # ka ( E ) # ri")]
)
def test_forms_of_a_slot(family, form, text):
    tokenizer = tokenizer_of(family)
    encoder = EntityEncoder(tokenizer, form=form)
    passage = Passage(["mo", "ka", "ri"], [Mention(1, 2, "Q1", "#", "#")])
    (one,) = encoder.encode_batch([passage], known_rows)
    plain = EntityEncoder(tokenizer).encode(["mo", "#", "ka", "#", "ri"])
    expected = " ".join(stands(one, tokenizer)[1:-1]).split()
    assert [word for word in expected if word] == text.split()
    low, high = one.spans[0]
    assert (
        (one.entity_slot[low:high] >= 0).all()
        if form == "instead"
        else tokenizer.decode(one.token_ids[low:high]).strip() == "ka"
    )
    # without a vector, with the plugin off, and where the mention is asked for, nothing of the mention goes
    assert EntityEncoder(tokenizer, form=form).encode_batch([passage])[0].token_ids.tolist() == plain.token_ids.tolist()
    masked = Passage(["mo", "ka", "ri"], [Mention(1, 2, "Q1", masked=True)])
    assert len(encoder.encode_batch([masked], known_rows)[0].mask_positions)
    short = EntityEncoder(tokenizer, len(one) - 1, form=form).encode_batch([passage], known_rows)[0]
    assert len(short) == len(one) - 1 and (short.entity_slot >= 0).sum() == 1


def test_least_squares_is_numpys():
    draw = np.random.default_rng(0)
    for count in (40, 5):  # determined, and not
        x, y = draw.normal(size=(count, 8)), draw.normal(size=(count, 16))
        np.testing.assert_array_equal(least_squares(x, y), np.linalg.lstsq(x, y, rcond=None)[0].astype(np.float32))
    with pytest.raises(InputError, match="words: none of them is a word of the host's vocabulary"):
        least_squares(np.zeros((0, 8)), np.zeros((0, 16)))


def test_shared_words(host):
    words = ["land1", "Land1", "nowhere", "[MASK]", "city3", "far", "faraway"]
    numbers, pieces = shared_words(words, host.tokenizer)
    assert {words[i]: VOCABULARY[p] for i, p in zip(numbers, pieces, strict=True)} == {
        w: w for w in ("land1", "city3", "far")
    }


def test_stage_e_bert(folder, host, tmp_path):
    """Vectors that are a linear picture of the host's own words are put where the words are, entities with them."""
    table = np.asarray(host.loaded.host.encoder.embeddings.word.embedding[...], np.float64)
    picture = np.random.default_rng(1).normal(size=(16, 24))
    space = (table @ picture).astype(np.float32)
    words = [word for word in VOCABULARY if word[0] not in "[#"]
    rows = [VOCABULARY.index(word) for word in words]
    write_knowledge(tmp_path / "words", name="words", ids=words, vectors=space[rows])
    lands = [VOCABULARY.index(f"land{i % 5}") for i in range(CITIES)]
    write_knowledge(tmp_path / "entities", name="entities", ids=[f"Q{i}" for i in range(CITIES)], vectors=space[lands])
    made = {"kind": "e_bert", "host": str(folder / "host"), "knowledge": str(tmp_path / "entities")}
    stages = {"fit": {**made, "words": str(tmp_path / "words"), "form": "replace"}}
    results = run_experiment({"seed": 0, "stages": stages}, tmp_path / "run")
    assert results["fit"]["shared_words"] == len(words) and results["fit"]["relative_error"] < 1e-6
    plugin = load_plugin(tmp_path / "run" / "fit", host=host.identity).plugin
    expected = np.linalg.lstsq(space[rows].astype(np.float64), table[rows], rcond=None)[0]
    np.testing.assert_array_equal(np.asarray(plugin.kernel[...]), expected.astype(np.float32))
    # an entity in the place of its name is read as the word that it stands for
    knowledge = KnowledgeBase.open(tmp_path / "entities")
    record = parse_record(
        {"text": "city7 is in [MASK] .", "mentions": [{"start": 0, "end": 5, "entity": "Q7"}], "label": "far"}, "x"
    )
    examples = task_examples(make_task("cloze"), plugin, [record], host, knowledge, max_length=None)
    (batch,) = Feed(examples, knowledge.gather).evaluation(1)
    task = make_task("cloze")
    got = fast_jit(lambda batch: task.outputs(host.loaded.host, plugin, batch))(as_device(batch))
    record = parse_record({"text": "land2 is in [MASK] .", "label": "far"}, "x")
    (plain,) = Feed(task.examples([record], host.encoder(None), None)).evaluation(1)
    bare = fast_jit(lambda batch: task.outputs(host.loaded.host, None, batch))(as_device(plain))
    np.testing.assert_allclose(got, bare, rtol=0, atol=1e-4)
    assert batch["token_ids"].shape == plain["token_ids"].shape
    stages["fit"]["words"] = str(folder / "knowledge")
    with pytest.raises(InputError, match=r"stages\.fit\.words: its vectors have 8 numbers, those of the entities 24"):
        run_experiment({"seed": 0, "stages": stages}, tmp_path / "refused")


def test_ensembles():
    one, other = np.log([[0.7, 0.2, 0.1]]), np.log([[0.1, 0.1, 0.8]])
    mean = (one + other) / 2
    np.testing.assert_allclose(together(one, other, None, "mean"), mean, atol=1e-6)
    np.testing.assert_allclose(together(one, other, None, "max"), other, atol=1e-6)
    among = np.array([True, True, False])  # of the first two words the first arm is surer
    np.testing.assert_allclose(together(one, other, among, "max")[:, :2], np.log([[7 / 9, 2 / 9]]), atol=1e-6)


@pytest.mark.slow
def test_ensemble_of_lama(folder, host):
    knowledge = KnowledgeBase.open(folder / "knowledge")
    texts = [f"city{i} is in {'far ' * (i % 3)}[MASK] ." for i in range(8)]
    records = [
        parse_record(
            {"text": text, "mentions": [{"start": 0, "end": 5, "entity": f"Q{i}"}], "label": "land1", "relation": "P1"},
            f"f:{i}",
        )
        for i, text in enumerate(texts)
    ]
    plugin = make_plugin({"name": "map_tuning"}, hidden_size=16, knowledge_dim=8)

    def run(task, plugin, batch):
        return np.asarray(fast_jit(lambda batch: task.outputs(host.loaded.host, plugin, batch))(as_device(batch)))[:, 0]

    outputs = {}
    for how in (None, "mean", "max"):
        task = make_task("lama", ensemble=how)
        examples = task_examples(task, plugin, records, host, knowledge, max_length=None, buckets=1)
        (batch,) = Feed(examples, knowledge.gather).evaluation(8)
        outputs[how] = run(task, plugin, batch)
    plain = make_task("cloze")
    (batch,) = Feed(plain.examples(records, host.encoder(None), None, buckets=1)).evaluation(8)
    bare = run(plain, None, batch)
    for how in ("mean", "max"):
        np.testing.assert_allclose(outputs[how], together(outputs[None], bare, None, how), atol=1e-5)
    with pytest.raises(InputError, match=r"task_options\.ensemble: it is 'sum'; choose mean or max"):
        make_task("lama", ensemble="sum")


def corpus(path, count=60):
    draw = np.random.default_rng(3)
    lines = []
    for number in range(count):
        one, other = draw.integers(0, 9, 2)
        head = f"city{one}"
        text = f"{head} is a place in land{one % 5} {'far ' * int(draw.integers(0, 9))}of city{other} ."
        at = text.index(f"city{other} .")
        mentions = [{"start": 0, "end": len(head), "entity": f"Q{one}"}]
        mentions.append({"start": at, "end": at + len(f"city{other}"), "entity": f"Q{other}" if number % 7 else None})
        lines.append({"text": text, "mentions": mentions})
    lines.append(
        {
            "tokens": ["far", "is", "a", "place", "of", "city3", "far", "."],
            "mentions": [{"start": 5, "end": 6, "entity": "Q3"}],
        }
    )
    lines.append({"text": "city8 is far .", "mentions": [{"start": 0, "end": 5, "entity": "Q99"}]})  # too short
    lines.append(
        {"text": "[MASK] is a place in land1 of city8 .", "mentions": [{"start": 30, "end": 35, "entity": "Q98"}]}
    )
    return write_records(path, lines)


@pytest.fixture(scope="module")
def texts(folder):
    return corpus(folder / "corpus.jsonl")


READING = {"batch_size": 4, "chunk": 10, "max_length": 24}


def all_at_once(host, texts):
    """Means over all occurrences, in one forward pass."""
    model, sums, masked, owners = host.loaded.host, {}, [], []
    for record in read_records(texts):
        if len(record.text.split()) < 8 or "[MASK]" in record.text:
            continue
        for mention in record.mentions:
            if mention.entity is None:
                continue
            words = list(record.source) if isinstance(record.source, tuple) else record.source
            name = words[mention.start : mention.end]
            hidden = (
                [*words[: mention.start], "[MASK]", *words[mention.end :]]
                if isinstance(words, list)
                else (words[: mention.start] + "[MASK]" + words[mention.end :])
            )
            masked.append(Passage(hidden))
            owners.append(mention.entity)
            assert name
    encoded = host.encoder(24).encode_batch(masked)
    batch = host.encoder(24).pad(encoded, 24, 0)
    places = np.stack([one.blanks for one in encoded])
    read = fast_jit(lambda batch, places: model.head.hidden(read_hidden(model, batch, places))[:, 0])(
        as_device(batch), places
    )
    for entity, one in zip(owners, read, strict=True):
        sums.setdefault(entity, []).append(np.asarray(one, np.float64))
    return {entity: np.mean(some, 0) for entity, some in sums.items()}


def test_vectors_of_texts_are_the_means_of_all_outputs(folder, host, texts, tmp_path):
    made = KnowledgeBase.open(build_from_text(tmp_path / "kb", host, [texts], Reading(**READING)))
    expected = all_at_once(host, texts)
    assert set(made.ids(np.arange(made.size))) == set(expected)
    rows = made.rows(list(expected))
    np.testing.assert_allclose(made.gather(rows)[0], np.array(list(expected.values())), rtol=0, atol=2e-6)
    assert made.entity(int(made.rows(["Q3"])[0])).label == "city3"
    about = made.manifest["provenance"]
    assert about["texts"] == 63 and about["host"] == host.identity.fingerprint
    assert not list(tmp_path.glob(".kb*"))


def test_a_share_is_drawn_of_many_occurrences(host, texts):
    reading = Reading(most=3, **READING)
    counted = count_occurrences(read_records(texts), reading)
    drawn = [row for _, row, _ in occurrences.occurrences(read_records(texts), counted, reading)]
    taken = np.bincount(drawn, minlength=len(counted.ids))
    assert (taken == np.minimum(counted.counts, 3)).all() and (counted.counts > 3).any()
    other = Reading(most=3, seed=1, **READING)
    texts_of = [
        [passage.text for _, _, passage in occurrences.occurrences(read_records(texts), counted, one)]
        for one in (reading, other)
    ]
    assert texts_of[0] != texts_of[1]


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "moment", [pytest.param("before", marks=pytest.mark.slow), "within", pytest.param("after", marks=pytest.mark.slow)]
)
def test_an_interrupted_build_goes_on_to_the_same_bits(host, texts, tmp_path, monkeypatch, moment):
    whole = KnowledgeBase.open(build_from_text(tmp_path / "whole", host, [texts], Reading(**READING)))
    add, done = Sums.add, Sums._write_done
    calls = []

    def interrupted(self, rows, read):
        calls.append(1)
        if len(calls) == 4 and moment == "before":
            raise Killed
        add(self, rows, read)
        if len(calls) == 4 and moment == "after":
            raise Killed

    def unfinished(self, chunks):
        if chunks == 4 and moment == "within":  # the sums have changed, and nobody has said so yet
            raise Killed
        done(self, chunks)

    with monkeypatch.context() as patch:
        patch.setattr(Sums, "add", interrupted)
        patch.setattr(Sums, "_write_done", unfinished)
        with pytest.raises(Killed):
            build_from_text(tmp_path / "kb", host, [texts], Reading(**READING))
    assert not (tmp_path / "kb").exists()
    with pytest.raises(InputError, match="holds an unfinished run over another corpus, host or settings"):
        build_from_text(tmp_path / "kb", host, [texts], Reading(**{**READING, "most": 5}))
    read = []
    with monkeypatch.context() as patch:
        call = MaskReader.__call__
        patch.setattr(MaskReader, "__call__", lambda self, some: read.append(len(some)) or call(self, some))
        again = KnowledgeBase.open(build_from_text(tmp_path / "kb", host, [texts], Reading(**READING)))
    assert again.vectors.tobytes() == whole.vectors.tobytes() and again.fingerprint == whole.fingerprint
    total = whole.manifest["provenance"]["occurrences"]
    assert sum(read) == total - 10 * (4 if moment == "after" else 3)


def test_the_command_and_the_plugin(folder, host, texts, tmp_path, capsys):
    table = tmp_path / "things.csv"
    table.write_text("id,label,description\n" + "".join(f"Q{i},city{i},a place\n" for i in range(9)) + "Q50,nobody,x\n")
    out = tmp_path / "kb"
    arguments = ["build", "--from-text", str(texts), "--host", str(folder / "host"), "--out", str(out)]
    assert knowledge_command([*arguments, "--entities", str(table), "--quiet", "--max-length", "24"]) == 0
    made = KnowledgeBase.open(out)
    assert made.dim == 16 and made.size == 10 and not made.gather(made.rows(["Q50"]))[1].any()
    records = write_records(
        tmp_path / "asked.jsonl",
        [{"text": "city2 is in [MASK] .", "mentions": [{"start": 0, "end": 5, "entity": "Q2"}], "label": "land2"}],
    )
    stage = evaluate_stage(
        folder, {"pelt": {"name": "pelt"}, "close": {"name": "pelt", "norm": None, "form": "concat"}}
    )
    domain = {"knowledge": str(out), "data": (str(records),), "plugins": stage["domains"]["cities"]["plugins"]}
    results = run_experiment(
        {"seed": 0, "stages": {"table": {**stage, "domains": {"cities": domain}}}}, tmp_path / "run"
    )
    assert {"pelt", "close"} <= results["table"]["cities"].keys()
    plugin = method_without_parameters({"name": "pelt", "norm": 2.0}, hidden_size=16, where="x")
    record = list(read_records(records))
    examples = task_examples(make_task("cloze"), plugin, record, host, made, max_length=None)
    (batch,) = Feed(examples, made.gather).evaluation(1)
    assert stands_of(batch) == ["[CLS]", "city2", "(", "E", ")", "is", "in", "[MASK]", ".", "[SEP]"]
    changed = np.asarray(plugin.embed(np.zeros((1, batch["token_ids"].shape[1], 16), np.float32), batch))
    vector = made.gather(made.rows(["Q2"]))[0][0]
    np.testing.assert_allclose(changed[0, 3], 2 * vector / np.linalg.norm(vector), rtol=1e-5)
    assert not np.delete(changed[0], 3, 0).any()
    wrong = KnowledgeBase.open(folder / "knowledge")
    batch["entity_vectors"] = wrong.gather(batch["entity_ids"])[0]
    with pytest.raises(InputError, match="its vectors have 8 numbers, the host's word embeddings 16"):
        plugin.embed(np.zeros((1, batch["token_ids"].shape[1], 16), np.float32), batch)
    capsys.readouterr()
    assert knowledge_command(["build", "--from-text", str(texts), "--out", str(tmp_path / "x")]) == 2
    assert "--host: it is missing" in capsys.readouterr().err


def stands_of(batch):
    return [
        "E" if slot >= 0 else [*VOCABULARY, "(", ")"][i]
        for i, slot in zip(batch["token_ids"][0], batch["entity_slot"][0], strict=True)
    ]


def test_nothing_to_read_is_told(host, tmp_path):
    empty = write_records(tmp_path / "empty.jsonl", [{"text": "nothing is linked in this text , not a word"}])
    with pytest.raises(InputError, match="no text of it links an entity that could be read"):
        build_from_text(tmp_path / "kb", host, [empty], Reading())
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"text": "a"}) + "\n{\n")
    with pytest.raises(InputError, match=r"bad\.jsonl:2"):
        build_from_text(tmp_path / "kb", host, [bad], Reading())
    assert vectors().shape == (CITIES, 8) and not list(tmp_path.glob("*kb*"))

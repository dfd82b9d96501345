"""Answers of several pieces, entity propagation, and LAMA's sentences: metrics against values computed by hand."""

import itertools
import json

import numpy as np
import pytest
from tiny import fast_jit
from tiny_world import VOCABULARY, as_device, write_host_and_base

from kinject.data.pipeline import Feed
from kinject.data.records import parse_record
from kinject.datasets.prepare import prepare
from kinject.datasets.records import read_dataset
from kinject.errors import InputError
from kinject.inference.host import open_host, task_examples
from kinject.inference.occurrences import Reading, build_from_text
from kinject.knowledge.base import KnowledgeBase
from kinject.models.heads import logits
from kinject.plugins.base import make_plugin
from kinject.tasks.base import make_task
from kinject.tasks.entity_inferences import others


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_host_and_base(tmp_path_factory.mktemp("propagation"))


@pytest.fixture(scope="module")
def host(folder):
    return open_host(folder / "host", head="masked_lm")


def probe(**changes):
    mention = {"start": 11, "end": 16, "entity": "Q3"}
    line = {"text": "a place of city3 is in [MASK] far .", "mentions": [mention], "label": "faraway land1"}
    return {**line, "choices": ["land2", "faraway land1", "farawayaway"], "definition": "city3 is a place .", **changes}


def records(*values):
    return [parse_record(value, f"file.jsonl:{number}") for number, value in enumerate(values, 1)]


def log_probability(forward, words, place, word):
    """Of one piece, by a forward pass of its own, of pieces that are written out."""
    ids = np.array([[VOCABULARY.index(one) for one in ["[CLS]", *words, "[SEP]"]]], np.int32)
    batch = {
        "token_ids": ids,
        "segment_ids": np.ones_like(ids),
        "position_ids": np.arange(ids.shape[1], dtype=np.int32)[None],
    }
    batch |= {
        "type_ids": np.zeros_like(ids),
        "entity_slot": np.full_like(ids, -1),
        "positions": np.array([[place + 1]], np.int32),
    }
    scores = np.asarray(forward(as_device(batch))[0, 0], np.float64)
    return scores[VOCABULARY.index(word)] - np.log(np.exp(scores - scores.max()).sum()) - scores.max()


# what stands in the blank as it is asked for, piece by piece: by hand, from the definition of each masking
ASKED = {
    "within_word_l2r": {
        "land2": [(["[MASK]"], 0)],
        "faraway land1": [
            (["[MASK]", "[MASK]", "land1"], 0),
            (["far", "[MASK]", "land1"], 1),
            (["far", "##away", "[MASK]"], 2),
        ],
        "farawayaway": [(["[MASK]"] * 3, 0), (["far", "[MASK]", "[MASK]"], 1), (["far", "##away", "[MASK]"], 2)],
    },
    "original": {
        "land2": [(["[MASK]"], 0)],
        "faraway land1": [
            (["[MASK]", "##away", "land1"], 0),
            (["far", "[MASK]", "land1"], 1),
            (["far", "##away", "[MASK]"], 2),
        ],
        "farawayaway": [
            (["[MASK]", "##away", "##away"], 0),
            (["far", "[MASK]", "##away"], 1),
            (["far", "##away", "[MASK]"], 2),
        ],
    },
}
PIECES = {"land2": ["land2"], "faraway land1": ["far", "##away", "land1"], "farawayaway": ["far", "##away", "##away"]}


def predictions_of(task, examples, host, plugin=None, gather=None):
    found = {}
    step = fast_jit(lambda batch: task.predict(task.outputs(host.loaded.host, plugin, batch), batch))
    for batch in Feed(examples, gather).evaluation(16):
        kept = batch["weights"] > 0
        for name, values in step(as_device(batch)).items():
            found.setdefault(name, []).append(np.asarray(values)[kept])
    return {name: np.concatenate(parts) for name, parts in found.items()}


@pytest.mark.parametrize("masking", ["within_word_l2r", pytest.param("original", marks=pytest.mark.slow)])
def test_an_answer_is_the_sum_over_its_pieces(host, masking):
    before, behind = ["a", "place", "of", "city3", "is", "in"], ["far", "."]
    task = make_task("pseudo_likelihood", masking=masking)
    examples = task.examples(records(probe(), probe(label="land2")), host.encoder(None), None, buckets=1)
    assert examples.size == 2 * 7 and examples.record_index.tolist() == [0] * 7 + [1] * 7
    found = predictions_of(task, examples, host)
    forward, sums = fast_jit(lambda batch: logits(host.loaded.host, batch, None)), {}
    for answer, passes in ASKED[masking].items():
        parts = zip(passes, PIECES[answer], strict=True)
        sums[answer] = [
            log_probability(forward, [*before, *blank, *behind], 6 + at, piece) for (blank, at), piece in parts
        ]
    np.testing.assert_allclose(found["likely"][:7], list(itertools.chain(*sums.values())), atol=1e-5)
    best = max(sums, key=lambda answer: sum(sums[answer]))
    score = task.score(found)
    assert score["accuracy"] == np.mean([best == "faraway land1", best == "land2"])
    mean = np.mean([np.mean(sums["faraway land1"]), np.mean(sums["land2"])])
    assert score["perplexity"] == pytest.approx(np.exp(-mean), rel=1e-5) and score["likelihood"] == pytest.approx(
        mean, rel=1e-5
    )


def test_loss_is_that_of_right_answers(host):
    task = make_task("pseudo_likelihood")
    examples = task.examples(records(probe()), host.encoder(None), None, buckets=1)
    (batch,) = Feed(examples).evaluation(7)
    step = fast_jit(lambda batch: task.loss(task.outputs(host.loaded.host, None, batch), batch))
    losses, weights = step(as_device(batch))
    assert np.asarray(weights)[:, 0].tolist() == [0, 1, 1, 1, 0, 0, 0] and losses.shape == (7, 1)


def text_of(examples, number=0):
    bucket = examples.buckets[0]
    kept = bucket["segment_ids"][number] > 0
    pieces = [VOCABULARY[i] for i in bucket["token_ids"][number][kept]]
    return " ".join(
        "E" if slot >= 0 else piece for piece, slot in zip(pieces, bucket["entity_slot"][number][kept], strict=True)
    )


def test_arms_of_entity_inferences(folder, host):
    knowledge = KnowledgeBase.open(folder / "knowledge")
    plugin = make_plugin({"name": "map_tuning"}, hidden_size=16, knowledge_dim=8)
    some = records(probe(choices=["faraway land1"]), probe(choices=["faraway land1"], definition="land4 is far ."))
    made = {}
    for definition in ("none", "own", "other"):
        task = make_task("entity_inferences", definition=definition)
        made[definition] = task_examples(task, plugin, some, host, knowledge, max_length=None, buckets=1)
    asked = "a place of E / city3 is in [MASK] [MASK] land1 far . [SEP]"
    assert text_of(made["none"]) == f"[CLS] {asked}"
    assert text_of(made["own"]) == f"[CLS] city3 is a place . {asked}"
    assert text_of(made["other"]) == f"[CLS] land4 is far . {asked}"
    with pytest.raises(InputError, match=r"task_options\.definition: it is 'all'; choose none, own or other"):
        make_task("ecbd", definition="all")
    with pytest.raises(InputError, match=r"file\.jsonl:1: field definition is None"):
        make_task("ecbd", definition="own").examples(records({**probe(), "definition": None}), host.encoder(None), None)


def test_the_other_definition_is_another():
    said = ["a", "a", "b", "c", "c"]
    for seed in range(20):
        assert all(said[one] != own for one, own in zip(others(said, seed), said, strict=True))
    with pytest.raises(InputError, match="all records have one definition"):
        others(["a", "a"], 0)


MALFORMED = [
    ({"text": "city3 is ."}, r"1: field text has 0 \[MASK\], a question has one"),
    ({"text": "[MASK] [MASK]"}, r"1: field text has 2 \[MASK\]"),
    ({"label": "far"}, r"1: field label: 'far' is none of the choices"),
    ({"choices": ["far", "far"], "label": "far"}, r"1: field choices names an answer twice"),
    ({"label": ""}, r"1: field label is ''"),
]


@pytest.mark.parametrize(("change", "message"), MALFORMED)
def test_bad_records_are_told(host, change, message):
    value = {**probe(), **change, "mentions": []}
    with pytest.raises(InputError, match=rf"^file\.jsonl:{message}"):
        make_task("pseudo_likelihood").examples(records(value), host.encoder(None), None)


def line(number, **changes):
    options = [f"<extra_id_0> {word} <extra_id_1>" for word in ("comedy", "drama show", "news")]
    template = {"probe_sentence": f"Show {number} can be classified as <extra_id_0>.", "labels": options}
    made = {"ex_id": f"tv_dev_{number}", "definition": f"Show {number} is a 2020 <extra_id_0> -drama series."}
    made |= {"def_target": "<extra_id_0> comedy <extra_id_1>", "ent_str": f"Show {number}", "attribute": "comedy"}
    return {**made, "probe_sentences": {"template_0": template}, "label": options[0], "category": "tv_show", **changes}


def write(folder, name, lines):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(one) + "\n" for one in lines))
    return folder


def test_entity_inferences_files(host, tmp_path):
    name = "tv_show_explicit_attribute_dependent.json"
    files = write(tmp_path / "files", name, [line(i % 100) for i in range(200)])
    prepare("entity_inferences/tv_show_explicit", files, tmp_path / "data", check=False)
    found = list(read_dataset(f"tfds:entity_inferences/tv_show_explicit@{tmp_path / 'data'}?split=test"))
    assert len(found) == 200 and found[0].source == "Show 0 can be classified as [MASK]."
    assert found[0].fields["choices"] == ["comedy", "drama show", "news"] and found[0].fields["label"] == "comedy"
    assert found[0].fields["definition"] == "Show 0 is a 2020 comedy -drama series."
    assert [(one.start, one.end, one.entity) for one in found[0].mentions] == [(0, 6, "Show 0")]
    said = list(read_dataset(f"tfds:entity_inferences/tv_show_explicit@{tmp_path / 'data'}?split=definitions"))
    assert len(said) == 100 and said[3].fields["description"] == said[3].source
    texts = f"tfds:entity_inferences/tv_show_explicit@{tmp_path / 'data'}?split=definitions"
    made = KnowledgeBase.open(build_from_text(tmp_path / "knowledge", host, [texts], Reading(least=3, max_length=24)))
    assert made.size == 100 and made.ids([3]) == ["Show 3"]  # PELT's vector of each definition
    with pytest.raises(InputError, match="it has 200 examples, the published one has 46"):
        prepare("entity_inferences/tv_show_explicit", files, tmp_path / "other")


WRONG = [
    ({"def_target": "comedy"}, r"json:2: an answer is 'comedy'; its form is <extra_id_0> words <extra_id_1>"),
    ({"definition": "x"}, r"json:2: field 'definition' has no <extra_id_0>"),
    ({"label": "<extra_id_0> war <extra_id_1>"}, r"json:2: field 'label' is 'war', none of"),
    (
        {"probe_sentences": {"template_0": {"probe_sentence": "none"}}},
        r"json:2: field 'probe_sentences.template_0.probe_",
    ),
    ({"probe_sentences": []}, r"json:2: field 'probe_sentences'"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_bad_lines_of_probes_are_named(tmp_path, change, message):
    files = write(tmp_path / "files", "tv_show_explicit_attribute_dependent.json", [line(0), line(1, **change)])
    with pytest.raises(InputError, match=message):
        prepare("entity_inferences/tv_show_explicit", files, tmp_path / "data", check=False)


def test_ecbd_files(tmp_path):
    template = {
        "probe_sentence": "The NFAC posted it on <extra_id_0>, in 2020.",
        "label": "<extra_id_0> its page <extra_id_1>",
    }
    lines = [line(i, ent_str="NFAC", probe_sentences={"template_0": template}) for i in range(200)]
    for one in lines:
        del one["label"]
    files = write(tmp_path / "files" / "ecbd", "all_ent_2020_2021_np_500samples.json", lines)
    prepare("ecbd/np", files.parent, tmp_path / "data", check=False)
    found = list(read_dataset(f"tfds:ecbd/np@{tmp_path / 'data'}?split=test"))
    assert found[5].source == "The NFAC posted it on [MASK], in 2020." and found[5].fields["label"] == "its page"
    assert "choices" not in found[5].fields and found[5].mentions[0].entity == "NFAC"


def test_sentences_of_lama(tmp_path):
    think = {"sub": "be alive", "obj": "think", "pred": "HasSubevent", "obj_label": "think", "uuid": "u"}
    think["masked_sentences"] = ["One thing you do when you Be Alive is [MASK]."]
    write(tmp_path / "ConceptNet", "test.jsonl", [think] * 150 + [{**think, "masked_sentences": ["no mask"]}] * 3)
    gold = {"masked_sentences": ["The [MASK] color was used."], "obj_label": "gold", "id": "x_0", "sub_label": "Squad"}
    write(tmp_path / "Squad", "test.jsonl", [gold] * 200)
    write(tmp_path, "relations.jsonl", [{"relation": "P36", "template": "The capital of [X] is [Y] ."}])
    fact = {"sub_label": "Peru", "obj_label": "Lima", "sub_uri": "Q419"}
    write(tmp_path / "TREx_UHN", "P36.jsonl", [fact] * 200)
    for name in ("conceptnet", "squad", "trex_uhn"):
        prepare(f"lama/{name}", tmp_path, tmp_path / "data", check=False)
    found = {
        n: list(read_dataset(f"tfds:lama/{n}@{tmp_path / 'data'}?split=test"))
        for n in ("conceptnet", "squad", "trex_uhn")
    }
    assert {name: len(some) for name, some in found.items()} == {"conceptnet": 150, "squad": 200, "trex_uhn": 200}
    one = found["conceptnet"][0]
    assert one.fields["relation"] == "conceptnet" and one.mentions[0].entity == "/c/en/be_alive"
    assert one.source[one.mentions[0].start : one.mentions[0].end] == "Be Alive"
    assert found["squad"][0].fields["label"] == "gold" and not found["squad"][0].mentions
    write(tmp_path / "Squad", "test.jsonl", [gold, {**gold, "obj_label": 3}])
    with pytest.raises(InputError, match=r"test\.jsonl:2: field 'obj_label'"):
        prepare("lama/squad", tmp_path, tmp_path / "bad", check=False)

"""Data of K-Adapter's pretraining: T-REx-rc, dependency trees in CoNLL-U, and the task of finding heads."""

import numpy as np
import pytest
from dataset_files import TOKENS, conllu_line, trex_item, write_files, write_json
from task_runs import WORDS, TaskWorld, as_device, parsed, row
from tiny import fast_jit

from kinject.data.records import Mention
from kinject.datasets.prepare import prepare
from kinject.datasets.records import Dataset, read_dataset
from kinject.errors import InputError
from kinject.models.pretrained import load_host
from kinject.models.saving import save_host
from kinject.tasks.base import make_task

TREE = {"tokens": ["the", "faraway", "city1", "is", "a", "place"], "heads": [3, 3, 6, 6, 6, 0]}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return TaskWorld(tmp_path_factory.mktemp("trees"))


def prepared(name, folder, data, **options):
    (summary,) = prepare(name, folder, data, **options)
    return summary, {split: list(read_dataset(f"tfds:{name}@{data}?split={split}")) for split in summary.splits}


# ---- T-REx-rc ----------------------------------------------------------------------------------------------------


def test_trex_rc_has_subject_first_and_no_p31(tmp_path):
    summary, records = prepared("trex_rc", write_files(tmp_path / "files", "trex_rc"), tmp_path, check=False)
    assert summary.splits == {"train": 2, "validation": 1}
    assert summary.left_out == {"relation P31": 1, "subject and object overlap": 1}
    first = records["train"][0]
    assert first.source == tuple(TOKENS)
    assert first.mentions == (Mention(1, 3, "Q42"), Mention(5, 7, None))  # ends are inclusive in the file
    assert first.fields == {"label": "P17", "id": "train/1"}
    assert Dataset(f"tfds:trex_rc@{tmp_path}?split=train").labels == ["P17", "P9"]


def test_trex_rc_without_a_validation_file_is_dealt_nine_to_one(tmp_path):
    items = [trex_item("P17", docid=str(i)) for i in range(60)] + [trex_item("P5")] * 49 + [trex_item("P31")] * 60
    write_json(tmp_path / "files/train.json", items)
    summary, records = prepared("trex_rc", tmp_path / "files", tmp_path / "data")
    assert summary.left_out == {"relation P31": 60, "relations of fewer than 50 sentences": 49}
    assert Dataset(f"tfds:trex_rc@{tmp_path}/data?split=train").labels == ["P17"]
    places = {split: [int(one.fields["id"].split("/")[1]) for one in found] for split, found in records.items()}
    assert sorted(places["train"] + places["validation"]) == list(range(60)) and 0 < len(places["validation"]) < 15
    _, again = prepared("trex_rc", tmp_path / "files", tmp_path / "again")
    assert [one.fields for one in again["validation"]] == [one.fields for one in records["validation"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relation": 17}, r"train\.json\[0\]: field 'relation' is int 17; take the files with Wikidata's ids"),
        ({"relation": "country"}, "field 'relation' is str 'country'"),
        ({"subj_end": 9}, r"field 'subj_start, subj_end' spans 1 to 10 \(exclusive\) in a sentence of length 8"),
        ({"obj_start": "5"}, "field 'obj_start' is str '5'; it must be a whole number"),
        ({"token": "The Wye"}, "field 'token' is str 'The Wye'; it must be a list"),
    ],
)
def test_a_wrong_sentence_of_trex_rc_is_told(tmp_path, change, message):
    write_json(tmp_path / "files/train.json", [{**trex_item(), **change}])
    with pytest.raises(InputError, match=message):
        prepare("trex_rc", tmp_path / "files", tmp_path / "data", check=False)


# ---- CoNLL-U -----------------------------------------------------------------------------------------------------


def test_a_treebank_gives_syntactic_words_and_their_heads(tmp_path):
    summary, records = prepared("treebank", write_files(tmp_path / "files", "treebank"), tmp_path)
    assert summary.splits == {"train": 2, "validation": 1}
    first, second = records["train"]
    assert first.source == ("Er", "geht", "zu", "dem", "Köln-Tor", "!")
    assert first.fields["heads"] == [2, 0, 5, 5, 2, 2] and first.fields["relations"][0] == "nsubj"
    assert first.where.endswith("de_x-ud-train.conllu:2") and first.fields["id"] == "train/2"
    assert second.source == ("Ja",) and second.fields["heads"] == [0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\tJa\n", r"x-train\.conllu:1: .*HEAD of word 1 is None|a sentence that is not CoNLL-U"),
        (
            conllu_line(1, "Ja", 2),
            r":1: field HEAD of word 1 is 2; a head is another word of the sentence, 1 to 1, or 0",
        ),
        ("\n" + conllu_line(1, "Ja", 1), r":2: field HEAD of word 1 is 1"),
        (conllu_line(2, "Ja", 0), ":1: word 2 stands where 1 is due"),
        ("# text = nothing\n", "a sentence without words|holds no record"),
        (conllu_line("1-2", "zum", "_"), "a sentence without words"),
    ],
)
def test_a_wrong_tree_is_told(tmp_path, text, message):
    (tmp_path / "files").mkdir()
    (tmp_path / "files/x-train.conllu").write_text(text)
    with pytest.raises(InputError, match=message):
        prepare("treebank", tmp_path / "files", tmp_path / "data")


# ---- the task ----------------------------------------------------------------------------------------------------


def test_words_and_heads_stand_at_first_pieces(world):
    batch = world.batch(make_task("dependency_heads"), [TREE, {"tokens": ["city2", "is"], "heads": [2, 0]}])
    assert row(batch, 0) == "[CLS] the far ##away city1 is a place [SEP]"
    assert batch["positions"].tolist() == [[1, 2, 4, 5, 6, 7], [1, 2, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [[4, 4, 7, 7, 7, 0], [2, 0, 0, 0, 0, 0]]
    assert batch["weights"].tolist() == [[1] * 6, [1, 1, 0, 0, 0, 0]]
    assert [WORDS[batch["token_ids"][0, i]] for i in batch["labels"][0]] == ["city1", "city1", *["place"] * 3, "[CLS]"]


def test_sentences_that_do_not_fit_are_left_out_and_counted(world):
    values = [TREE, {"tokens": ["is"], "heads": [0]}, {"tokens": ["is", "\u200b\u00ad"], "heads": [0, 1]}]
    made = make_task("dependency_heads", positions=8).examples(parsed(*values), world.host.encoder(None), None)
    assert made.size == 1 and made.record_index.tolist() == [1]
    assert list(made.notes.values()) == [1, 1]
    with pytest.raises(InputError, match="no sentence fits into 8 pieces; raise positions"):
        make_task("dependency_heads", positions=8).examples(parsed(TREE), world.host.encoder(None), None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": [3, 3]}, "field heads is not a list of 6 numbers; give each token one"),
        ({"heads": [3, 3, 6, 6, 6, 7]}, r"field heads\[5\] is 7; a head is another token, 1 to 6, or 0"),
        ({"heads": [3, 2, 6, 6, 6, 0]}, r"field heads\[1\] is 2"),
        ({"heads": [3, True, 6, 6, 6, 0]}, r"field heads\[1\] is True"),
    ],
)
def test_wrong_heads_are_told(world, change, message):
    with pytest.raises(InputError, match=message):
        world.batch(make_task("dependency_heads"), [{**TREE, **change}])


def test_the_head_is_saved_read_and_does_not_see_padding(world, tmp_path):
    task = make_task("dependency_heads", positions=12)
    made = load_host(world.folder / "raw", head="dependency", num_labels=12, fresh_head=True, seed=3)
    folder = save_host(made.host, tmp_path / "host", tokenizer_files_from=world.folder / "raw")
    host = load_host(folder).host
    assert host.head.kind == "dependency" and host.head.num_labels == 12
    run = fast_jit(lambda batch: task.outputs(host, None, batch))
    same = fast_jit(lambda batch: task.outputs(made.host, None, batch))
    short = as_device(world.batch(task, [TREE]))
    long = as_device(world.batch(task, [TREE, {"tokens": ["is"] * 9, "heads": [0] + [1] * 8}]))
    scores = np.asarray(run(short))
    assert scores.tobytes() == np.asarray(same(short)).tobytes()
    np.testing.assert_allclose(np.asarray(run(long))[0, :6], scores[0], rtol=0, atol=1e-5)
    assert (scores[0, :, 9:] < -1e38).all() and (np.abs(scores[0, :, :9]) < 10).all()


def test_the_score_counts_words(world):
    task = make_task("dependency_heads", positions=12)
    batch = world.batch(task, [TREE, {"tokens": ["city2", "is"], "heads": [2, 0]}])
    outputs = np.eye(12)[batch["labels"]]
    outputs[0, 0] = np.eye(12)[9]
    outputs[1, 5] = np.eye(12)[9]  # no word
    predictions = {name: np.asarray(value) for name, value in task.predict(outputs, batch).items()}
    assert predictions["words"].tolist() == [6, 2]
    assert task.score(predictions) == {"uas": 7 / 8}
    losses, weights = task.loss(outputs, batch)
    assert losses.shape == weights.shape == (2, 6)

"""Answers of several pieces as choices, through a whole evaluation: asked piece by piece, told by question."""

import numpy as np
import pytest
from tiny_world import evaluate_stage, plugin_stage, question, run_experiment, write_records

from kinject.data.records import read_records
from kinject.inference.comparison import Comparison, _swap_entities
from kinject.inference.host import open_host, task_examples
from kinject.inference.mesh import Placement
from kinject.knowledge.base import KnowledgeBase
from kinject.plugins.store import load_plugin
from kinject.tasks.base import make_task

CHOICES = [*(f"land{i}" for i in range(5)), "faraway land1", "farawayaway"]


@pytest.fixture(scope="module")
def asked(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    lines = [{**question(i), "choices": CHOICES, "kind": ("odd", "even")[i % 2], "wording": "w"} for i in range(48, 60)]
    test = str(write_records(folder / "test.jsonl", lines))
    stage = evaluate_stage(world, {"plugin": "@made"}) | {"task": "answer_choices", "examples": 2}
    stage["domains"]["cities"] |= {"data": (test,), "by_kind": True, "reference_data": ()}
    made = plugin_stage(world, initialise="ridge_label", fit={"steps": 1})
    rows = run_experiment({"seed": 0, "stages": {"made": made, "table": stage}}, folder / "run")["table"]["cities"]
    return folder, list(read_records(test)), rows


def test_rows_are_of_questions(world, asked):
    folder, records, rows = asked
    assert rows["n"] == 12 and {kind: one["n"] for kind, one in rows["kinds"].items()} == {"odd": 6, "even": 6}
    for row in ("host", "plugin", "shuffled"):
        assert rows[row] == pytest.approx(np.mean([one[row] for one in rows["kinds"].values()]))
    assert {one["plugin"] for one in rows["examples"]} <= set(CHOICES)
    host, task = open_host(world / "host", head="masked_lm"), make_task("answer_choices")
    plugin = load_plugin(folder / "run" / "made", host=host.identity).plugin
    base = KnowledgeBase.open(world / "knowledge")
    metrics, found = Comparison(host, task, None, Placement.single()).with_plugin(plugin, base, records)
    assert rows["plugin"] == metrics["accuracy"] == np.mean(found["predicted"] == found["label"])
    assert [CHOICES[i] for i in found["label"]] == [record.fields["label"] for record in records]
    assert metrics["likelihood"] == pytest.approx(found["likely"].mean())


def test_pieces_of_a_question_get_the_same_wrong_entity(world, asked):
    """Seven answers of eleven pieces; which other entity stands there is drawn once a question."""
    folder, records, _ = asked
    host, task = open_host(world / "host", head="masked_lm"), make_task("answer_choices")
    plugin = load_plugin(folder / "run" / "made", host=host.identity).plugin
    base = KnowledgeBase.open(world / "knowledge")
    examples = task_examples(task, plugin, records, host, base, max_length=None)
    of = examples.record_index
    _, first = np.unique(of, return_index=True)
    swapped, donors = _swap_entities(examples, of, first, 3)
    before, after = (one.in_order("entity_ids")[:, 0] for one in (examples, swapped))
    assert len(of) == 12 * 11 and (before != after).all() and sorted(donors) == list(range(12))
    for number in range(12):
        assert set(after[of == number]) == set(before[of == donors[number]]) and len(set(after[of == number])) == 1

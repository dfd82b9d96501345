"""What a method gets of each example beyond slots: `Plugin.prepare`, and such a method's control."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_world import CITIES, LANDS, evaluate_stage, plugin_stage, question, run_experiment, sentence, write_records

from kinject.data.records import parse_record
from kinject.errors import InputError
from kinject.inference.comparison import Comparison
from kinject.inference.host import attach_knowledge, open_host, record_of, task_examples
from kinject.inference.mesh import Placement
from kinject.models.seams import Plugin
from kinject.plugins.base import register
from kinject.plugins.map_tuning import MapTuning
from kinject.plugins.store import load_plugin
from kinject.tasks.base import make_task


@register("told_answer")
class ToldAnswer(Plugin):
    """Is told the answer of each record: adds a trained map of its word embedding to what the head reads."""

    @dataclass(frozen=True)
    class Config:
        scale: float = 0.0

    def __init__(self, config=None, *, hidden_size, knowledge_dim=0, rngs=None):
        super().__init__(config, hidden_size=hidden_size, knowledge_dim=knowledge_dim)
        self.matrix = nnx.Param(self.config.scale * jnp.eye(hidden_size, dtype=jnp.float32))

    def prepare(self, examples, records, host, knowledge):
        told = np.array([host.tokenizer.word(record.fields["label"])[0] for record in records], np.int32)
        return examples.with_arrays(lambda bucket: {"told": told[bucket["index"]]})

    def before(self, encoder, batch):
        return {**batch, "told_word": encoder.embeddings.words(batch["told"])}

    def outputs(self, hidden_states, batch, key=None):
        return hidden_states[-1] + (batch["told_word"] @ self.matrix[...])[:, None]


class Nothing(Plugin):
    """Reads neither slots nor records."""


def asked(numbers):
    return [parse_record(question(i), f"test:{row}") for row, i in enumerate(numbers, 1)]


def test_who_reads_slots_and_who_reads_examples():
    found = {cls: (cls.reads_slots, cls.reads_examples()) for cls in (Plugin, MapTuning, ToldAnswer, Nothing)}
    assert found == {
        Plugin: (False, False),
        MapTuning: (True, True),
        ToldAnswer: (False, True),
        Nothing: (False, False),
    }


def test_only_a_method_that_reads_slots_gets_them(host, knowledge):
    for plugin, has in ((MapTuning(hidden_size=16, knowledge_dim=8), True), (ToldAnswer(hidden_size=16), False)):
        examples = task_examples(make_task("cloze"), plugin, asked(range(9)), host, knowledge, max_length=None)
        assert all(((bucket["entity_slot"] >= 0).any(1) == has).all() for bucket in examples.buckets)


def test_each_example_gets_its_own_record_or_its_donor_s(host):
    task, records = make_task("cloze"), asked(range(20))
    plugin = ToldAnswer(hidden_size=16)
    examples = task_examples(task, plugin, records, host, None, max_length=None)
    words = np.array([host.tokenizer.word(f"land{i % LANDS}")[0] for i in range(20)])
    own = attach_knowledge(examples, plugin, records, host, None)
    assert len(own.buckets) > 1
    np.testing.assert_array_equal(own.in_order("told"), words)
    donors = np.roll(np.arange(20), 3)
    given = attach_knowledge(examples, plugin, records, host, None, donors)
    np.testing.assert_array_equal(given.in_order("told"), words[donors])


def test_examples_know_their_records_where_a_task_makes_several_of_one_or_drops_some(host, knowledge):
    records = [parse_record(sentence(i, i + 1), f"test:{i}") for i in range(4)]
    records.insert(1, replace(records[0], mentions=()))
    for slots in (True, False):
        examples = make_task("mention_masked_lm", slots=slots).examples(records, host.encoder(None), knowledge)
        np.testing.assert_array_equal(record_of(examples, records), np.repeat([0, 2, 3, 4], 3))


def test_a_method_that_reads_records_is_refused_where_an_example_is_of_several(host):
    records = asked(range(4))
    examples = make_task("cloze").examples(records[:3], host.encoder(None), None)
    with pytest.raises(InputError, match="3 examples of 4 records"):
        attach_knowledge(examples, ToldAnswer(hidden_size=16), records, host, None)
    assert attach_knowledge(examples, Nothing(hidden_size=16), records, host, None) is examples


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """The workdir and the results of a plugin that was trained and evaluated without a knowledge base."""
    stage = plugin_stage(world, method={"name": "told_answer"}, dev_data=(str(world / "dev.jsonl"),))
    stage |= {"knowledge": None, "fit": stage["fit"] | {"steps": 60, "optimizer": {"learning_rate": 0.1}}}
    table = evaluate_stage(world, {"plugin": "@made"})
    table["domains"]["cities"] |= {"knowledge": None, "reference_data": ()}
    workdir = tmp_path_factory.mktemp("told") / "run"
    return workdir, run_experiment({"stages": {"made": stage, "table": table}}, workdir)


def test_what_was_prepared_is_read_and_the_control_gives_that_of_another_entity(host, trained):
    records = asked([*range(40, 60), *range(40, 50)])
    comparison = Comparison(host, make_task("cloze"), None, Placement.single(), batch_size=20)
    alone, bare = comparison.host_alone(records)
    zero, same = comparison.with_plugin(ToldAnswer(hidden_size=16), None, records)
    assert zero == pytest.approx(alone) and (same["predicted"] == bare["predicted"]).all()
    plugin = load_plugin(trained[0] / "made").plugin
    told, _ = comparison.with_plugin(plugin, None, records)
    metrics, swapped, donors = comparison.shuffled(plugin, None, records, seed=0)
    entities = np.array([record.mentions[0].entity for record in records])
    assert (entities[donors] != entities).all()
    assert told["accuracy"] >= 0.8 > metrics["accuracy"]
    assert (swapped["predicted"] == swapped["label"][donors]).mean() >= 0.8


def test_a_plugin_without_knowledge_base_is_trained_stored_and_evaluated(world, trained):
    workdir, results = trained
    found = results["table"]["cities"]
    assert set(found) == {"n", "metric", "host", "plugin", "shuffled", "shuffled_follows_vector", "examples"}
    assert found["plugin"] > found["host"]
    assert {one["entity"] for one in found["examples"]} <= {f"Q{i}" for i in range(CITIES)}
    host = open_host(world / "host").identity
    stored = load_plugin(workdir / "made", host=host, knowledge={"fingerprint": "any", "dim": 7})
    assert stored.plugin.name == "told_answer" and stored.manifest["knowledge"]["fingerprint"] is None


def test_a_method_that_reads_vectors_needs_a_knowledge_base(world, tmp_path):
    stage = plugin_stage(world)
    stage["knowledge"] = None
    with pytest.raises(InputError, match=r"stages\.made\.knowledge: it is missing; map_tuning reads entity vectors"):
        run_experiment({"stages": {"made": stage}}, tmp_path / "run")
    made = run_experiment({"stages": {"made": plugin_stage(world, fit={"steps": 1})}}, tmp_path / "made")
    assert made["made"]["steps"] == 1
    table = evaluate_stage(world, {"plugin": str(tmp_path / "made" / "made")})
    table["domains"]["cities"] |= {"knowledge": None, "reference_data": ()}
    with pytest.raises(InputError, match="it reads the knowledge base 'cities', and none is named"):
        run_experiment({"stages": {"table": table}}, tmp_path / "table")


def test_a_method_that_reads_no_example_has_no_control(world, tmp_path):
    @register("nothing_of_examples")
    class Constant(ToldAnswer):
        prepare, before = Plugin.prepare, Plugin.before

        def outputs(self, hidden_states, batch, key=None):
            return hidden_states[-1] + self.matrix[...].sum(0)

    stage = plugin_stage(world, method={"name": "nothing_of_examples"}, fit={"steps": 2})
    records = write_records(tmp_path / "test.jsonl", map(question, range(50, 56)))
    table = evaluate_stage(world, {"plugin": "@made"})
    table["domains"]["cities"]["data"] = (str(records),)
    found = run_experiment({"stages": {"made": stage, "table": table}}, tmp_path / "run")["table"]["cities"]
    assert "plugin" in found and not {"shuffled", "shuffled_follows_vector"} & set(found)

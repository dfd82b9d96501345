"""What compiled programs cost, by the compiler's own count, beside stored counts: what a clock shows later, if at all.

The counts are of small shapes, but of the programs that a run compiles. They do not wobble: the same jax, the same
numbers. Where one has grown by more than `SLACK` the test fails. Where that is meant, or after jax has changed:

    KINJECT_RENEW_COSTS=1 python -m pytest -n 0 tests/test_cost_guard.py

writes tests/costs.json anew; say in the commit why.
"""

import json
import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from tiny import tiny_config
from tiny_world import question, sentence, write_base, write_host

from kinject.data.pipeline import Feed
from kinject.data.records import parse_record
from kinject.inference.host import open_host
from kinject.inference.mesh import Placement
from kinject.inference.program import make_evaluation_step, split_program
from kinject.knowledge.base import KnowledgeBase
from kinject.models.encoder import Encoder
from kinject.models.heads import HostModel, build_head
from kinject.models.precision import held
from kinject.plugins.base import make_plugin
from kinject.reports.console import Reporter
from kinject.tasks.base import Extent, make_task
from kinject.training.aot import compile_step, cost_of
from kinject.training.config import FitConfig
from kinject.training.loop import Fit

STORED, SLACK = Path(__file__).with_name("costs.json"), 0.03
RENEW = "KINJECT_RENEW_COSTS"
# sizes that nothing else has, so that a shape in a program's text says what it is
ROWS, LENGTH, PLACES, DIM, HIDDEN, INNER, VOCABULARY_SIZE, LAYERS = 6, 20, 3, 10, 56, 224, 1009, 3
MAP_TUNING = [("plugin/.*", "train"), (".*", "freeze")]
FIT = FitConfig(batch_size=ROWS, steps=100, micro_batch="whole")  # the compiler counts a loop's body once


def shapes(head, task, method):
    """A program and its parameters' shapes: no weights are drawn."""
    config = tiny_config(
        vocab_size=VOCABULARY_SIZE, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS
    )

    def build():
        outputs = 2 if head == "classification" else None
        host = HostModel(Encoder(config, rngs=nnx.Rngs(0)), build_head(head, config, outputs, rngs=nnx.Rngs(0)))
        plugin = method and make_plugin({"name": method}, hidden_size=HIDDEN, knowledge_dim=DIM)
        return host, plugin

    return split_program(*nnx.eval_shape(build), task)


def masked_lm(rows=ROWS, places=PLACES):
    task = make_task("mention_masked_lm")
    extent = Extent(rows, LENGTH, entities=1, places=places, knowledge_dim=DIM, hidden_size=HIDDEN)
    return *shapes("masked_lm", task, "map_tuning"), task.batch_shapes(extent)


def compiled(program, params, batch, rules):
    return compile_step(program, params, rules, FIT, batch, Placement.single())


@pytest.fixture(scope="module")
def costs():
    """Every program that is guarded, by name."""
    made = {"map_tuning": compiled(*masked_lm(), MAP_TUNING)}
    made["map_tuning_and_host"] = compiled(*masked_lm(), [(".*", "train")])
    program, params, batch = masked_lm()
    lowered = make_evaluation_step(replace(program, micro_batch="whole")).lower(params, batch)
    made["evaluation"] = cost_of(lowered.compile(), 0, 0.0)
    task = make_task("sequence_classification", labels=["no", "yes"])
    program, params = shapes("classification", task, None)
    batch = task.batch_shapes(Extent(ROWS, LENGTH, hidden_size=HIDDEN))
    batch["prefix"] = jax.ShapeDtypeStruct((ROWS, LENGTH, HIDDEN), jnp.float32)
    top = [(f"host/encoder/layers/{LAYERS - 1}/.*", "train"), ("host/head/.*", "train"), (".*", "freeze")]
    made["frozen_prefix"] = compiled(replace(program, start=LAYERS - 1), params, batch, top)
    return made


def measured(cost):
    return {"flops": cost.flops, "bytes_accessed": cost.accessed, "temporary_bytes": cost.temporaries}


def grown(now, before):
    """Lines that say which counts have grown by more than is allowed."""
    return [
        f"{program}.{count}: {values[count]:,.0f}, stored {stored:,.0f} ({100 * (values[count] / stored - 1):+.1f} %)"
        for program, values in now.items()
        for count, stored in before[program].items()
        if values[count] > stored * (1 + SLACK)
    ]


def test_no_program_costs_more_than_it_did(costs):
    now = {name: measured(cost) for name, cost in costs.items()}
    assert all(value > 0 for values in now.values() for value in values.values())
    if os.environ.get(RENEW):
        STORED.write_text(json.dumps({"jax": jax.__version__, "programs": now}, indent=2) + "\n")
    stored = json.loads(STORED.read_text())
    if stored["jax"] != jax.__version__:
        pytest.skip(f"{STORED.name} is of jax {stored['jax']}, this is {jax.__version__}: renew it with {RENEW}=1")
    more = grown(now, stored["programs"])
    hint = f"if that is meant: {RENEW}=1 python -m pytest -n 0 tests/test_cost_guard.py, and say why in the commit"
    assert not more, "\n".join([*more, hint])


def test_the_guard_sees_what_grew():
    before = {"step": {"flops": 100.0, "temporary_bytes": 50}}
    assert not grown({"step": {"flops": 102.0, "temporary_bytes": 40}}, before)
    (line,) = grown({"step": {"flops": 104.0, "temporary_bytes": 50}}, before)
    assert line.startswith("step.flops: 104, stored 100 (+4.0 %)")


def test_map_tuning_computes_no_gradient_of_the_host(costs):
    assert costs["map_tuning"].flops < 0.75 * costs["map_tuning_and_host"].flops


def test_a_step_from_the_prefix_computes_one_layer(costs):
    assert costs["frozen_prefix"].flops < costs["map_tuning_and_host"].flops / LAYERS


def buffers(text):
    """The shapes of all arrays in a compiled program's text, as tuples of sizes."""
    return {tuple(map(int, sizes.split(","))) for sizes in re.findall(r"\b(?:f32|bf16|f16)\[([\d,]+)\]", text)}


def of_all_positions(shapes, size):
    """Those that hold `size` numbers for each position of the batch."""
    return {shape for shape in shapes if size in shape and ROWS * LENGTH * size <= prod(shape)}


def prod(shape):
    total = 1
    for size in shape:
        total *= size
    return total


@pytest.mark.parametrize("program", ["map_tuning", "evaluation"])
def test_the_vocabulary_is_scored_at_masked_positions_only(costs, program):
    found = buffers(costs[program].text)
    assert any(VOCABULARY_SIZE in shape and prod(shape) == ROWS * PLACES * VOCABULARY_SIZE for shape in found)
    assert of_all_positions(found, VOCABULARY_SIZE) == set()
    assert of_all_positions(found, INNER)  # those of the feed-forwards are, so the search would have found them


@pytest.mark.parametrize("precision", ["float32", "bfloat16_dots"])
def test_one_text_is_scored_without_a_turned_copy_of_the_vocabulary(precision):
    program, params, batch = masked_lm(rows=1, places=1)
    step = make_evaluation_step(replace(program, precision=precision))
    made = {path: jax.eval_shape(partial(held, precision, path), leaf) for path, leaf in params.items()}
    found = buffers(step.lower(made, batch).compile().as_text())
    assert (VOCABULARY_SIZE, HIDDEN) in found and (HIDDEN, VOCABULARY_SIZE) not in found


def products(text, size):
    """How many matrix products yield `size` numbers for each of n rows: {n: count}, from a lowered program's text."""
    found = re.findall(r"stablehlo\.dot_general.*-> tensor<([\dx]+)xf32>", text)
    shapes = [tuple(map(int, sizes.split("x"))) for sizes in found]
    rows = [prod(shape[:-1]) for shape in shapes if shape[-1] == size]
    return {count: rows.count(count) for count in set(rows)}


def test_the_last_feed_forward_is_computed_at_read_positions_only():
    program, params, batch = masked_lm()
    step = make_evaluation_step(replace(program, micro_batch="whole"))
    assert products(step.lower(params, batch).as_text(), INNER) == {ROWS * LENGTH: LAYERS - 1, ROWS * PLACES: 1}


class Compilations:
    """Counts the programs that jax asks its persistent cache for, and those that it then had to compile."""

    asked, missed = "/jax/compilation_cache/compile_requests_use_cache", "/jax/compilation_cache/cache_misses"

    def __enter__(self):
        self.counts = {self.asked: 0, self.missed: 0}
        jax.monitoring.register_event_listener(self._count)
        return self

    def _count(self, event, **_):
        if event in self.counts:
            self.counts[event] += 1

    def __exit__(self, *_):
        jax.monitoring.unregister_event_listener(self._count)


@pytest.fixture
def fitted(tmp_path):
    """Makes a short map-tuning on two lengths, anew each time: (folder) -> Fit."""
    host, base = open_host(write_host(tmp_path / "host")), KnowledgeBase.open(write_base(tmp_path / "knowledge"))

    def fit(folder):
        task = make_task("mention_masked_lm")
        lines = [sentence(i, i + 1) for i in range(12)] + [question(i) for i in range(12)]
        records = [parse_record(line, f"made:{i}") for i, line in enumerate(lines)]
        feed = Feed(task.examples(records, host.encoder(None), base, buckets=2), base.gather)
        assert len(feed.examples.buckets) == 2
        plugin = make_plugin({"name": "map_tuning"}, hidden_size=host.identity.hidden_size, knowledge_dim=base.dim)
        program, params = split_program(host.loaded.host, plugin, task)
        config = FitConfig(batch_size=4, steps=30, checkpoint_every=30, evaluation_batch_size=8, evaluate_every=15)
        options = {"seed": 0, "workdir": folder, "reporter": Reporter(quiet=True)}
        return Fit("guard", program, params, MAP_TUNING, config, feed, feed, **options)

    return fit


def test_a_run_compiles_a_step_for_each_length_and_no_more(fitted, tmp_path):
    first = fitted(tmp_path / "first")
    first.run()
    assert first.train_step._cache_size() == 2
    assert first.evaluation_step._cache_size() == 2
    with Compilations() as again:
        second = fitted(tmp_path / "second")
        second.run()
    assert again.counts[Compilations.asked] >= 4  # the same shapes in a new run: looked up …
    assert again.counts[Compilations.missed] == 0  # … and found, all of them

"""Stage `propagation`: one definition at a time, learned from the same start; against a loop that is written out."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny import fast_jit
from tiny_world import run_experiment, write_host, write_records

from kinject.data.pipeline import Feed
from kinject.data.records import parse_record, read_records
from kinject.datasets.prepare import prepare
from kinject.datasets.records import read_dataset
from kinject.errors import InputError
from kinject.inference.host import open_host
from kinject.tasks.base import make_task

CHOICES = ["land2", "faraway land1", "farawayaway"]
STEPS, RATE = 3, 0.02


def probe(number, label, **changes):
    line = {"text": f"a place of city{number} is in [MASK] far .", "label": label, "choices": CHOICES}
    blank = f"city{number} is in [MASK] ."
    return {**line, "definition_blank": blank, "definition_answer": label, **changes}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("definitions")
    write_host(folder / "host", layers=1)
    lines = [probe(3, "faraway land1"), probe(4, "land2"), probe(3, "faraway land1", text="city3 in [MASK] .")]
    write_records(folder / "probes.jsonl", lines)
    write_records(folder / "reversed.jsonl", lines[::-1])
    others = [probe(7, "land2"), probe(8, "farawayaway")]
    write_records(folder / "others.jsonl", [{k: v for k, v in o.items() if "definition" not in k} for o in others])
    return folder


def stage(folder, data="probes", **changes):
    made = {"kind": "propagation", "host": str(folder / "host"), "data": (str(folder / f"{data}.jsonl"),)}
    optimizer = {"name": "sgd", "learning_rate": RATE}
    return {**made, "steps": STEPS, "optimizer": optimizer, "batch_size": 8, **changes}


@pytest.fixture(scope="module")
def found(folder):
    with_others = stage(folder, specificity=(str(folder / "others.jsonl"),))
    stages = {"told": with_others, "reversed": stage(folder, "reversed")}
    return run_experiment({"seed": 0, "stages": stages}, folder / "run")


def score(host, state, graph, lines, task):
    examples = task.examples(lines, host.encoder(None), None, buckets=1)
    batch = next(Feed(examples).evaluation(examples.size))
    asked = fast_jit(lambda state, batch: task.predict(task.outputs(nnx.merge(graph, state), None, batch), batch))
    said = asked(state, {name: jnp.asarray(values) for name, values in batch.items()})
    return {name: np.asarray(values) for name, values in said.items()}


def test_it_is_a_loop_that_is_written_out(folder, found):
    """Plain gradient steps on the mean of a blank's losses, from a copy of the host for each definition."""
    host, task = open_host(folder / "host", head="masked_lm"), make_task("entity_inferences")
    lines, others = (list(read_records(folder / f"{name}.jsonl")) for name in ("probes", "others"))
    graph, start = nnx.split(host.loaded.host)
    parts, apart = [], []
    for number in (0, 1):
        fields = lines[number].fields
        blank = parse_record({"text": fields["definition_blank"], "label": fields["definition_answer"]}, "x")
        examples = make_task("pseudo_likelihood").examples([blank], host.encoder(None), None, buckets=1)
        batch = {name: jnp.asarray(v) for name, v in next(Feed(examples).evaluation(examples.size)).items()}

        def loss(state, batch=batch):
            scores = task.outputs(nnx.merge(graph, state), None, batch)[:, 0]
            return optax.softmax_cross_entropy_with_integer_labels(scores, batch["labels"][:, 0]).mean()

        slope, state = fast_jit(jax.grad(loss)), start
        for _ in range(STEPS):
            state = jax.tree.map(lambda leaf, by: leaf - RATE * by, state, slope(state))
        own = [line for line in lines if line.fields["definition_blank"] == fields["definition_blank"]]
        parts.append(task.score(score(host, state, graph, own, task))["likelihood"] * len(own))
        apart.append(task.score(score(host, state, graph, others, task))["likelihood"])
    told = found["told"]
    assert told["n"] == 3 and told["definitions"] == 2 and told["specificity"]["n"] == 2
    before = task.score(score(host, start, graph, lines, task))
    assert told["host"]["likelihood"] == pytest.approx(before["likelihood"], rel=1e-5)
    assert told["fine_tuned"]["likelihood"] == pytest.approx(sum(parts) / 3, rel=1e-4)
    assert told["specificity"]["fine_tuned"]["likelihood"] == pytest.approx(np.mean(apart), rel=1e-4)
    moved = told["fine_tuned"]["likelihood"] - told["host"]["likelihood"]
    assert moved > 0.05, "it learned what it was told"
    assert told["specificity"]["host"] != told["specificity"]["fine_tuned"]


def test_the_order_of_definitions_is_nothing(found):
    assert found["reversed"]["fine_tuned"] == pytest.approx(found["told"]["fine_tuned"], rel=1e-6)
    assert "specificity" not in found["reversed"]


def test_what_is_wrong_is_told(folder, tmp_path):
    for changes, message in (
        ({"task": "cloze"}, "cloze does not ask for the pieces of an answer; choose entity_inferences or ecbd"),
        ({"specificity": ("@nowhere",)}, r"stages\.told\.specificity: @nowhere names no stage"),
        ({"data": "others"}, r"others\.jsonl:1: field 'definition_blank' is missing"),
    ):
        with pytest.raises(InputError, match=message):
            run_experiment({"seed": 0, "stages": {"told": stage(folder, **changes)}}, tmp_path / "run")


def test_the_files_say_what_to_learn(tmp_path):
    template = {"probe_sentence": "The NFAC posted it on <extra_id_0>.", "label": "<extra_id_0> its page <extra_id_1>"}
    line = {"ex_id": "a", "definition": "The NFAC is a <extra_id_0> militia.", "ent_str": "NFAC", "attribute": "x"}
    line |= {"def_target": "<extra_id_0> large armed <extra_id_1>", "probe_sentences": {"template_0": template}}
    (tmp_path / "ecbd").mkdir()
    (tmp_path / "ecbd" / "all_ent_2020_2021_np_500samples.json").write_text(f"{json.dumps(line)}\n" * 5)
    prepare("ecbd/np", tmp_path, tmp_path / "data", check=False)
    record = next(iter(read_dataset(f"tfds:ecbd/np@{tmp_path / 'data'}?split=test")))
    assert record.fields["definition"] == "The NFAC is a large armed militia."
    assert record.fields["definition_blank"] == "The NFAC is a [MASK] militia."
    assert record.fields["definition_answer"] == "large armed"

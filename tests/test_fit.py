"""The loop and its invariants: what trains, what stays, resuming, several devices, the frozen prefix."""

import dataclasses
import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_world import as_device, leaves, plugin_stage, same_bits

from kinject.data.pipeline import Feed, choose_buckets
from kinject.data.records import read_records
from kinject.errors import InputError
from kinject.inference.host import open_host
from kinject.inference.mesh import Placement
from kinject.inference.program import evaluate, make_evaluation_step, portion_count, split_program
from kinject.knowledge.base import KnowledgeBase
from kinject.models.manifest import fingerprint
from kinject.models.precision import activations
from kinject.plugins.base import make_plugin
from kinject.reports.console import Reporter
from kinject.tasks.base import make_task
from kinject.training.config import FitConfig, OptimizerConfig
from kinject.training.loop import Fit
from kinject.training.partition import label_parameters, split
from kinject.training.step import initial_state, make_optimizer, make_train_step, mask_frozen

PLUGIN_RULES = [("plugin/.*", "train"), (".*", "freeze")]


class Setting:
    """What a Fit is made of, for one workdir."""

    def __init__(self, world: Path, workdir: Path, method=None, rules=PLUGIN_RULES, devices=1, dev=False, **fit):
        dtype = activations(fit.get("compute_dtype", "float32"))
        self.host = open_host(world / "host", head="masked_lm", dropout=fit.pop("dropout_rate", None), dtype=dtype)
        self.knowledge = KnowledgeBase.open(world / "knowledge")
        self.task = make_task("cloze")
        self.plugin = make_plugin(method or {"name": "map_tuning"}, hidden_size=16, knowledge_dim=8, seed=1)
        self.world, self.workdir, self.rules = world, workdir, rules
        settings = plugin_stage(world)["fit"] | fit
        self.config = FitConfig.model_validate(settings)
        self.program, self.params = split_program(self.host.loaded.host, self.plugin, self.task)
        self.placement = Placement.over(devices)
        self.dev = self.feed("dev") if dev else None

    def feed(self, split: str) -> Feed:
        records = list(read_records(self.world / f"{split}.jsonl", ("label",)))
        return Feed(self.task.examples(records, self.host.encoder(None), self.knowledge), self.knowledge.gather)

    def fit(self) -> Fit:
        return Fit(
            "stage",
            self.program,
            self.params,
            self.rules,
            self.config,
            self.feed("train"),
            self.dev,
            seed=3,
            workdir=self.workdir,
            reporter=Reporter(quiet=True),
            placement=self.placement,
        )


def metrics_of(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_plugin_learns_and_host_stays(world, tmp_path):
    setting = Setting(world, tmp_path, steps=60)
    fit = setting.fit()
    before, given = fingerprint(fit.frozen), fingerprint(setting.params)
    start = leaves(fit.state.train)
    result = fit.run()
    assert fingerprint(fit.frozen) == before
    assert fingerprint(setting.params) == given, "the caller's arrays were donated or changed"
    assert set(result.train) == {"plugin/mapper/kernel", "plugin/mapper/bias"}
    assert any(not np.array_equal(start[f"['{path}']"], leaf) for path, leaf in result.train.items())
    trained = {**setting.params, **result.train}
    found, _ = evaluate(setting.program, trained, setting.feed("test"), 10)
    untrained, _ = evaluate(setting.program, setting.params, setting.feed("test"), 10)
    assert found["accuracy"] >= 0.8 > untrained["accuracy"]


def test_optimizer_state_has_exactly_the_trainable_leaves(world, tmp_path):
    fit = Setting(world, tmp_path, optimizer={"name": "adamw", "weight_decay": 0.1, "clip": 1.0}).fit()
    arrays = [leaf for leaf in jax.tree.leaves(fit.state.optimizer) if leaf.ndim]
    expected = sorted(leaf.shape for leaf in fit.state.train.values())
    assert sorted(leaf.shape for leaf in arrays) == sorted([*expected, *expected])  # two moments each, no more


@pytest.mark.parametrize("optimizer", [{"name": "adamw", "weight_decay": 0.5}, {"name": "sgd"}, {"name": "lamb"}])
def test_no_optimizer_moves_the_base(world, tmp_path, optimizer):
    fit = Setting(world, tmp_path, steps=4, optimizer=optimizer).fit()
    before = leaves(fit.frozen)
    fit.run()
    after = leaves(fit.frozen)
    assert all(before[path].tobytes() == after[path].tobytes() for path in before)


def cut_after(steps, fit):
    """Ctrl-C in the step after these."""
    step, count = fit.train_step, 0

    def failing(*arguments):
        nonlocal count
        count += 1
        if count > steps:
            raise KeyboardInterrupt
        return step(*arguments)

    fit.train_step = failing
    with pytest.raises(KeyboardInterrupt):
        fit.run()
    fit.checkpoints.close(), fit.best.close()


@pytest.mark.parametrize("cut", [1, 8, 23])
def test_cut_and_resumed_equals_uninterrupted_bit_for_bit(world, tmp_path, cut, monkeypatch):
    options = {"dev": True, "evaluate_every": 4, "dropout": "all", "dropout_rate": 0.2}
    whole = Setting(world, tmp_path / "whole", **options).fit().run()
    fit = Setting(world, tmp_path / "cut", **options).fit()
    cut_after(cut, fit)
    fit = Setting(world, tmp_path / "cut", **options).fit()
    step, first = fit.train_step, []
    fit.train_step = lambda state, *rest: (first.append(int(state.step)), step(state, *rest))[1]
    resumed = fit.run()
    assert first[0] == cut // 4 * 4, "it did not go on from the last checkpoint"
    assert same_bits(whole.train, resumed.train)
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "cut")
    assert whole.metrics == resumed.metrics


def decaying(towards, decay, **options):
    optimizer = {"name": "adamw", "learning_rate": 0.02, "weight_decay": decay, "decay_towards": towards}
    return {"steps": 40, "optimizer": {**optimizer, "no_decay": ""}, **options}


def moved(setting, trained):
    return sum(float(np.square(leaf - setting.params[path]).sum()) for path, leaf in trained.items()) ** 0.5


def test_a_pull_towards_the_start_holds_the_plugin_near_it_and_one_towards_zero_does_not(world, tmp_path):
    def distance(name, towards, decay):
        setting = Setting(world, tmp_path / name, **decaying(towards, decay))
        return moved(setting, setting.fit().run().train)

    free, held, shrunk = (
        distance("free", "start", 1e-6),
        distance("held", "start", 20.0),
        distance("zero", "zero", 20.0),
    )
    assert held < 0.2 * free
    assert shrunk > 3 * held


def test_the_start_is_kept_in_the_checkpoint(world, tmp_path):
    options = decaying("start", 5.0)
    whole = Setting(world, tmp_path / "whole", **options).fit().run()
    fit = Setting(world, tmp_path / "cut", **options).fit()
    cut_after(23, fit)
    other = Setting(world, tmp_path / "cut", **options)
    other.params = {path: leaf + 1 for path, leaf in other.params.items()}  # what it would start from now matters not
    other.params |= {path: leaf for path, leaf in Setting(world, tmp_path, **options).params.items() if "host" in path}
    assert same_bits(whole.train, other.fit().run().train)


@pytest.mark.parametrize("name, decay", [("adam", 0.1), ("adamw", 0.0)])
def test_a_pull_towards_the_start_needs_an_optimizer_that_decays(name, decay):
    with pytest.raises(ValueError, match="decay_towards start needs"):
        FitConfig(steps=1, optimizer={"name": name, "weight_decay": decay, "decay_towards": "start"})


def test_finished_run_is_not_trained_again(world, tmp_path):
    first = Setting(world, tmp_path).fit().run()
    again = Setting(world, tmp_path).fit()
    again.train_step = None  # any step would fail
    second = again.run()
    assert same_bits(first.train, second.train) and first.metrics == second.metrics


def test_damaged_checkpoint_is_skipped_with_a_warning(world, tmp_path, caplog):
    whole = Setting(world, tmp_path / "whole").fit().run()
    Setting(world, tmp_path / "cut").fit().run()
    newest = tmp_path / "cut" / "checkpoints" / "stage" / "last" / "24"
    victims = [path for path in (newest / "state").rglob("*") if path.is_file() and path.parent.name == "d"]
    assert victims, sorted(str(path.relative_to(newest)) for path in newest.rglob("*"))
    for path in victims:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    fit = Setting(world, tmp_path / "cut").fit()
    assert int(fit.checkpoints.restore(fit.state, fit.iterator).step) == 20
    fit.checkpoints.close()
    resumed = Setting(world, tmp_path / "cut").fit().run()
    assert "damaged checkpoint" in caplog.text
    assert same_bits(whole.train, resumed.train)


def test_checkpoint_of_another_configuration_is_refused(world, tmp_path):
    Setting(world, tmp_path).fit().run()
    method = {"name": "map_tuning", "mapper": "residual_mlp", "width": 4}
    with pytest.raises(InputError, match="another configuration"):
        Setting(world, tmp_path, method=method).fit().run()


def test_two_devices_equal_one(world, tmp_path):
    one = Setting(world, tmp_path / "one", steps=12).fit().run()
    two = Setting(world, tmp_path / "two", steps=12, devices=2).fit().run()
    chex.assert_trees_all_close(one.train, two.train, rtol=1e-4, atol=1e-5)
    losses = zip(metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two"), strict=True)
    assert all(abs(a["loss"] - b["loss"]) <= 1e-5 * abs(a["loss"]) for a, b in losses)


@pytest.mark.parametrize("dropped", [{}, {"dropout": "all", "dropout_rate": 0.3, "micro_batch": 30}])
def test_a_batch_that_devices_cannot_share_is_filled_up(dropped, world, tmp_path):
    """7 rows for 2 devices, the seventh in a portion of its own where something is dropped: as on one device."""
    one = Setting(world, tmp_path / "one", batch_size=7, steps=3, log_every=1, **dropped).fit()
    two = Setting(world, tmp_path / "two", batch_size=7, steps=3, log_every=1, devices=2, **dropped).fit()
    assert one.program.batch_rows is None and next(iter(one.iterator))["weights"].tolist() == [1] * 7
    assert two.program.batch_rows == 7 and next(iter(two.iterator))["weights"].tolist() == [*[1] * 7, 0]
    chex.assert_trees_all_close(one.run().train, two.run().train, rtol=1e-4, atol=1e-5)
    losses = zip(metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two"), strict=True)
    assert all(abs(a["loss"] - b["loss"]) <= 1e-5 * abs(a["loss"]) for a, b in losses)


def test_frozen_prefix_changes_no_number(world, tmp_path):
    rules = [("host/encoder/layers/2/.*", "train"), ("host/head/.*", "train"), (".*", "freeze")]
    sgd = {"name": "sgd", "learning_rate": 0.05}  # Adam would blow up the rounding of gradients that are zero
    plain = Setting(world, tmp_path / "plain", rules=rules, optimizer=sgd, prefix_cache_mb=0)
    cached = Setting(world, tmp_path / "cached", rules=rules, optimizer=sgd)
    for setting in (plain, cached):
        setting.program, setting.params = split_program(setting.host.loaded.host, None, setting.task)
    fit = cached.fit()
    assert fit.program.start == 2 and "prefix" in next(fit.iterator)
    fit = cached.fit()
    one, other = plain.fit().run(), fit.run()
    chex.assert_trees_all_close(one.train, other.train, rtol=1e-4, atol=1e-6)


def test_prefix_is_not_cached_under_a_plugin_at_the_embeddings(world, tmp_path):
    assert Setting(world, tmp_path).fit().program.start == 0


def test_best_checkpoint_is_kept_and_early_stop_ends(world, tmp_path):
    setting = Setting(world, tmp_path, dev=True, evaluate_every=4, patience=2, steps=400)
    result = setting.fit().run()
    lines = [line for line in metrics_of(tmp_path) if "dev_accuracy" in line]
    best = max(line["dev_accuracy"] for line in lines)
    assert result.metrics["dev_accuracy"] == best
    assert result.steps < 400 and result.steps == result.metrics["best_step"] + 2 * 4
    found, _ = evaluate(setting.program, {**setting.params, **result.train}, setting.dev, 100)
    assert found["accuracy"] == best


def test_accumulation_equals_the_larger_batch(world, tmp_path):
    setting = Setting(world, tmp_path)
    labels = label_parameters(setting.params, PLUGIN_RULES)
    feed = setting.feed("train")
    batch = feed.batch(0, np.arange(8))
    halves = [feed.batch(0, np.arange(0, 4)), feed.batch(0, np.arange(4, 8))]

    def run(batches, accumulate):
        train, frozen = split(setting.params, labels)
        optimizer = make_optimizer(OptimizerConfig(name="sgd", learning_rate=0.1, accumulate=accumulate), labels, 4)
        state = initial_state(jax.tree.map(jnp.copy, train), optimizer, labels)
        step = make_train_step(setting.program, optimizer, labels, seed=0, dropout=False)
        for each in batches:
            state, _ = step(state, frozen, as_device(each))
        return state.train

    chex.assert_trees_all_close(run([batch], 1), run(halves, 2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rules", [PLUGIN_RULES, [(".*", "train")]])
def test_micro_batches_equal_the_whole_batch(world, tmp_path, rules):
    setting = Setting(world, tmp_path)
    labels = label_parameters(setting.params, rules)
    batch = as_device(setting.feed("train").batch(0, np.arange(12)))

    def run(micro_batch):
        train, frozen = split(setting.params, labels)
        optimizer = make_optimizer(OptimizerConfig(name="sgd", learning_rate=0.1), labels, 4)
        state = initial_state(jax.tree.map(jnp.copy, train), optimizer, labels)
        program = dataclasses.replace(setting.program, micro_batch=micro_batch)
        predictions = make_evaluation_step(program)({**frozen, **train}, batch)
        state, logged = make_train_step(program, optimizer, labels, seed=0, dropout=False)(state, frozen, batch)
        return state.train, logged, predictions

    assert portion_count(batch, 1) == 12
    chex.assert_trees_all_close(run(1), run("whole"), rtol=1e-5, atol=1e-6)


def test_one_compilation_a_bucket(world, tmp_path):
    chex.clear_trace_counter()
    setting = Setting(world, tmp_path)
    buckets = len(setting.feed("train").examples.buckets)
    assert buckets == 2
    original = setting.program.task.loss
    setting.program.task.loss = chex.assert_max_traces(original, n=buckets)
    setting.fit().run()


def test_map_tuning_computes_no_weight_gradients(world, tmp_path):
    """A step that trains only the plugin: at most 0.70 of the FLOPs of full fine-tuning, by the compiler's count."""

    def flops(rules):
        setting = Setting(world, tmp_path)
        labels = label_parameters(setting.params, rules)
        optimizer = make_optimizer(OptimizerConfig(), labels, 10)
        train, frozen = split(setting.params, labels)
        state = initial_state(train, optimizer, labels)
        step = make_train_step(setting.program, optimizer, labels, seed=0, dropout=False)
        batch = as_device(setting.feed("train").batch(0, np.arange(8)))
        return step.lower(state, frozen, batch).compile().cost_analysis()["flops"]

    assert flops(PLUGIN_RULES) <= 0.70 * flops([(".*", "train")])


def test_masked_optimizer_tree_holds_no_frozen_array(world, tmp_path):
    setting = Setting(world, tmp_path)
    labels = label_parameters(setting.params, PLUGIN_RULES)
    train, _ = split(setting.params, labels)
    assert len(jax.tree.leaves(mask_frozen(train, labels))) == len(train)


def test_buckets_pad_the_fewest_tokens():
    lengths = [5, 5, 6, 9, 9, 20]
    assert choose_buckets(lengths, 1) == [20]
    assert choose_buckets(lengths, 2) == [9, 20]
    assert choose_buckets(lengths, 3) == [6, 9, 20]
    assert choose_buckets(lengths, 9) == [5, 6, 9, 20]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": None}, "give either epochs or steps"),
        ({"epochs": 2}, "give either epochs or steps"),
        ({"checkpoint_every": 5}, "multiple of log_every"),
        ({"patience": 3}, "patience needs evaluate_every"),
        ({"optimizer": {"learning_rate": -1}}, "greater than 0"),
    ],
)
def test_bad_fit_settings(world, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        FitConfig.model_validate(plugin_stage(world)["fit"] | change)

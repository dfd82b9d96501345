"""Plugins of several domains trained at once: each as if alone, none knowing of another, the host's work done once."""

import re

import jax
import numpy as np
import pytest
from tiny_world import as_device, question, same_bits, write_base, write_records

from kinject.data.pipeline import Feed
from kinject.data.records import read_records
from kinject.inference.host import open_host
from kinject.inference.mesh import place_params
from kinject.inference.program import split_program
from kinject.knowledge.base import KnowledgeBase
from kinject.plugins.base import make_plugin
from kinject.tasks.base import make_task
from kinject.training.config import OptimizerConfig
from kinject.training.domains import (
    DomainFeeds,
    domain_axes,
    initial_states,
    make_domains_step,
    one_domain,
    stack_plugins,
)
from kinject.training.partition import label_parameters, split
from kinject.training.step import initial_state, make_optimizer, make_train_step

RULES = [("plugin/.*", "train"), (".*", "freeze")]
ROWS = 4


class Domains:
    """Three domains on one host: other vectors, other questions, other lengths, other seeds."""

    seeds = (3, 4, 5)

    def __init__(self, world, folder, method=None, dropout_rate=None, short=False):
        self.world, self.task = world, make_task("cloze")
        self.host = open_host(world / "host", head="masked_lm", dropout=dropout_rate)
        method = {"name": "map_tuning", **(method or {})}
        plugins = [make_plugin(method, hidden_size=16, knowledge_dim=8, seed=seed) for seed in self.seeds]
        made = [split_program(self.host.loaded.host, plugin, self.task) for plugin in plugins]
        self.program, self.params = made[0][0], [params for _, params in made]
        self.labels = label_parameters(self.params[0], RULES)
        settings = OptimizerConfig(name="adamw", learning_rate=0.02, schedule="linear", weight_decay=0.1, clip=0.5)
        self.optimizer = make_optimizer(settings, self.labels, 12)
        # questions of odd cities are short ones
        kinds = (
            (range(1, 40, 2), range(1, 20, 2), range(21, 40, 2)) if short else (range(40), range(1, 40, 2), range(12))
        )
        self.feeds = tuple(self._feed(folder / f"d{number}", number, kind) for number, kind in enumerate(kinds))

    def _feed(self, folder, seed, kind):
        write_records(folder / "train.jsonl", map(question, kind))
        base = KnowledgeBase.open(write_base(folder / "knowledge", seed=seed, name=f"d{seed}"))
        records = list(read_records(folder / "train.jsonl", ("label",)))
        return Feed(self.task.examples(records, self.host.encoder(None), base, buckets=2), base.gather)

    def alone(self, number, steps, dropout=False):
        """State and logged values of one domain, trained by itself."""
        train, frozen = place_params(*split(self.params[number], self.labels), "float32")
        step = make_train_step(self.program, self.optimizer, self.labels, seed=self.seeds[number], dropout=dropout)
        state, logged = initial_state(train, self.optimizer, self.labels), []
        batches = iter(self.feeds[number].training(ROWS, self.seeds[number]))
        for _ in range(steps):
            state, values = step(state, frozen, as_device(next(batches)))
            logged.append(jax.device_get(values))
        return state, logged

    def together(self, batches, dropout=False):
        train, frozen = place_params(*split(stack_plugins(self.params), self.labels), "float32")
        step = make_domains_step(self.program, self.optimizer, self.labels, seeds=self.seeds, dropout=dropout)
        state, logged = initial_states(train, self.optimizer, self.labels), []
        for batch in batches:
            state, values = step(state, frozen, as_device(batch))
            logged.append(jax.device_get(values))
        return state, logged

    def batches(self, steps):
        dealt = iter(DomainFeeds(self.feeds, buckets=2).training(ROWS, self.seeds))
        return [next(dealt) for _ in range(steps)]


@pytest.mark.parametrize("dropout", [False, True])
def test_each_domain_is_trained_as_if_alone(world, tmp_path, dropout):
    """With dropout where all rows have one length: the masks of a row that was made wider are others."""
    domains = Domains(world, tmp_path, {"mapper": "residual_mlp", "width": 4}, dropout_rate=0.2, short=dropout)
    state, logged = domains.together(domains.batches(4), dropout)
    for number in range(3):
        alone, values = domains.alone(number, 4, dropout)
        for path, leaf in alone.train.items():
            np.testing.assert_allclose(one_domain(state.train, number)[path], leaf, rtol=2e-4, atol=2e-5)
        for name in ("loss", "gradient_norm"):
            np.testing.assert_allclose([each[name][number] for each in logged], [each[name] for each in values], 1e-3)


def test_no_domain_knows_of_another(world, tmp_path):
    """Bit for bit: another's data, of whatever content, changes nothing; its own does."""
    domains = Domains(world, tmp_path)
    batches = domains.batches(3)
    before, logged = domains.together(batches)
    for batch in batches:
        batch["labels"][1] = 7
        batch["entity_vectors"][1] *= 1e6  # clipping over all domains at once would be felt
    after, relogged = domains.together(batches)
    for number in range(3):
        own = jax.tree.map(lambda leaf, number=number: leaf[number], (before, after))
        assert same_bits(*own) == (number != 1), number
    assert all(one["loss"][0] == other["loss"][0] for one, other in zip(logged, relogged, strict=True))


def test_joined_batches_hold_what_each_domain_would_get(world, tmp_path):
    domains = Domains(world, tmp_path)
    streams = [iter(feed.training(ROWS, seed)) for feed, seed in zip(domains.feeds, domains.seeds, strict=True)]
    shapes = set()
    for batch in domains.batches(8):
        shapes.add(batch["token_ids"].shape)
        for number, stream in enumerate(streams):
            for name, values in next(stream).items():
                own = batch[name][number]
                here = tuple(map(slice, values.shape))
                assert np.array_equal(own[here], values), name
                rest = own.copy()
                rest[here] = -1 if name in ("entity_slot", "entity_ids") else 0
                assert np.all(rest == (-1 if name in ("entity_slot", "entity_ids") else 0)), name
    assert len(shapes) <= 2, "as many shapes as buckets were asked for"
    assert all(shape[:2] == (3, ROWS) for shape in shapes)


def test_the_host_multiplies_all_domains_rows_at_once(world, tmp_path):
    """In the compiled step, products with the host's weights have no axis of domains."""
    domains = Domains(world, tmp_path)
    train, frozen = place_params(*split(stack_plugins(domains.params), domains.labels), "float32")
    state, batch = initial_states(train, domains.optimizer, domains.labels), as_device(domains.batches(1)[0])
    step = make_domains_step(domains.program, domains.optimizer, domains.labels, seeds=domains.seeds, dropout=False)
    text = step.lower(state, frozen, batch).compile().as_text()
    shapes = [tuple(map(int, dims.split(","))) for dims in re.findall(r" = f32\[([\d,]+)\]\S* dot\(", text)]
    rows = 3 * ROWS * batch["token_ids"].shape[-1]
    assert (rows, 32) in shapes, "the feed-forward of all domains is one product"
    by_domain = [shape for shape in shapes if shape[0] == 3 and len(shape) == 3]
    maps = [(3, ROWS, 16), (3, 8, 16), (3, 16, 8)]  # the map, and its gradient either way round
    assert by_domain and all(shape in maps for shape in by_domain), by_domain
    assert {axis for path, axis in domain_axes(frozen).items()} == {None}

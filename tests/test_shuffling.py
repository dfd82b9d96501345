"""The order of examples, version 2: each once an epoch, a function of seed and place, resumed as version 1 is."""

from dataclasses import replace

import numpy as np
import pytest

from kinject.data.pipeline import Feed, make_examples
from kinject.data.shuffling import Permutations, place_seeds
from kinject.training.config import FitConfig


def examples(lengths=(3, 3, 3, 3, 3, 7, 7, 7, 7, 7, 7), redraw=None):
    made = make_examples(
        lengths, lambda index, length: {"token_ids": np.zeros((len(index), length), np.int32)}, buckets=2
    )
    return made if redraw is None else made.with_redraw(redraw)


def numbers(order, count):
    return [order[i]["index"].tolist() for i in range(count)]


def test_each_example_once_an_epoch_in_an_order_of_its_own():
    stream = Permutations(7, 3)
    epochs = [stream.rows(np.arange(7) + 7 * epoch).tolist() for epoch in range(4)]
    assert all(sorted(one) == list(range(7)) for one in epochs) and len({tuple(one) for one in epochs}) == 4
    across = Permutations(7, 3).rows(np.arange(5, 23))  # a batch that reaches over epochs, read first of all
    assert across.tolist() == [*epochs[0][5:], *epochs[1], *epochs[2], *epochs[3][:2]]
    assert Permutations(7, 4).rows(np.arange(7)).tolist() != epochs[0]
    assert Permutations(4, 0, ordered=True).rows(np.arange(6)).tolist() == [0, 1, 2, 3, 0, 1]
    assert stream.rows(np.empty(0, np.int64)).tolist() == []


def test_batches_are_of_one_bucket_mixed_by_size_and_shared_by_rows():
    feed = Feed(examples(), shuffle=2)
    dealt = numbers(feed.order(2, seed=0), 11)  # 22 examples: two epochs
    flat = [one for batch in dealt for one in batch]
    assert all(len({one < 5 for one in batch}) == 1 for batch in dealt)
    assert sum(one < 5 for one in flat) == 10 and set(flat) == set(range(11))
    part = numbers(feed.order(2, 0, share=np.array([1])), 11)
    assert part == [batch[1:] for batch in dealt]
    filled = feed.order(2, 0, rows=3)[4]
    assert filled["index"].tolist() == [*dealt[4], dealt[4][-1]] and filled["weights"].tolist() == [1, 1, 0]
    assert numbers(replace(feed, shuffle=1).order(2, 0), 11) != dealt


def test_a_run_goes_on_where_it_stopped():
    feed = Feed(examples(redraw=lambda batch, seeds: {**batch, "seeds": seeds}), shuffle=2)
    stream = iter(feed.training(2, seed=5))
    whole = [next(stream) for _ in range(9)]
    again = iter(feed.training(2, seed=5))
    for _ in range(4):
        next(again)
    later = iter(feed.training(2, seed=5))
    later.set_state(again.get_state())
    for expected in whole[4:]:
        found = next(later)
        assert found["index"].tolist() == expected["index"].tolist()
        assert found["seeds"].tolist() == expected["seeds"].tolist()
    seeds = np.concatenate([one["seeds"] for one in whole])
    assert len(set(seeds.tolist())) > len(seeds) - 2  # drawn anew whenever an example is dealt


def test_seeds_of_places_are_spread():
    seeds = place_seeds(7, np.arange(20_000))
    assert seeds.min() >= 0 and len(np.unique(seeds)) == len(seeds)
    bits = (seeds[:, None] >> np.arange(62)) & 1
    assert np.abs(bits.mean(0) - 0.5).max() < 0.02
    assert not (set(place_seeds(8, np.arange(100)).tolist()) & set(seeds[:100].tolist()))


def test_a_config_chooses_it_and_a_former_run_is_of_version_1():
    assert FitConfig(steps=1).shuffle == 1 and FitConfig(steps=1, shuffle=2).shuffle == 2
    with pytest.raises(ValueError, match="shuffle"):
        FitConfig(steps=1, shuffle=3)

"""Multiple choice: its input forms, one forward for all choices, loss and metric, facts, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest
from encoding_cases import both
from encoding_cases import host as tokenizer_of
from task_runs import TaskWorld, as_device, check_run, parsed, row
from tiny import fast_jit

from kinject.data.encode import EntityEncoder
from kinject.errors import InputError
from kinject.inference.program import split_program
from kinject.models.heads import logits
from kinject.models.pretrained import load_host
from kinject.plugins.base import make_plugin
from kinject.tasks.base import make_task
from kinject.tasks.multiple_choice import choice_facts, single_separators
from kinject.training.prefix import PrefixPlan
from kinject.training.states import attach_prefix


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return TaskWorld(tmp_path_factory.mktemp("choices"), layers=2)


def asked(i=1, choices=("land0", "land1", "a place"), label=1, **fields):
    mention = {"start": 0, "end": len(f"city{i}"), "entity": f"Q{i}"}
    value = {"text": f"city{i} is far .", "mentions": [mention], "question": f"a place of city{i}"}
    return {**value, "choices": [*choices], "label": label, **fields}


KFORMER = {"question_prefix": "Q : ", "choice_prefix": "A : "}


def test_input_forms(world):
    batch = world.batch(make_task("multiple_choice"), [asked()])
    assert row(batch, 0, 2) == "[CLS] E1 / city1 is far . [SEP] a place of city1 [SEP] a place [SEP]"
    batch = world.batch(make_task("multiple_choice", **KFORMER), [asked()])
    assert row(batch, 0, 1) == "[CLS] E1 / city1 is far . [SEP] Q : a place of city1 [SEP] A : land1 [SEP]"
    medical = {key: value for key, value in asked().items() if key != "question"}
    batch = world.batch(make_task("multiple_choice", **KFORMER), [medical])
    assert row(batch, 0, 0) == "[CLS] Q : E1 / city1 is far . [SEP] A : land0 [SEP]"
    tokens = {**medical, "tokens": ["city1", "is"], "mentions": [{"start": 0, "end": 1, "entity": "Q1"}]}
    del tokens["text"]
    batch = world.batch(make_task("multiple_choice", **KFORMER), [tokens])
    assert row(batch, 0, 0) == "[CLS] Q : E1 / city1 is [SEP] A : land0 [SEP]"
    assert (
        row(world.batch(make_task("multiple_choice"), [tokens], slots=False), 0, 0)
        == "[CLS] city1 is [SEP] land0 [SEP]"
    )


@both
def test_one_separator_between_texts_in_both_families(family):
    encoder = single_separators(EntityEncoder(tokenizer_of(family)))
    batch = make_task("multiple_choice").examples(parsed(asked()), encoder, None, buckets=1).buckets[0]
    separators = batch["token_ids"][0] == encoder.tokenizer.sep_id
    assert (separators.sum(1) == 3).all() and not (separators[:, 1:] & separators[:, :-1]).any()
    first = separators[0].argmax()
    assert (batch["type_ids"][0, 0, : first + 1] == 0).all()
    assert set(batch["type_ids"][0, 0, first + 1 : first + 3]) == {encoder.tokenizer.pair_type}


def test_too_long_texts_lose_the_passage_first(world):
    value = asked(choices=["land0 land1", "land2"], question="a place of city2")
    whole = "[CLS] E1 / city1 is far . [SEP] a place of city2 [SEP] land0 land1 [SEP]"
    task, length = make_task("multiple_choice"), len(whole.split())
    cuts = {
        length: whole,
        length - 2: "[CLS] E1 / city1 is [SEP] a place of city2 [SEP] land0 land1 [SEP]",
        length - 4: "[CLS] E1 / city1 [SEP] a place of [SEP] land0 land1 [SEP]",
        length - 8: "[CLS] E1 / city1 [SEP] [SEP] land0 [SEP]",
    }
    for max_length, text in cuts.items():
        assert row(world.batch(task, [value], max_length=max_length), 0, 0) == text
    with pytest.raises(InputError, match=r"file\.jsonl:1: its mentions alone do not fit"):
        world.batch(task, [value], max_length=6)


def test_choices_in_one_forward_are_choices_one_by_one(world):
    """Also where records have different numbers of choices, with a plugin, and from a computed prefix."""
    torch = pytest.importorskip("torch")
    task = make_task("multiple_choice")
    values = [asked(3), asked(4, ["land2", "far"], 0), asked(5, ["of", "in", "is", "land4"], 3)]
    host = load_host(world.folder / "raw", head="multiple_choice", fresh_head=True, seed=1).host
    plugin = make_plugin({"name": "map_tuning"}, hidden_size=16, knowledge_dim=8, seed=1)
    batch = world.batch(task, values)
    assert batch["token_ids"].shape[:2] == (3, 4) and batch["entity_vectors"].shape == (3, 4, 1, 8)
    outputs = np.asarray(fast_jit(lambda batch: task.outputs(host, plugin, batch))(as_device(batch)))
    single = fast_jit(lambda batch: logits(host, batch, plugin))
    for i, value in enumerate(values):
        rows = {name: batch[name][i] for name in batch if name not in ("labels", "weights", "index")}
        alone = np.asarray(single(as_device(rows))).reshape(-1)
        np.testing.assert_allclose(outputs[i, : len(value["choices"])], alone[: len(value["choices"])], atol=1e-5)
    assert (outputs[1, 2:] < -1e8).all() and (outputs[0, 3:] < -1e8).all()
    losses, weights = task.loss(outputs, batch)
    counts = [3, 2, 4]
    expected = [
        float(torch.nn.functional.cross_entropy(torch.tensor(one[:n])[None], torch.tensor([label])))
        for one, n, label in zip(outputs, counts, [1, 0, 3], strict=True)
    ]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert weights.tolist() == [1, 1, 1]
    chosen = [int(np.argmax(one[:n])) for one, n in zip(outputs, counts, strict=True)]
    found = {name: np.asarray(value) for name, value in task.predict(outputs, batch).items()}
    assert found["chosen"].tolist() == chosen and found["right"].tolist() == [1, 0, 3]
    assert task.score(found) == {"accuracy": np.mean(np.array(chosen) == [1, 0, 3])}


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (jnp.bfloat16, 3e-2)])
@pytest.mark.parametrize("seam", [False, True])
def test_a_frozen_prefix_of_choices_is_the_whole_forward(world, seam, dtype, tolerance):
    """Kept as one state or as the two before a plugin's seam, in either dtype."""
    from kinject.data.pipeline import Feed
    from kinject.inference.mesh import Placement

    task = make_task("multiple_choice")
    host = load_host(world.folder / "raw", head="multiple_choice", fresh_head=True, seed=1).host
    examples = task.examples(parsed(asked(3), asked(4, ["land2", "far"], 0)), world.host.encoder(None), None, buckets=1)
    feed, (program, params) = Feed(examples), split_program(host, None, task)
    plan = PrefixPlan(1, seam, np.dtype(dtype), 0, "memory", ("prefix", "prefix_inner")[: 1 + seam], 16)
    with_prefix = attach_prefix(program, params, feed, plan, 2, Placement.single())
    for one, other in zip(feed.evaluation(2), with_prefix.evaluation(2), strict=True):
        whole = fast_jit(lambda batch: task.outputs(host, None, batch))(as_device(one))
        rest = fast_jit(lambda batch: task.outputs(host, None, batch, start=1))(as_device(other))
        kept = {name: states for name, states in other.items() if name.startswith("prefix")}
        assert set(kept) == ({"prefix", "prefix_inner"} if seam else {"prefix"})
        for states in kept.values():
            assert states.shape == (*other["token_ids"].shape, 16) and states.dtype == dtype
        np.testing.assert_allclose(whole, rest, atol=tolerance)


def test_facts_of_each_choice_or_of_all():
    (own, shared, none) = parsed(
        asked(facts=[["x"], [], ["y", "z"]]), asked(facts=[["x", "y"]]), asked()
    )  # fmt: skip
    assert choice_facts(own) == [["x"], [], ["y", "z"]] and choice_facts(none) == [[], [], []]
    assert choice_facts(shared) == [["x", "y"]] * 3
    assert len({id(one) for one in choice_facts(shared)}) == 1  # repeated, not copied


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": "land1"}, "field choices is 'land1'; it must be a list"),
        ({"choices": ["land1", 3]}, "field choices is"),
        ({"choices": ["land1"], "label": 0}, "field choices has 1 of them; a question has two or more"),
        ({"label": 3}, "field label is 3, and there are 3 choices"),
        ({"label": True}, "field label is True"),
        ({"label": "1"}, "field label is '1'"),
        ({"question": 7}, "field question is 7"),
        ({"facts": ["x"]}, r"field facts is \['x'\]; it must be a list of lists"),
        ({"facts": [["x", 1]]}, r"field facts\[0\] is \['x', 1\]"),
        ({"facts": [["x"], ["y"]]}, "field facts has 2 lists for 3 choices"),
    ],
)
def test_bad_records_are_told(change, message, world):
    with pytest.raises(InputError, match=rf"^file\.jsonl:2: {message}"):
        world.batch(make_task("multiple_choice"), [asked(), {**asked(), **change}])
    with pytest.raises(InputError, match=r"task_options\.choice_prefix: is 3"):
        make_task("multiple_choice", choice_prefix=3)


def test_choices_train_and_are_measured(world):
    host, _ = check_run(world, "multiple_choice", parsed(*(asked(i, label=i % 3) for i in range(12))), KFORMER)
    assert 0 <= host["accuracy"] <= 1

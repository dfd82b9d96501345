"""Few-shot episodes: drawn as the authors draw them, their pairs put together right, all of them in one program."""

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from encoding_cases import both, host, rows, steady, words
from few_shot import pair_scorer, records_of
from hypothesis import given
from hypothesis import strategies as st
from tiny import fast_jit
from tiny_world import as_device

from kinject.data.encode import EntityEncoder, Mention, Passage
from kinject.data.pipeline import Feed, even
from kinject.data.records import parse_record
from kinject.errors import InputError
from kinject.inference.comparison import Comparison
from kinject.inference.mesh import Placement
from kinject.inference.program import evaluate, split_program, step_feed
from kinject.models.heads import logits
from kinject.plugins.map_tuning import MapTuning
from kinject.tasks.base import PER_EXAMPLE, make_task
from kinject.tasks.episodes import PairTable, Setting, draw_episode
from kinject.tasks.few_shot_relations import FewShotRelations
from kinject.tasks.protocol import PROTOCOLS, support_first

FEWREL = Path(__file__).parents[1] / ".." / "shared" / "data" / "fewrel_val_wiki.json"
# seed -> relations in the order drawn, each with the support's and the five queries' places in the file
PINNED = {
    0: {
        "P463": (414, 523, 310, 366, 497, 488),
        "P921": (545, 633, 150, 616, 97, 256),
        "P361": (483, 103, 323, 362, 573, 444),
        "P155": (14, 408, 561, 95, 63, 684),
        "P25": (244, 195, 333, 581, 227, 64),
    },
    1: {
        "P25": (507, 667, 483, 261, 120, 460),
        "P410": (622, 2, 456, 399, 443, 272),
        "P59": (9, 22, 665, 554, 26, 390),
        "P463": (540, 238, 507, 566, 227, 448),
        "P177": (657, 426, 102, 22, 569, 190),
    },
    2: {
        "P177": (621, 257, 620, 315, 217, 685),
        "P921": (514, 455, 380, 557, 274, 521),
        "P641": (538, 573, 168, 389, 181, 433),
        "P26": (177, 522, 690, 368, 139, 526),
        "P206": (607, 370, 165, 362, 456, 409),
    },
    3: {
        "P364": (485, 620, 67, 640, 594, 618),
        "P410": (562, 196, 553, 487, 481, 406),
        "P40": (687, 399, 163, 15, 535, 65),
        "P206": (404, 590, 484, 396, 609, 437),
        "P26": (139, 506, 688, 264, 222, 446),
    },
    4: {
        "P364": (411, 158, 68, 490, 92, 20),
        "P25": (176, 268, 283, 219, 108, 26),
        "P177": (88, 620, 317, 296, 381, 642),
        "P413": (286, 484, 560, 7, 307, 91),
        "P361": (295, 423, 441, 613, 462, 433),
    },
}


@pytest.mark.shared_data
def test_episodes_of_the_real_file_are_those_of_the_paper():
    if not FEWREL.exists():
        pytest.skip("the development data is not here")
    relations = json.loads(FEWREL.read_text())
    records = [
        parse_record({"tokens": one["tokens"], "label": relation, "id": f"{relation}/{i}"}, "test")
        for relation, instances in relations.items()
        for i, one in enumerate(instances)
    ]
    task = FewShotRelations(evaluation_episodes=len(PINNED)).for_evaluation()
    for episode in task.episodes(records):
        drawn = {
            name: support + queries
            for name, support, queries in zip(episode.classes, episode.supports, episode.queries, strict=True)
        }
        assert drawn == PINNED[episode.seed] and list(drawn) == list(PINNED[episode.seed])


@steady
@given(st.integers(0, 3000), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.randoms(use_true_random=False))
def test_an_episode_is_what_pythons_generator_draws(seed, n, k, q, order):
    names = [f"P{i * 37 % 11}" for i in range(8)]
    order.shuffle(names)
    sizes = {name: 10 + 3 * i for i, name in enumerate(names)}
    episode = draw_episode(sizes, Setting(n, k, q), seed)
    random.seed(seed)
    assert list(episode.classes) == random.sample(sorted(sizes), n)
    for name, support, queries in zip(episode.classes, episode.supports, episode.queries, strict=True):
        drawn = random.sample(range(sizes[name]), k + q)
        random.shuffle(drawn)
        assert [*support, *queries] == drawn and len(support) == k and len(set(drawn)) == k + q


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return pair_scorer(tmp_path_factory.mktemp("few-shot"))


class Known:
    """A knowledge base that only says who has a vector."""

    present = staticmethod(lambda rows: rows >= 0)
    rows = staticmethod(rows)


@st.composite
def tables(draw):
    passages = []
    for _ in range(draw(st.integers(2, 4))):
        tokens = [*draw(st.lists(words, max_size=6)), "ka", *draw(st.lists(words, max_size=4)), "mo"]
        tokens += draw(st.lists(words, max_size=6))
        at = [tokens.index("ka"), max(i for i, token in enumerate(tokens) if token == "mo")]
        entities = [draw(st.sampled_from(["Q1", "Q2", "Q9", None])) for _ in at]
        looks = zip(at, entities, "#$", strict=True)
        passages.append(Passage(tokens, [Mention(i, i + 1, one, mark, mark) for i, one, mark in looks]))
    return passages


@both
@pytest.mark.parametrize("protocol", PROTOCOLS)
@steady
@given(passages=tables(), length=st.integers(34, 60))
def test_pairs_are_what_the_encoder_makes_of_both_texts(family, protocol, passages, length):
    """Put together from sentences, or shortened, a pair is the encoder's own: ids, types, and which row is where."""
    protocol = PROTOCOLS[protocol]
    table = PairTable(passages, EntityEncoder(host(family), length), Known(), protocol)
    numbers = np.arange(len(passages))
    queries, supports = (each.ravel() for each in np.meshgrid(numbers, numbers))
    pairs = [
        Passage(passages[q].text, passages[q].mentions, passages[s].text, passages[s].mentions)
        for q, s in zip(queries, supports, strict=True)
    ]
    try:
        expected = table.encoder.encode_batch(pairs, rows, bare_slots=protocol.bare_slots)
    except InputError:
        with pytest.raises(InputError, match="do not fit"):
            table.shorten(queries, supports)
        return
    table.shorten(queries, supports)
    padded = int(table.lengths_of(queries, supports).max()) + 1
    made = table.compose(queries, supports, padded)
    entities = table.entity_ids(queries, supports)
    assert made.keys() | {"entity_ids"} == table.encoder.pad([], 1, 0).keys()
    for row, one in enumerate(expected):
        theirs = table.encoder.pad([one], padded, len(one.entities))
        for name in ("token_ids", "segment_ids", "position_ids", "type_ids"):
            assert made[name].dtype == np.int32 and made[name][row].tolist() == theirs[name][0].tolist()
        assert len(one) == table.lengths_of(queries, supports)[row]
        stands = [-2 if slot < 0 else entities[row][slot] for slot in made["entity_slot"][row]]
        wanted = [-2 if slot < 0 else theirs["entity_ids"][0][slot] for slot in theirs["entity_slot"][0]]
        assert stands == wanted


def cut_by_hand(first, second, room):
    """The authors' loop, token by token."""
    while len(first) + len(second) > room:
        for text in (second, first):
            if text[0] not in "$#":
                del text[0]
                break
            if text[-1] not in "$#":
                del text[-1]
                break
        else:
            return None
    return first, second


@steady
@given(st.data())
def test_truncation_of_a_pair_drops_what_the_authors_drop(data):
    piece = st.sampled_from("abcdef#$")
    texts, sides = [], []
    for _ in range(2):
        before, between, after = (data.draw(st.lists(piece, max_size=n)) for n in (6, 3, 6))
        texts.append([*before, "#", "m", "#", *between, "$", "n", "n", "$", *after])
        ids = [*before, "m", *between, "n", "n", *after]  # as the encoder sees them: markers are put in later
        low = len(before)
        sides.append(([ord(one) for one in ids], [(low, low + 1), (low + 1 + len(between), low + 3 + len(between))]))
    room = data.draw(st.integers(0, sum(map(len, texts))))
    expected = cut_by_hand(*(list(text) for text in texts), room)
    excess = sum(map(len, texts)) - room
    gone = support_first(sides, excess, frozenset(map(ord, "#$")))
    if expected is None:
        assert gone is None
        return
    for text, kept, doomed, (ids, runs) in zip(texts, expected, gone, sides, strict=True):
        left = sum(1 for index in doomed if index < runs[0][0])
        right = len(doomed) - left
        assert doomed == [*range(left), *range(len(ids) - right, len(ids))]
        assert text[left : len(text) - right] == kept


def one_by_one(host, plugin, batch):
    """Scores of every query and class by a forward pass of its own over the class's K pairs."""
    names = [name for name in batch if name not in PER_EXAMPLE]
    step = fast_jit(lambda pairs: logits(host, pairs, plugin)[:, 0, 0].mean())
    queries, classes = batch["token_ids"].shape[:2]
    return [[float(step({name: batch[name][q, c] for name in names})) for c in range(classes)] for q in range(queries)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_all_pairs_of_many_episodes_are_one_program(tiny, protocol):
    host, knowledge = tiny
    options = {"n_way": 3, "k_shot": 2, "queries": 2, "evaluation_episodes": 4, "protocol": protocol}
    task = make_task("few_shot_relations", **options).for_evaluation()
    records = records_of()
    examples = task.examples(records, host.encoder(36), knowledge, buckets=1)
    assert examples.size == 4 * 3 * 2
    plugin = MapTuning(hidden_size=host.loaded.config.hidden_size, knowledge_dim=knowledge.dim)
    feed = Feed(examples, knowledge.gather)
    (batch,) = feed.evaluation(examples.size)
    assert batch["token_ids"].shape[:3] == (24, 3, 2) and batch["token_ids"].shape[3] == 36
    program, params = split_program(host.loaded.host, plugin, task)
    outputs = np.asarray(fast_jit(lambda p, b: program.outputs(p, b, None))(params, as_device(batch)))
    assert outputs.shape == (24, 3) and np.ptp(outputs, axis=1).min() > 0
    np.testing.assert_allclose(
        outputs[:5], one_by_one(host.loaded.host, plugin, as_device(batch))[:5], rtol=1e-4, atol=1e-6
    )
    metrics, predictions = evaluate(program, params, feed, 7)
    right = np.array([number for _ in range(4) for number in range(3) for _ in range(2)])
    assert (predictions["right"] == right).all() and (predictions["chosen"] == outputs.argmax(1)).all()
    assert metrics["accuracy"] == (outputs.argmax(1) == right).mean()
    assert metrics["loss"] == pytest.approx(-np.log(jax.nn.softmax(outputs)[np.arange(24), right]).mean(), rel=1e-4)
    several = evaluate(program, params, feed, 7, Placement.over(2))[0]
    assert several["loss"] == pytest.approx(metrics["loss"], rel=1e-5)


@steady
@given(st.lists(st.integers(3, 40), min_size=1, max_size=60), st.integers(1, 9))
def test_lengths_are_raised_to_those_of_their_batch(lengths, rows):
    lengths = np.array(lengths)
    raised = even(lengths, rows)
    assert (raised >= lengths).all() and raised.max() == lengths.max()
    values, counts = np.unique(raised, return_counts=True)
    assert (counts[:-1] % rows == 0).all() and set(values) <= set(lengths)
    assert np.sort(raised)[::rows].sum() >= np.sort(lengths)[::rows].sum()


def test_an_evaluation_computes_pairs_beside_those_of_like_lengths(tiny):
    host, knowledge = tiny
    task = FewShotRelations(3, 2, 2, evaluation_episodes=4).for_evaluation()
    examples = task.examples(records_of(), host.encoder(None), knowledge, buckets=4)
    feed = Feed(examples, knowledge.gather)
    read, rows = step_feed(feed, 2, Placement.single())
    assert rows == 2 * 6 and read.examples.size == 24 * 6

    def rows_of(feed, size):
        dealt = [zip(batch["index"], batch["token_ids"], strict=True) for batch in feed.evaluation(size)]
        return dict(itertools.chain(*dealt))

    whole, pairs = rows_of(feed, 2), rows_of(read, rows)
    for index, row in pairs.items():
        assert row[row > 0].tolist() == [id for id in whole[index // 6][index % 6 // 2, index % 2] if id > 0]
    padded = [sum(b["token_ids"].size for b in f.evaluation(n)) for f, n in ((feed, 2), (read, rows))]
    assert padded[1] < padded[0]


def test_rows_are_the_sentences_that_the_episodes_name(tiny):
    host, knowledge = tiny
    records = records_of()
    task = FewShotRelations(3, 2, 2, episodes=3, first_seed=5)
    decode, encoder = host.tokenizer.decode, host.encoder(None)
    examples = task.examples(records, encoder, knowledge, buckets=2)
    assert len(examples.buckets) == 2
    texts = {}
    for batch in Feed(examples, knowledge.gather).evaluation(5):
        for i, index in enumerate(batch["index"]):
            kept = batch["token_ids"][i] * (batch["entity_slot"][i] < 0)
            texts[int(index)] = [[decode(ids[ids > 0]) for ids in shots] for shots in kept]

    def text(relation, place):
        one = records_of_relation[relation][place]
        tokens = list(one.source)
        for mention, mark in sorted(zip(one.mentions, "#$", strict=True), key=lambda pair: -pair[0].start):
            slash = ["/"] if mention.entity != "Q999" else []
            tokens[mention.start : mention.end] = [mark, *slash, *tokens[mention.start : mention.end], mark]
        return " ".join(tokens)

    records_of_relation = {}
    for one in records:
        records_of_relation.setdefault(one.fields["label"], []).append(one)
    index = 0
    assert [episode.seed for episode in task.episodes(records)] == [5, 6, 7]
    for episode in task.episodes(records):
        shown = [
            [text(name, place) for place in places]
            for name, places in zip(episode.classes, episode.supports, strict=True)
        ]
        for name, places in zip(episode.classes, episode.queries, strict=True):
            for place in places:
                expected = [[f"[CLS] {text(name, place)} [SEP] {one} [SEP]" for one in shots] for shots in shown]
                assert texts[index] == [[one.replace(" .", ".") for one in row] for row in expected]  # as BERT decodes
                index += 1
    assert index == examples.size


def test_authors_training_order_is_episode_by_episode(tiny):
    host, knowledge = tiny
    options = {"n_way": 2, "queries": 2, "episodes": 6}
    authors = make_task("few_shot_relations", **options, protocol="thunlp")
    examples = authors.examples(records_of(), host.encoder(None), knowledge, buckets=1)
    stream = iter(Feed(examples, knowledge.gather).training(8, seed=3))
    dealt = [next(stream)["index"].tolist() for _ in range(4)]
    assert dealt == [[*range(8)], [*range(8, 16)], [*range(16, 24)], [*range(8)]]  # two episodes a step
    with pytest.raises(InputError, match=r"fit\.buckets"):
        Feed(authors.examples(records_of(), host.encoder(None), knowledge, buckets=2)).training(8, seed=3)
    ours = make_task("few_shot_relations", **options).examples(records_of(), host.encoder(None), knowledge, buckets=1)
    stream = iter(Feed(ours, knowledge.gather).training(8, seed=3))
    dealt = [next(stream)["index"].tolist() for _ in range(3)]
    assert dealt[0] != [*range(8)] and sorted(dealt[0] + dealt[1] + dealt[2]) == [*range(24)]


def test_shuffled_control_of_an_episode_moves_vectors_only(tiny):
    host, knowledge = tiny
    task = FewShotRelations(2, 1, 2, evaluation_episodes=5).for_evaluation()
    comparison = Comparison(host, task, None, Placement.single(), 10)
    plugin = MapTuning(hidden_size=host.loaded.config.hidden_size, knowledge_dim=knowledge.dim)
    alone, _ = comparison.host_alone(records_of(), knowledge)
    plugged, _ = comparison.with_plugin(plugin, knowledge, records_of())
    shuffled, _, donors = comparison.shuffled(plugin, knowledge, records_of(), seed=0)
    assert len({alone["loss"], plugged["loss"], shuffled["loss"]}) == 3
    assert sorted(donors) == [*range(20)] and (donors != np.arange(20)).sum() >= 10


@pytest.mark.parametrize(
    ("options", "records", "message"),
    [
        ({"n_way": 5}, records_of(), r"f:0: field label: there are 4 relations, an episode needs 5"),
        ({"n_way": 3, "k_shot": 4}, records_of(), "relation P0 has 6 sentences, an episode needs 9"),
        ({"n_way": 3, "queries": 0}, records_of(), r"task_options\.queries"),
        ({"n_way": 3, "episodes": 0}, records_of(), r"task_options\.episodes"),
        ({"n_way": 3, "protocol": "thunpl"}, records_of(), r"task_options\.protocol.*did you mean thunlp"),
        ({"n_way": 3}, [*records_of(), records_of()[3]], r"f:3: field id: 'P0/3' is that of f:3 too"),
        ({"n_way": 3}, [replace(records_of()[0], mentions=()), *records_of()[1:]], "f:0: field mentions has 0"),
        ({"n_way": 3}, [replace(records_of()[0], fields={"label": 7}), *records_of()[1:]], "f:0: field label is 7"),
    ],
)
def test_what_cannot_be_an_episode(options, records, message, tiny):
    with pytest.raises(InputError, match=message):
        make_task("few_shot_relations", **options).examples(records, tiny[0].encoder(None), None)

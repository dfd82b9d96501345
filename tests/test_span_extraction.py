"""Span extraction: windows against the tokenizers library, labels, loss, best span and metrics against plain code."""

import dataclasses

import numpy as np
import pytest
from encoding_cases import both, steady
from encoding_cases import host as tokenizer_of
from hypothesis import given
from hypothesis import strategies as st
from task_runs import TaskWorld, as_device, check_run, check_shapes, check_stages, parsed, row
from tiny import fast_jit

from kinject.data.encode import EntityEncoder, Mention, Passage
from kinject.data.windows import cut_windows
from kinject.errors import InputError
from kinject.models.pretrained import load_host
from kinject.tasks.base import make_task
from kinject.tasks.protocol import untruncated
from kinject.tasks.span_extraction import SpanExtraction, Window, answer_places, label_of
from kinject.tasks.squad_metrics import exact_match, normalised, token_f1


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return TaskWorld(tmp_path_factory.mktemp("spans"))


def asked(i=1, **fields):
    text = f"city{i} is in land{i % 5} . a place of land{i % 5} is far"
    mention = {"start": 0, "end": len(f"city{i}"), "entity": f"Q{i}"}
    return {
        "text": text,
        "mentions": [mention],
        "question": f"in who is city{i} ?",
        "answers": [f"land{i % 5}"],
        **fields,
    }


def test_what_stands_in_a_window_and_where_the_answer_is(world):
    batch = world.batch(make_task("span_extraction"), [asked(7, starts=[12]), asked(8, answers=["Land3", "nowhere"])])
    assert row(batch, 0) == "[CLS] in who is city7 ? [SEP] E7 / city7 is in land2 . a place of land2 is far [SEP]"
    assert batch["labels"].tolist() == [[12, 12], [12, 12]]
    assert batch["answerable"].sum() == 2 * 11 and not batch["answerable"][:, 7:9].any()  # neither slot nor slash
    assert (batch["type_ids"][0] == [0] * 7 + [1] * 14).all()
    second = asked(7)["text"].rindex("land2")
    assert world.batch(make_task("span_extraction"), [asked(7, starts=[second])])["labels"].tolist() == [[17, 17]]


@both
@steady
@given(st.lists(st.sampled_from(["ka", "moBer", "Zürlan", "x", ",", "12"]), min_size=1, max_size=30), st.data())
def test_windows_are_those_of_the_tokenizers_library(family, words, data):
    tokenizer = tokenizer_of(family)
    question, text = "ka moBer ?", " ".join(words)
    encoder = EntityEncoder(tokenizer, data.draw(st.integers(14, 30)))
    stride = data.draw(st.integers(1, 6))
    whole = untruncated(encoder)
    (asked,) = whole.encode_batch([Passage(question)])
    (passage,) = whole.encode_batch([Passage(text)], origins=True)
    ours = cut_windows(asked, passage, encoder, stride, 64)
    room = encoder.max_length - len(asked) - len(tokenizer.between)
    their = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
    their.enable_truncation(encoder.max_length, stride=max(room - stride, 0), strategy="only_second")
    first = their.encode(question, text)
    theirs = [first, *first.overflowing]
    assert [one.token_ids.tolist() for one in ours] == [one.ids for one in theirs]
    assert [one.type_ids.tolist() for one in ours] == [one.type_ids for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        mine = one.origins[:, 0] == 1
        assert mine.tolist() == [number == 1 for number in other.sequence_ids]
        # of a further window's first word the library tells offsets with the space, or off by one
        spelled = [text[low:high].strip() for (low, high), m in zip(other.offsets, mine, strict=True) if m]
        assert [text[low:high].strip() for _, low, high in one.origins[mine].tolist()] == spelled


@both
@steady
@given(st.data())
def test_slots_go_with_their_windows(family, data):
    words = data.draw(st.lists(st.sampled_from(["ka", "mo", "Ber", "lan"]), min_size=4, max_size=25))
    starts = sorted(data.draw(st.sets(st.integers(0, len(words) - 1), max_size=5)))
    mentions = [Mention(start, start + 1, f"Q{number % 3}") for number, start in enumerate(starts)]
    encoder = EntityEncoder(tokenizer_of(family), 16)
    known = {"Q0": 5, "Q1": 6, "Q2": -1}
    whole = untruncated(encoder)
    (asked,) = whole.encode_batch([Passage("ka mo")])
    rows = lambda ids: np.array([known[one] for one in ids], np.int32)  # noqa: E731
    (passage,) = whole.encode_batch([Passage(words, mentions)], rows, origins=True)
    seen = {}
    for one in cut_windows(asked, passage, encoder, 5, 64):
        assert len(one) <= 16 and len(one.entity_rows) == len(one.entities) == len(set(one.entity_slot) - {-1})
        at = np.flatnonzero(one.entity_slot >= 0)
        assert (one.token_ids[at] == encoder.tokenizer.unk_id).all() and (one.origins[at] == -1).all()
        for position in at:
            behind = one.origins[position:]
            found = behind[behind[:, 0] == 1, 1]
            if len(found):
                seen[int(found[0])] = int(one.entity_rows[one.entity_slot[position]])
    joined = " ".join(words)
    begins = [len(" ".join(words[:start])) + (start > 0) for start in starts]
    wanted = {at: known[m.entity] for at, m in zip(begins, mentions, strict=True) if known[m.entity] >= 0}
    trimmed = {at + (joined[at] == " "): row for at, row in seen.items()}
    assert trimmed.keys() <= wanted.keys() and all(wanted[at] == row for at, row in trimmed.items())
    assert len(trimmed) == len(wanted)


def test_a_question_without_room_is_told(world):
    with pytest.raises(InputError, match=r"max_length: a question of 5 pieces leaves no room .* in 8 positions"):
        world.batch(make_task("span_extraction"), [asked()], max_length=8)
    batch = world.batch(make_task("span_extraction", question_length=2), [asked()], max_length=8)
    assert row(batch, 0).startswith("[CLS] in who [SEP]") and len(batch["token_ids"]) > 3


@steady
@given(st.text(alphabet="ab. ", min_size=1, max_size=30), st.sampled_from(["a", "ab", "b a", "a."]))
def test_distant_answers_stand_at_whole_words(text, answer):
    (record,) = parsed({"text": text, "question": "?", "answers": [answer.upper()]})
    places = answer_places(record)
    assert all(text[low:high] == answer for low, high in places)
    wanted = [
        at
        for at in range(len(text))
        if text.startswith(answer, at)
        and not (at and text[at - 1].isalpha() and answer[0].isalpha())
        and not (text[at + len(answer) : at + len(answer) + 1].isalpha() and answer[-1].isalpha())
    ]
    assert [low for low, _ in places] == wanted


def test_lower_casing_moves_no_place():
    (record,) = parsed({"text": "İİ Ankara", "question": "?", "answers": ["ankara"]})
    assert answer_places(record) == [(3, 9)]


@both
@steady
@given(st.data())
def test_labels_are_the_pieces_that_spell_the_answer(family, data):
    words = data.draw(st.lists(st.sampled_from(["ka", "moBer", "Zürlan", "te"]), min_size=2, max_size=15))
    text = " ".join(words)
    low = data.draw(st.integers(0, len(words) - 1))
    high = data.draw(st.integers(low + 1, len(words)))
    start = len(" ".join(words[:low])) + (low > 0)
    end = len(" ".join(words[:high]))
    encoder = EntityEncoder(tokenizer_of(family), 14)
    (asked,) = encoder.encode_batch([Passage("ka")])
    (passage,) = untruncated(encoder).encode_batch([Passage(text)], origins=True)
    for one in cut_windows(asked, passage, encoder, 4, 64):
        first, last = label_of(one, [(start, end)])
        shows = one.origins[one.origins[:, 0] == 1]
        whole = shows[0, 1] <= start and shows[-1, 2] >= end
        assert whole == (first > 0)
        if whole:
            assert text[one.origins[first, 1] : one.origins[last, 2]].strip() == text[start:end]


def test_the_loss_is_torchs_and_knows_no_padding(world):
    torch = pytest.importorskip("torch")
    task = make_task("span_extraction", stride=4)
    host = load_host(world.folder / "raw", head="span", fresh_head=True, seed=2).host
    batch = world.batch(task, [asked(7), asked(3, answers=["far"])], max_length=16)
    made_of = task.examples(parsed(asked(7), asked(3)), world.host.encoder(16), None).record_index
    assert sorted(made_of) == made_of.tolist() and set(made_of) == {0, 1} and len(made_of) > 2
    assert len(batch["labels"]) > 2 and (batch["labels"] == 0).all(1).any() and (batch["labels"] > 0).all(1).any()
    outputs = np.asarray(fast_jit(lambda batch: task.outputs(host, None, batch))(as_device(batch)))
    losses, _ = task.loss(outputs, batch)
    for one, label, real, loss in zip(outputs, batch["labels"], batch["segment_ids"] > 0, losses, strict=True):
        start, end = torch.tensor(one[real]).T
        label = torch.tensor(label).long()
        both = [torch.nn.functional.cross_entropy(side[None], label[i : i + 1]) for i, side in enumerate((start, end))]
        assert float(loss) == pytest.approx(float(sum(both)) / 2, rel=1e-5)


@pytest.mark.parametrize(("length", "longest"), [(1, 3), (9, 1), (7, 4), (5, 30)])
def test_the_best_span_is_the_best_of_all(length, longest):
    draw = np.random.default_rng(length)
    outputs = draw.integers(-9, 9, (60, length, 2)).astype(np.float32)
    answerable = (draw.random((60, length)) < 0.6).astype(np.int32)
    answerable[:, 0] |= ~answerable.any(1)
    found = SpanExtraction(longest=longest).predict(outputs, {"answerable": answerable})
    found = {name: np.asarray(value) for name, value in found.items()}
    for i in range(60):
        every = [
            outputs[i, a, 0] + outputs[i, b, 1]
            for a in range(length)
            for b in range(a, min(a + longest, length))
            if answerable[i, a] and answerable[i, b]
        ]
        first, last = int(found["first"][i]), int(found["last"][i])
        assert found["score"][i] == max(every) == outputs[i, first, 0] + outputs[i, last, 1]
        assert answerable[i, first] and answerable[i, last] and 0 <= last - first < longest


def test_normalised_answers():
    assert normalised("The  Eiffel-Tower, (a) tower!") == "eiffeltower tower"
    assert exact_match("an Apple.", "apple") == 1 and exact_match("theatre", "atre") == 0
    assert token_f1("the big red dog", "red dog dog") == pytest.approx(2 * 2 / (3 + 3))
    assert token_f1("the", "a") == 1 and token_f1("the", "dog") == 0 and token_f1("cat", "dog") == 0


def test_a_question_is_answered_by_its_best_window_of_all_passages():
    characters = np.array([[-1, -1], [0, 4], [5, 8]])
    windows = [
        Window("q1", "dark sea", characters, ("sea",)),
        Window("q1", "blue sky", characters, ("the sky!", "blue")),
        Window("q2", "cold ice", characters, ("very cold ice",)),
        Window("q3", "gray fog", characters, ("mud",)),
    ]
    predictions = {"first": [2, 2, 1, 1], "last": [2, 2, 2, 1], "score": [1.0, 3.0, -2.0, 0.0], "windows": windows}
    predictions["null"] = [9.0] * 4  # a question has an answer here, whatever that says
    found = SpanExtraction().score({name: np.array(v) if name != "windows" else v for name, v in predictions.items()})
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert found["f1"] == pytest.approx((1 + 2 * 2 / (2 + 3) + 0) / 3)


def plain_squad_2(rows, threshold):
    """The protocol, question by question: {measure: mean} of rows (doubt, answer, right answers)."""
    sums = {"exact_match": 0.0, "f1": 0.0}
    for doubt, answer, rights in rows:
        answer = "" if doubt > threshold else answer
        for name, measure in (("exact_match", exact_match), ("f1", token_f1)):
            sums[name] += max(measure(answer, right) for right in rights or [""])
    return {name: value / len(rows) for name, value in sums.items()}


@steady
@given(st.data())
def test_questions_without_an_answer_are_scored_as_in_squad_2(data):
    """Against plain code: at the threshold given, and at every threshold that could tell the questions apart."""
    characters = np.array([[-1, -1], [0, 4], [5, 8]])
    whole = st.integers(-3, 3)
    threshold = data.draw(whole)
    windows, predictions, doubts = [], {"first": [], "last": [], "score": [], "null": []}, {}
    for number in range(data.draw(st.integers(1, 6))):
        rights = data.draw(st.sampled_from([(), ("dark",), ("sea", "the sea"), ("dark red sea",)]))
        seen = data.draw(st.lists(st.tuples(whole, whole, st.sampled_from([(1, 1), (2, 2), (1, 2)])), min_size=1))
        for score, null, (first, last) in seen:
            windows.append(Window(number, "dark sea", characters, rights))
            for name, value in {"first": first, "last": last, "score": score, "null": null}.items():
                predictions[name].append(value)
        score, _, (first, last) = max(seen, key=lambda one: one[0])
        answer = "dark sea"[characters[first, 0] : characters[last, 1]]
        doubts[number] = (min(null for _, null, _ in seen) - score, answer, rights)
    task = SpanExtraction(no_answer=True, threshold=threshold)
    found = task.score({name: np.array(values) for name, values in predictions.items()} | {"windows": windows})
    rows = list(doubts.values())
    expected = plain_squad_2(rows, threshold)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value)
        every = {level: plain_squad_2(rows, level)[name] for level in (-10, *(doubt for doubt, _, _ in rows))}
        assert found[f"best_{name}"] == pytest.approx(max(every.values()))
        at_best = plain_squad_2(rows, found[f"best_{name}_threshold"])
        assert at_best[name] == pytest.approx(found[f"best_{name}"])
        for group, some in (("", True), ("un", False)):
            own = [row for row in rows if bool(row[2]) == some]
            assert (f"{group}answerable_{name}" in found) == bool(own)
            if own:
                assert found[f"{group}answerable_{name}"] == pytest.approx(plain_squad_2(own, threshold)[name])


def test_without_an_answer_the_first_token_is_right_and_its_score_is_told(world):
    task = make_task("span_extraction", no_answer=True)
    batch = world.batch(task, [asked(7, starts=[12]), asked(8, answers=[]), asked(8, answers=[], starts=[])])
    assert batch["labels"].tolist() == [[12, 12], [0, 0], [0, 0]]
    outputs = np.random.default_rng(0).normal(size=(*batch["token_ids"].shape, 2)).astype(np.float32)
    null = task.predict(outputs, batch)["null"]
    np.testing.assert_allclose(null, outputs[:, 0, 0] + outputs[:, 0, 1], rtol=1e-6)
    for options, said in ({"no_answer": 1}, "true or false"), ({"threshold": float("nan")}, "a number, got nan"):
        with pytest.raises(InputError, match=said):
            make_task("span_extraction", **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": []}, r"field answers is \[\]"),
        ({"answers": [" "]}, r"field answers is \[' '\]"),
        ({"answers": "land1"}, "field answers is 'land1'"),
        ({"question": None}, "field question is None"),
        ({"starts": [11]}, r"field starts\[0\] is 11, where the passage has no 'land1'"),
        ({"starts": [-1]}, r"field starts\[0\] is -1"),
        ({"starts": [12, 13]}, r"field starts is \[12, 13\]"),
        ({"starts": ["12"]}, r"field starts is \['12'\]"),
    ],
)
def test_bad_records_are_told(change, message, world):
    with pytest.raises(InputError, match=rf"^file\.jsonl:2: {message}"):
        world.batch(make_task("span_extraction"), [asked(), asked(**change)])
    with pytest.raises(InputError, match=r"task_options\.stride: it must be a whole number from 1, got 0"):
        make_task("span_extraction", stride=0)


def test_origins_change_nothing_else():
    encoder = EntityEncoder(tokenizer_of("wordpiece"), 12)
    passages = [Passage("ka mo Ber lan te " * 3, [Mention(3, 5, "Q1", "#", "$")], "ri zu")]
    rows = lambda ids: np.zeros(len(ids), np.int32)  # noqa: E731
    (plain,), (told,) = encoder.encode_batch(passages, rows), encoder.encode_batch(passages, rows, origins=True)
    for field in dataclasses.fields(plain):
        if field.name not in ("origins", "entities"):
            assert (getattr(plain, field.name) == getattr(told, field.name)).all()
    assert plain.origins is None and told.origins.shape == (12, 3)
    texts = ("ka mo Ber lan te " * 3, "ri zu")
    for piece, (text, low, high) in zip(told.token_ids, told.origins.tolist(), strict=True):
        if text >= 0:  # even of a text that was cut
            assert encoder.tokenizer.decode([piece]).removeprefix("##") == texts[text][low:high]


def test_shapes_without_data(world):
    check_shapes(world, make_task("span_extraction"), [asked(i) for i in range(3)], 0)


def test_from_raw_model_to_table(world):
    values = [asked(i, question_id=f"q{i // 2}", id=f"p{i}") for i in range(12)]
    results, _ = check_stages(world, "span_extraction", values, {"stride": 8}, n=12, extra=("exact_match", "f1"))
    assert 0 <= results["host"]["dev_exact_match"] <= results["host"]["dev_f1"] <= 1


def test_two_steps_with_questions_that_have_no_answer(world):
    values = [asked(i, id=f"n{i}", **({"answers": []} if i % 3 else {})) for i in range(9)]
    options = {"no_answer": True, "threshold": 0.5}
    for metrics in check_run(world, "span_extraction", parsed(*values), options):
        assert {"exact_match", "f1", "best_f1_threshold", "unanswerable_f1", "answerable_exact_match"} < metrics.keys()
        assert metrics["best_f1"] >= max(metrics["f1"], 6 / 9)

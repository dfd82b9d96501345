"""Whole encodings equal transformers' own, of every kind of tokenizer, and of texts that are hard on all of them."""

import itertools
import json
import unicodedata
import warnings
from dataclasses import replace

import numpy as np
import pytest
from encoding_cases import KNOWN, in_characters, passages, stripped
from encoding_cases import rows as known_rows
from every_tokenizer import CORPUS, KINDS, PARTS, nasty, tokenizer_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from kinject.data.encode import EntityEncoder, Mention, Passage
from kinject.data.tokenizer import changed_reading, load_tokenizer
from kinject.errors import InputError

TEXTS = nasty(3000)
strange = st.sampled_from([part for part in PARTS if part.split() == [part]] + ["Berlan", "mo", "kamo", "[MASK]"])


def rows(entities):
    return np.arange(len(entities), dtype=np.int32)


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    folder = tokenizer_folder(tmp_path_factory.mktemp("tokenizer") / request.param, request.param)
    return load_tokenizer(folder), AutoTokenizer.from_pretrained(folder), folder


def ids_and_types(encoded):
    return [(one.token_ids.tolist(), one.type_ids.tolist()) for one in encoded]


def theirs_of(tokenizer, *texts, **options):
    """Types are those that the model is given: none, hence zeros, where transformers' tokenizer yields none."""
    found = tokenizer(*texts, **options)
    types = found.get("token_type_ids") or [[0] * len(one) for one in found["input_ids"]]
    return list(zip(found["input_ids"], types, strict=True))


def test_single_texts(both):
    ours, theirs, _ = both
    made = EntityEncoder(ours, 512).encode_batch([Passage(text) for text in TEXTS])
    assert ids_and_types(made) == theirs_of(theirs, TEXTS)


def test_pairs(both):
    ours, theirs, _ = both
    one, other = TEXTS[::5], TEXTS[1::5]
    made = EntityEncoder(ours, 512).encode_batch([Passage(a, pair=b) for a, b in zip(one, other, strict=True)])
    assert ids_and_types(made) == theirs_of(theirs, one, other)


def test_the_mask(both):
    ours, theirs, _ = both
    texts = [f"{a}[MASK]{b}" for a, b in itertools.pairwise(TEXTS[:300]) if theirs.mask_token not in a + b]
    made = EntityEncoder(ours, 512).encode_batch([Passage(text) for text in texts])
    if theirs.mask_token == "[MASK]":
        assert ids_and_types(made) == theirs_of(theirs, texts)
    assert all((one.token_ids == ours.mask_id).sum() == 1 == len(one.blanks) for one in made)
    own = EntityEncoder(ours, 512).encode_batch([Passage(text.replace("[MASK]", theirs.mask_token)) for text in texts])
    assert ids_and_types(own) == theirs_of(theirs, [text.replace("[MASK]", theirs.mask_token) for text in texts])
    if theirs.mask_token != "[MASK]":
        same = [one.token_ids.tolist() == other.token_ids.tolist() for one, other in zip(made, own, strict=True)]
        assert np.mean(same) == 1


@pytest.mark.parametrize("side", ["right", "left"])
def test_every_truncation_length(both, side, monkeypatch):
    ours, theirs, _ = both
    texts = [text for text in TEXTS[:60] if theirs.mask_token not in text]
    longest = max(len(one["input_ids"]) for one in map(theirs, texts))
    monkeypatch.setattr(theirs, "truncation_side", side)
    ours = replace(ours, cut_left=side == "left")
    for length in range(3 + len(ours.between), min(longest, 80) + 1):
        encoder, options = EntityEncoder(ours, length), {"truncation": True, "max_length": length}
        single = encoder.encode_batch([Passage(text) for text in texts])
        assert ids_and_types(single) == theirs_of(theirs, texts, **options), length
        pairs = encoder.encode_batch([Passage(a, pair=b) for a, b in zip(texts, texts[::-1], strict=True)])
        assert ids_and_types(pairs) == theirs_of(theirs, texts, texts[::-1], **options), length


def test_slots_taken_out_again_leave_the_host_s_own_encoding(both):
    """A mention of one word among others: its pieces are the host's, and a slot and a slash stand before them."""
    ours, theirs, _ = both
    encoder, slash = EntityEncoder(ours, 512), len(ours.word("/"))
    passages = []
    for before, after in itertools.pairwise(TEXTS[:800]):
        if "mask" not in (before + after).lower():
            text = f"{before} Berlan mo {after}"
            passages.append(Passage(text, [Mention(len(before) + 1, len(before) + 10, "Q1")]))
    made = encoder.encode_batch(passages, rows)
    plain = theirs_of(theirs, [one.text for one in passages])
    for one, (ids, types) in zip(made, plain, strict=True):
        (slot,) = np.flatnonzero(one.entity_slot >= 0)
        kept = np.ones(len(one), bool)
        kept[slot : slot + 1 + slash] = False
        assert one.token_ids[kept].tolist() == ids and one.type_ids[kept].tolist() == types
        low, high = one.spans[0]
        assert low == slot + 1 + slash and high > low
        assert ours.backend.decode(one.token_ids[low:high].tolist()).replace(" ", "").lower() == "berlanmo"


def test_what_is_new_has_no_former_reading(both):
    """BERT and RoBERTa were read before, and are read alike; kinject's own reader refused Unigram."""
    ours, _, folder = both
    if ours.family != "unigram":
        assert changed_reading(ours, folder) is None


def test_half_of_a_surrogate_pair_is_refused(both):
    with warnings.catch_warnings(), pytest.raises(InputError, match="is no valid Unicode text"):
        EntityEncoder(both[0], 512).encode("a \ud83d b")


@pytest.mark.parametrize("lower", [False, True])
def test_ids_that_the_python_tokenizer_made_are_ours(lower, tmp_path):
    """BERT's tokenizer in Python, by which older data sets were stored, on the same texts.

    Left out are characters that Unicode does not have, which it drops and the library in Rust keeps as a piece, and
    marks and punctuation newer than Unicode 3.2, as the two have tables of different age.
    """

    def both_know(character):
        kind = unicodedata.category(character)
        newer = unicodedata.ucd_3_2_0.category(character) == "Cn"
        return kind != "Cn" and not (newer and kind[0] in "MP")

    legacy = pytest.importorskip("transformers.models.bert.tokenization_bert_legacy")
    ours = load_tokenizer(tokenizer_folder(tmp_path / "host", "bert-uncased" if lower else "bert-cased"))
    words = sorted(ours.backend.get_vocab().items(), key=lambda one: one[1])
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word, _ in words), encoding="utf-8")
    theirs = legacy.BertTokenizerLegacy(str(tmp_path / "vocab.txt"), do_lower_case=lower)
    known = ["".join(filter(both_know, text)) for text in (TEXTS if lower else TEXTS[::3])]
    made = EntityEncoder(ours, 512).encode_batch([Passage(text) for text in known])
    assert [one.token_ids.tolist() for one in made] == [theirs(text)["input_ids"] for text in known]


@pytest.mark.parametrize("model_type", ["xlm-roberta", "camembert"])
def test_ids_of_sentencepiece_s_own_file_are_ours(model_type, tmp_path):
    """A folder without tokenizer.json: what transformers makes of it, and the ids that SentencePiece itself gives.

    The former Python classes stored the latter, moved by the rows that fairseq put before them. Left out there are
    U+0085 and combining marks, which the library in Rust normalises together with their letter.
    """
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "corpus.txt").write_text("\n".join(CORPUS), encoding="utf-8")
    prefix, quiet = tmp_path / "sentencepiece.bpe", {"hard_vocab_limit": False, "minloglevel": 2}
    sizes = {"input": tmp_path / "corpus.txt", "model_prefix": prefix, "vocab_size": 300}
    sentencepiece.SentencePieceTrainer.train(**sizes, **quiet)
    pieces = sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")
    moved, unknown = {"xlm-roberta": 1, "camembert": 4}[model_type], 3
    config = {"model_type": model_type, "vocab_size": len(pieces) + moved + 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    made = ids_and_types(EntityEncoder(ours, 512).encode_batch([Passage(text) for text in TEXTS]))
    assert made == theirs_of(theirs, TEXTS)
    begin, end = theirs("")["input_ids"]
    known = [text for text in TEXTS if not any(one == "\x85" or unicodedata.category(one)[0] == "M" for one in text)]
    plain = [text for text in known if not any(one in text for one in (*theirs.all_special_tokens, "[MASK]"))]
    assert len(plain) > 1500
    ids = dict(zip(TEXTS, made, strict=True))
    for text in plain:
        assert ids[text][0] == [begin, *(i + moved if i else unknown for i in pieces.encode(text)), end], text


@settings(derandomize=True, max_examples=20, deadline=None)
@given(passage=passages(vocabulary=strange), second=passages(max_words=4))
def test_slots_markers_and_masks_anywhere(both, passage, second):
    """Several mentions, marked, masked, with a slot or without, in either text of a pair of strange words."""
    ours, theirs, _ = both
    encoder = EntityEncoder(ours, 512)
    (text, mentions), (pair, more) = in_characters(*passage), in_characters(*second)
    encoded, every = encoder.encode(text, mentions, pair, more, rows=known_rows), [*mentions, *more]
    assert stripped(encoded, encoder, every) == ids_and_types([encoder.encode(text, pair=pair)])[0]
    if theirs.mask_token == "[MASK]" or "[MASK]" not in text + pair:
        assert stripped(encoded, encoder, every) == theirs_of(theirs, [text], [pair])[0]
    slots = [one for one in sorted(mentions, key=lambda one: one.start) if one.slot and one.entity in KNOWN]
    slots += [one for one in sorted(more, key=lambda one: one.start) if one.slot and one.entity in KNOWN]
    found = encoded.entity_slot[encoded.entity_slot >= 0]
    assert [encoded.entities[i] for i in found] == [one.entity for one in slots]
    prefix = [ours.unk_id, *ours.word("/")]
    for mention, (start, end) in zip(every, encoded.spans, strict=True):
        if mention in slots:
            assert encoded.token_ids[start - len(prefix) : start].tolist() == prefix
        if mention.masked:
            assert (encoded.token_ids[start:end] == ours.mask_id).all()

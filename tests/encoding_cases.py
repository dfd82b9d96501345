"""Passages for the tests of encoding, and what the host's own tokenizer says of them."""

import functools
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from tiny_tokenizers import STEMS, byte_level_folder, wordpiece_folder

from kinject.data.encode import Mention
from kinject.data.tokenizer import load_tokenizer

KNOWN = {"Q1": 7, "Q2": 3, "Q3": 0}
ENTITIES = [*KNOWN, "Q9", None]
steady = settings(derandomize=True, max_examples=80, deadline=None)
both = pytest.mark.parametrize("family", ["wordpiece", "bpe"])


def rows(entities):
    return np.array([KNOWN.get(entity, -1) for entity in entities], np.int32)


@functools.cache
def host(family):
    with tempfile.TemporaryDirectory() as folder:
        make = {"wordpiece": wordpiece_folder, "bpe": byte_level_folder}[family]
        return load_tokenizer(make(Path(folder)))


stem_words = st.lists(st.sampled_from(STEMS), min_size=1, max_size=3).map("".join)
any_words = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn", "Co", "Z")), min_size=1, max_size=5)
words = st.one_of(
    stem_words, stem_words, any_words, st.sampled_from(["[MASK]", ".", "#", "/", "U.S.", "北京", "e\u0301"])
)
look = st.fixed_dictionaries(
    {
        "entity": st.sampled_from(ENTITIES),
        "opening": st.sampled_from(["", "#", "$"]),
        "closing": st.sampled_from(["", "#"]),
        "slot": st.booleans(),
        "masked": st.booleans(),
    }
)


@st.composite
def passages(draw, vocabulary=words, max_words=12):
    """A word list and disjoint mentions of whole words, in any order."""
    tokens = draw(st.lists(vocabulary, max_size=max_words))
    mentions, at = [], 0
    while at < len(tokens) and len(mentions) < 4:
        start = draw(st.integers(at, len(tokens) - 1))
        end = draw(st.integers(start + 1, min(len(tokens), start + 3)))
        if any(character.isalnum() for character in "".join(tokens[start:end])):
            mentions.append(Mention(start, end, **draw(look)))
        at = end + draw(st.integers(0, 3))
    return tokens, draw(st.permutations(mentions))


def in_characters(tokens, mentions):
    """The same mentions in the joined text, counted in a slower, plainer way than the encoder does."""
    moved = []
    for mention in mentions:
        start = len("".join(token + " " for token in tokens[: mention.start]))
        moved.append(replace(mention, start=start, end=start + len(" ".join(tokens[mention.start : mention.end]))))
    return " ".join(tokens), moved


def stripped(encoded, encoder, mentions):
    """Token ids and types with slot, slash and markers taken out and masked pieces put back."""
    ids = encoded.token_ids.copy()
    ids[encoded.mask_positions] = encoded.label_ids
    gone = np.zeros(len(ids), bool)
    for position in np.flatnonzero(encoded.entity_slot >= 0):
        gone[position : position + 1 + len(encoder.tokenizer.word("/"))] = True
    for mention, places in zip(mentions, encoded.markers, strict=True):
        for word, position in zip((mention.opening, mention.closing), places, strict=True):
            assert position >= 0 if word else position == -1
            if word:
                piece = encoder.tokenizer.word(word)
                assert tuple(ids[position : position + len(piece)]) == piece
                gone[position : position + len(piece)] = True
    return ids[~gone].tolist(), encoded.type_ids[~gone].tolist()


def host_ids(tokenizer, *texts):
    """What the host's tokenizer says, special tokens included."""
    encoding = tokenizer.backend.encode(*texts)
    return [tokenizer.mask_id if i == tokenizer.mask_alias else i for i in encoding.ids], encoding.type_ids


def assert_same(one, other):
    assert one.entities == other.entities
    for name in ("token_ids", "type_ids", "entity_slot", "entity_rows", "spans", "markers", "mask_positions"):
        assert getattr(one, name).dtype == np.int32
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(one.label_ids, other.label_ids)
    np.testing.assert_array_equal(one.blanks, other.blanks)

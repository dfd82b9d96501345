from dataclasses import replace

import numpy as np
import pytest
from encoding_cases import both, host, passages, rows, steady
from hypothesis import given
from hypothesis import strategies as st

from kinject.data.encode import EntityEncoder, Mention, Passage
from kinject.errors import InputError


@both
@steady
@given(passage=passages(max_words=20), second=st.none() | passages(max_words=20), length=st.integers(6, 40))
def test_truncation_takes_context_alone(family, passage, second, length):
    tokenizer = host(family)
    pair, more = second or (None, [])
    mentions = [*passage[1], *more]
    whole = EntityEncoder(replace(tokenizer, max_length=10_000)).encode(*passage, pair, more, rows=rows)
    stays = protected(whole, tokenizer, mentions, pair is not None)
    encoder = EntityEncoder(tokenizer, max_length=length)
    one = Passage(*passage, pair, more, where="here:1")
    if stays.sum() > length:
        assert encoder.encode_batch([one], rows, skip_overlong=True) == [None]
        with pytest.raises(InputError, match=f"here:1: .*{length}"):
            encoder.encode_batch([one], rows)
        return
    (short,) = encoder.encode_batch([one], rows)
    assert len(short) == min(length, len(whole))
    kept = embedded(short.token_ids.tolist(), whole.token_ids.tolist(), stays)
    assert kept is not None
    for now, then in zip(short.spans, whole.spans, strict=True):
        assert short.token_ids[slice(*now)].tolist() == whole.token_ids[slice(*then)].tolist()
    assert short.label_ids.tolist() == whole.label_ids.tolist()
    assert len(short.blanks) == len(whole.blanks)
    assert short.entities == whole.entities


def protected(encoded, tokenizer, mentions, paired):
    """Which positions may not go."""
    stays = np.zeros(len(encoded), bool)
    stays[: len(tokenizer.before)] = stays[len(encoded) - len(tokenizer.after) :] = True
    stays[encoded.blanks] = True
    if paired and tokenizer.pair_type:
        stays[np.flatnonzero(encoded.type_ids)[0] - 1] = True
    elif paired:
        double = [list(encoded.token_ids[i : i + 2]) == list(tokenizer.between) for i in range(len(encoded))]
        stays[double.index(True) : double.index(True) + 2] = True
    for position in np.flatnonzero(encoded.entity_slot >= 0):
        stays[position : position + 1 + len(tokenizer.word("/"))] = True
    for mention, (start, end), places in zip(mentions, encoded.spans, encoded.markers, strict=True):
        stays[start:end] = True
        for word, position in zip((mention.opening, mention.closing), places, strict=True):
            if word:
                stays[position : position + len(tokenizer.word(word))] = True
    return stays


def embedded(short, whole, stays):
    """Whether `short` is `whole` without some positions that need not stay (dynamic programming); None if not."""
    reachable = {0}
    for token, stay in zip(whole, stays, strict=True):
        step = {at + 1 for at in reachable if at < len(short) and short[at] == token}
        reachable = step if stay else step | reachable
    return True if len(short) in reachable else None


def test_truncation_cuts_the_outer_ends_first():
    encoder = EntityEncoder(host("wordpiece"), max_length=10)
    words_ = ["ka", "mo", "ri", "te", "ka", "Lon", "mo", "te", *["lan"] * 7]
    mentions = [Mention(3, 4), Mention(5, 6)]
    # 8 pieces fit beside [CLS] and [SEP]; the mentions lie at 3 and 5
    short = encoder.encode(words_, mentions)
    assert encoder.tokenizer.decode(short.token_ids) == "[CLS] ka mo ri te ka Lon mo te [SEP]"
    tight = EntityEncoder(host("wordpiece"), max_length=5).encode(words_, mentions)
    assert encoder.tokenizer.decode(tight.token_ids) == "[CLS] te ka Lon [SEP]"
    tightest = EntityEncoder(host("wordpiece"), max_length=4)
    assert encoder.tokenizer.decode(tightest.encode(words_, mentions).token_ids) == "[CLS] te Lon [SEP]"
    assert encoder.tokenizer.decode(tightest.encode(words_).token_ids) == "[CLS] ka mo [SEP]"

"""Linking raw text: against a brute-force reference, and the rules of case, words and ambiguity one by one."""

import json
import sys
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kinject.errors import InputError
from kinject.knowledge import KnowledgeBase, write_knowledge
from kinject.linking import AliasLinker, Span
from kinject.linking.surface import MARK, _class_of, _kind, fold, units

CHARACTERS = "aAbsS1 \n_-.'’&éÉ\u0301ßİ京北ก\u0e31ゲ\u3099한\U00010a01\U00010a05"


def write_names(folder, names, **more):
    """A knowledge base whose entity i has the names of `names[i]`, the first of them its label."""
    return KnowledgeBase.open(
        write_knowledge(
            folder,
            name="names",
            ids=[f"Q{i}" for i in range(len(names))],
            vectors=more.pop("vectors", np.ones((len(names), 2), np.float32)),
            labels=[some[0] if some else "" for some in names],
            aliases=[some[1:] for some in names],
            **more,
        )
    )


@pytest.fixture
def linked(tmp_path):
    def link(names, text, **settings):
        base = write_names(tmp_path / f"kb{len(list(tmp_path.iterdir()))}", names)
        return [(text[one.start : one.end], one.entity) for one in AliasLinker(base, **settings)(text)]

    return link


# ---- the reference: every stretch against every name, character by character


def same(text):
    text = unicodedata.normalize("NFC", text)
    return "".join(" " if c.isspace() else {"’": "'"}.get(c, c) for c in text).casefold()


def is_mark(character):
    return unicodedata.category(character).startswith("M")


def in_word(text, place):
    """Whether the character that the marks at `place` stand on is of a script that puts spaces between words."""
    while place and is_mark(text[place]):
        place -= 1
    character = text[place]
    return (character.isalnum() or character == "_") and character not in "京北กゲ"


def edge(text, place):
    if place in (0, len(text)):
        return True
    return not is_mark(text[place]) and not (in_word(text, place - 1) and in_word(text, place))


def reference(text, names, shortest, capitals):
    found, start = [], 0
    while start < len(text):
        end = len(text) if edge(text, start) and not is_mark(text[start]) and not text[start].isspace() else start
        while end > start and not (edge(text, end) and owners(text[start:end], names, shortest, capitals)):
            end -= 1
        if end > start:
            found.append((start, end, owners(text[start:end], names, shortest, capitals)))
            start = end
        else:
            start += 1
    return found


def owners(written, names, shortest, capitals):
    """The rows that may be meant, where the written name is long enough."""
    key, rows = same(written), set()
    if len(key) < shortest:
        return rows
    for row, some in enumerate(names):
        mine = [name for name in some if " ".join(same(name).split()) == key]
        only_capitals = len(key) <= capitals and all(name.isupper() for name in mine)
        if mine and (written.isupper() or not only_capitals):
            rows.add(row)
    return rows


names_in = st.lists(
    st.lists(st.text(CHARACTERS, min_size=1, max_size=4), min_size=1, max_size=3), min_size=1, max_size=8
)


@settings(max_examples=300, deadline=None)
@given(names_in, st.data())
@example([["ß"], ["SS s"]], None)
def test_what_is_found_is_what_brute_force_finds(names, data):
    if data is None:
        text, shortest, capitals = "ss ß SS s ẞ s", 1, 5
    else:
        written = [name for some in names for name in some]
        written += [name.swapcase() for name in written]
        pieces = st.one_of(st.sampled_from(written), st.sampled_from(CHARACTERS + "  "))
        text = "".join(data.draw(st.lists(pieces, max_size=12)))
        shortest, capitals = data.draw(st.sampled_from([1, 2])), data.draw(st.sampled_from([0, 2, 5]))
    with tempfile.TemporaryDirectory() as folder:
        base = write_names(Path(folder) / "kb", names)
        if not any(" ".join(same(name).split()) for some in names for name in some):
            with pytest.raises(InputError, match="no entity has a label"):
                AliasLinker(base)
            return
        linker = AliasLinker(base, shortest=shortest, capitals=capitals)
        found = linker(text)
        wanted = reference(text, names, shortest, capitals)
        assert [(one.start, one.end) for one in found] == [(start, end) for start, end, _ in wanted]
        for one, (_, _, rows) in zip(found, wanted, strict=True):
            assert int(one.entity[1:]) in rows


@settings(max_examples=200, deadline=None)
@given(st.text(CHARACTERS + "ǰŉﬁK", max_size=12))
def test_a_fold_of_a_slice_is_the_slice_of_the_fold(text):
    surface = fold(text)
    starts = [unit.start() for unit in units(surface.text)]
    for start, end in zip(starts, [*starts, len(surface.text)][1:], strict=True):
        whole = text[surface.original(start) : surface.original(end)]
        assert fold(whole).text == surface.text[start:end]


def test_the_patterns_know_every_mark_of_unicode():
    import re

    pattern = re.compile(f"[{_class_of(MARK, rare=True)}]")
    marks = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] == "M"]
    assert len(marks) > 2000
    assert all(pattern.match(mark) and _kind(mark) == MARK for mark in marks)


# ---- the rules


def test_the_longest_name_from_the_left_that_ends_with_a_word(linked):
    names = [["New York"], ["York"], ["New York Tim"], ["Times"]]
    assert linked(names, "New York Times, in New Yorkshire's York") == [
        *[("New York", "Q0"), ("Times", "Q3"), ("York", "Q1")]
    ]


@pytest.mark.parametrize(
    ("case", "found"),
    [("auto", ["US", "apple", "APPLE"]), ("ignore", ["US", "us", "apple", "APPLE"]), ("exact", ["US"])],
)
def test_cases(linked, case, found):
    text = "US gives us an apple, an APPLE"
    assert [name for name, _ in linked([["US"], ["Apple"]], text, case=case)] == found


def test_long_names_in_capitals_are_not_exact_and_a_spelling_in_lower_case_frees_a_short_one(linked):
    assert linked([["UNESCO"], ["WHO", "Who"]], "unesco, who") == [("unesco", "Q0"), ("who", "Q1")]


def test_names_beside_punctuation_line_ends_and_typographic_signs(linked):
    names = [["C++"], [".NET"], ["AT&T"], ["L'Oréal"], ["New York"], ["Jean-Luc"]]
    text = "C++, .NET/AT&T; L’ORE\u0301AL (New\nYork) Jean‐Luc"
    assert [entity for _, entity in linked(names, text)] == [f"Q{i}" for i in range(6)]
    assert linked(names, "xC++ .NETs AT&Ts") == []


def test_scripts_without_spaces_have_a_boundary_at_every_character(linked):
    names = [["北京"], ["กรุงเทพ"], ["दिल्ली"], ["Cafe"]]
    text = "我在北京大学 ไปกรุงเทพฯ दिल्ली दिल्लीवाला Café"
    assert linked(names, text) == [("北京", "Q0"), ("กรุงเทพ", "Q1"), ("दिल्ली", "Q2")]


def test_one_letter_names_are_left_alone_unless_asked_for(linked):
    assert linked([["A"]], "A is A") == []
    assert len(linked([["A"]], "A is A", shortest=1)) == 2


def test_the_prior_prefers_labels_and_what_stands_in_many_triples(tmp_path):
    names = [["Paris Hilton", "Paris"], ["Paris"], ["Paris"], ["France"]]
    triples = np.array([[2, 0, 3], [2, 0, 3], [2, 0, 3], [0, 0, 3]])
    base = write_names(tmp_path / "kb", names, triples=triples, relations=["r"])
    (span,) = AliasLinker(base)("paris")
    # weights: 4 for three triples, 1 for a label, (1 + 1) / 2 for an alias with a triple
    assert span == Span(0, 5, "Q2", pytest.approx(4 / 6))
    assert AliasLinker(base).aliases.ambiguous == 1
    equal = write_names(tmp_path / "equal", names)
    assert AliasLinker(equal)("Paris")[0].entity == "Q1", "a label before an alias, then the earlier row"


def test_the_context_chooses_whom_the_others_resemble(tmp_path):
    rng = np.random.default_rng(0)
    france, texas = rng.normal(size=(2, 8))
    near = lambda centre: (centre + 0.3 * rng.normal(size=8)).astype(np.float32)  # noqa: E731
    names = [["Paris"], ["Paris"], ["Lyon"], ["Dallas"], ["Austin"]]
    vectors = np.stack([near(france), near(texas), near(france), near(texas), near(texas)])
    base = write_names(tmp_path / "kb", names, vectors=vectors)
    linker = AliasLinker(base, ambiguous="context")
    assert linker("Paris and Lyon")[0].entity == "Q0"
    dallas, paris = linker("Dallas, not Paris")
    assert (dallas.entity, paris.entity) == ("Q3", "Q1") and paris.score > 0.9
    assert linker("Paris, Paris")[0] == Span(0, 5, "Q0", 0.5), "a name is no context of itself"
    assert [one.entity for one in AliasLinker(base)("Dallas, not Paris")] == ["Q3", "Q0"]


def test_given_mentions_are_named_without_a_search(linked, tmp_path):
    base = write_names(tmp_path / "kb", [["Rome"], ["US"]])
    spans = AliasLinker(base).link("Romes us US Oslo", [(0, 4), (6, 8), (9, 11), (12, 16)])
    assert spans == [Span(0, 4, "Q0"), None, Span(9, 11, "Q1"), None]


# ---- the index on disk


def test_the_index_is_made_once_and_again_when_the_knowledge_changes(tmp_path):
    base = write_names(tmp_path / "kb", [["Rome"]])
    AliasLinker(base)
    trie = tmp_path / "kb.names" / "names.marisa"
    first = trie.stat().st_mtime_ns
    AliasLinker(KnowledgeBase.open(tmp_path / "kb"))
    assert trie.stat().st_mtime_ns == first
    (tmp_path / "kb").rename(tmp_path / "old")
    changed = write_names(tmp_path / "kb", [["Oslo"]])
    assert [one.entity for one in AliasLinker(changed)("Rome, Oslo")] == ["Q0"]
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def test_what_cannot_be_linked_is_said(tmp_path):
    bare = write_knowledge(tmp_path / "bare", name="bare", ids=["Q1"], vectors=np.ones((1, 2), np.float32))
    with pytest.raises(InputError, match="have no names"):
        AliasLinker(KnowledgeBase.open(bare))
    base = write_names(tmp_path / "kb", [["Rome"]])
    with pytest.raises(InputError, match="did you mean prior"):
        AliasLinker(base, ambiguous="priors")
    AliasLinker(base)
    about = tmp_path / "kb.names" / "about.json"
    about.write_text(json.dumps({"format_version": 99, "longest": 4}))
    AliasLinker(base)  # damaged: made anew
    about.write_text(json.dumps({"format_version": 99, "longest": 4}))
    about.with_name("seal.json").unlink()
    with pytest.raises(InputError, match=r"kb\.names.*format_version is 99"):
        AliasLinker(base)

"""How names and texts are compared, and where words begin and end.

Two stretches of text are the same name if `fold` makes the same of them: characters that Unicode holds to be compatible
(NFKC: composed and decomposed, full and half width, ligatures), any run of white space and a space, typographic
apostrophes and hyphens and plain ones are alike, soft hyphens and zero-width marks count for nothing, and cases are
alike (full Unicode case folding) unless told otherwise. Positions in what is folded can be mapped back.

A word is a run of letters, digits and underscores of scripts that put spaces between words; marks belong to what they
stand on. Scripts without such spaces (Han, kana, Thai, Lao, Khmer, Burmese) have a boundary at every character.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import NamedTuple

OTHER, WORD, ALONE, MARK = range(4)

_SPACES = "\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
_SPACES += "\u2028\u2029\u202f\u205f\u3000"
_PLAIN = str.maketrans(_SPACES + "’ʼ＇‐‑", " " * len(_SPACES) + "'''--")

_WITHOUT_ROOM = "\xad\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
_NOTHING = re.compile(f"[{_WITHOUT_ROOM}]")

# scripts that write words without spaces between them, as Unicode blocks
_WITHOUT_SPACES = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF)),
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x20000, 0x323AF)),
)
_JAMO = (0x1160, 0x11FF)  # vowels and finals of decomposed Hangul: they compose with what they follow, as marks do
# where Unicode has marks: beyond Han and Hangul in the basic plane, variants of Han, and scripts of the planes above
_MARKED = ((0x0300, 0x33FF), (0xA000, 0xABFF), (0xFB00, 0xFE2F), (0xE0100, 0xE01EF))
_RARE_MARKED = ((0x10000, 0x1EFFF),)

_ASCII_UNIT = re.compile(r"\w+|[^\w\s]", re.ASCII)
_RARE = re.compile("[\U00010000-\U0001efff]")


class Surface(NamedTuple):
    """A folded text.

    Attributes:
      text: the folded text.
      places: for each of its positions, and for its end, the character of the original; None where they are the same.
    """

    text: str
    places: list[int] | None

    def original(self, position: int) -> int:
        """The position in the text of a position in its folded form."""
        return position if self.places is None else self.places[position]


def fold(text: str, *, cases: bool = True) -> Surface:
    """Makes of a text what is compared.

    Args:
      text: any string.
      cases: whether upper and lower case are alike.
    """
    if text.isascii():
        text = text.translate(_PLAIN)
        return _squeezed(text.lower() if cases else text, None)
    places = None
    if not unicodedata.is_normalized("NFKC", text):
        text, places = _mapped(_clusters(text), _compatible)
    text = text.translate(_PLAIN)
    if cases:
        folded = text.casefold()
        if len(folded) != len(text):  # a fold is never shorter than its character
            folded, inner = _mapped(text, str.casefold)
            places = inner if places is None else [places[at] for at in inner]
        text = folded
    return _squeezed(text, places)


def _compatible(cluster: str) -> str:
    """A character in its compatible form (NFKC), unless that has a boundary within: no name may begin inside of one."""
    form = unicodedata.normalize("NFKC", cluster)
    whole = len(form) == 1 or all(_KINDS[one] in (WORD, MARK) for one in form.translate(_PLAIN))
    return form if whole else unicodedata.normalize("NFC", cluster)


def _squeezed(text: str, places: list[int] | None) -> Surface:
    """A folded text with one space for a run of them, and without what takes no room."""
    if "  " not in text and (text.isascii() or _NOTHING.search(text) is None):
        return Surface(text, places)
    kept, before = [], ""
    for at, character in enumerate(text):
        if (character == " " == before) or character in _WITHOUT_ROOM:
            continue
        kept.append(at)
        before = character
    found = [at if places is None else places[at] for at in (*kept, len(text))]
    return Surface("".join(text[at] for at in kept), found)


def units(folded: str) -> Iterator[re.Match[str]]:
    """Yields, in order, the words and other characters of a folded text that a name may begin with."""
    if folded.isascii():
        return _ASCII_UNIT.finditer(folded)
    return _unit_pattern(_RARE.search(folded) is not None).finditer(folded)


def boundary(folded: str, position: int) -> bool:
    """Whether a name may begin or end before the character at `position`."""
    if not 0 < position < len(folded):
        return True
    kind = _KINDS[folded[position]]
    if kind != WORD:
        return kind != MARK
    before = position - 1
    while before and _KINDS[folded[before]] == MARK:
        before -= 1
    return _KINDS[folded[before]] != WORD


def _kind(character: str) -> int:
    code = ord(character)
    if unicodedata.category(character)[0] == "M" or _JAMO[0] <= code <= _JAMO[1]:
        return MARK
    if not (character.isalnum() or character == "_"):
        return OTHER
    return ALONE if any(low <= code <= high for low, high in _WITHOUT_SPACES) else WORD


class _Kinds(dict[str, int]):
    """The kind of a character, found out once for each that occurs."""

    def __missing__(self, character: str) -> int:
        self[character] = kind = _kind(character)
        return kind


_KINDS = _Kinds()


def _mapped(pieces: Iterable[str], make: Callable[[str], str]) -> tuple[str, list[int]]:
    """Makes something of each piece; returns all of it, and for each position where its piece begins."""
    made, places, at = [], [], 0
    for piece in pieces:
        one = make(piece)
        made.append(one)
        places += [at] * len(one)
        at += len(piece)
    return "".join(made), [*places, at]


def _clusters(text: str) -> Iterator[str]:
    """Cuts a text into characters with the marks that stand on them."""
    return (found[0] for found in _cluster_pattern().finditer(text))


@cache
def _cluster_pattern() -> re.Pattern[str]:
    return re.compile(f".[{_class_of(MARK, rare=True)}]*", re.DOTALL)


@cache
def _unit_pattern(rare: bool) -> re.Pattern[str]:
    """What `units` finds. The marks of rare scripts are many ranges that `re` would try for every character."""
    marks, alone = _class_of(MARK, rare=rare), _class_of(ALONE)
    word = rf"[^\W{alone}{marks}]+"
    return re.compile(rf"{word}(?:[{marks}]+(?:{word})?)*|[{alone}][{marks}]*|[^\w\s{marks}][{marks}]*")


@cache
def _class_of(kind: int, *, rare: bool = False) -> str:
    """The characters of a kind as the inside of a regular expression's brackets."""
    spans = _WITHOUT_SPACES if kind == ALONE else _MARKED + (_RARE_MARKED if rare else ())
    ranges: list[list[int]] = []
    for low, high in spans:
        if kind == ALONE and high - low > 0x1000:  # Han: no mark among thousands
            ranges.append([low, high])
            continue
        for code in range(low, high + 1):
            if _kind(chr(code)) == kind:
                if ranges and ranges[-1][1] == code - 1:
                    ranges[-1][1] = code
                else:
                    ranges.append([code, code])
    return "".join(f"{chr(low)}-{chr(high)}" for low, high in ranges)

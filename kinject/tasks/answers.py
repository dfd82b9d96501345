"""Comparing answers as SQuAD does: without case, punctuation, articles and extra white space; exact match, token F1."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """The answer in lower case without ASCII punctuation, the words a, an and the, and extra white space."""
    plain = answer.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def exact_match(answer: str, right: str) -> float:
    """1.0 where both are the same, normalised, else 0.0."""
    return float(normalised(answer) == normalised(right))


def token_f1(answer: str, right: str) -> float:
    """F1 over the words of both, normalised and counted as often as they occur; of two empty answers 1.0."""
    ours, theirs = normalised(answer).split(), normalised(right).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def best(measure: Callable[[str, str], float], answer: str, rights: Sequence[str]) -> float:
    """The measure against the right answer that it fits best."""
    return max(measure(answer, right) for right in rights)

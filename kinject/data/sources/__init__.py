"""Sources out of installed packages, by name: small domains (entities, triples, questions), and text to read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from kinject.data.sources import geonames, geonames_kinds, geonames_pairs, wordnet, wordnet_kinds
from kinject.data.sources.domain import SPLIT_SIZES, ClozeQuestion, Domain, Pieces
from kinject.errors import InputError, did_you_mean

__all__ = ["CORPORA", "SOURCES", "SPLIT_SIZES", "ClozeQuestion", "Domain", "Pieces", "load", "read_corpus"]

SOURCES: dict[str, Callable[..., Domain]] = {
    "geography": geonames.load,
    "biology": wordnet.load,
    "geography_kinds": geonames_kinds.load,
    "biology_kinds": wordnet_kinds.load,
    "pairs": geonames_pairs.load,
}
CORPORA: dict[str, Callable[[], Iterator[tuple[str, dict[str, Any]]]]] = {
    "wordnet": wordnet.sentences,
    "wordnet_definitions": wordnet.definitions,
    "wordnet_examples": wordnet.examples,
    "wordnet_linked": wordnet.linked_definitions,
}


def load(name: str, pieces: Pieces, **options: Any) -> Domain:
    """Loads a domain by its name; `options` are those of the source's own `load` (seed, sizes, answer_triples, …).

    Raises InputError for an unknown name or option, a missing package, or more questions than the source has.
    """
    if name not in SOURCES:
        raise InputError(f"domain {name!r}", "there is no such source", did_you_mean(name, SOURCES))
    takes = inspect.signature(SOURCES[name]).parameters
    if not any(one.kind is one.VAR_KEYWORD for one in takes.values()):  # those with more check it themselves
        for option in options:
            if option not in takes:
                raise InputError(f"source {name}", f"there is no option {option!r}", did_you_mean(option, takes))
    return SOURCES[name](pieces, **options)


def read_corpus(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (id of what it is about, record) of a corpus. Raises InputError for an unknown name, a missing package."""
    if name not in CORPORA:
        raise InputError(f"corpus {name!r}", "there is no such source", did_you_mean(name, CORPORA))
    return CORPORA[name]()

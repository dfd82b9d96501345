"""Sources of small domains for the quickstart, by name: entities, triples and questions out of installed packages."""

from __future__ import annotations

from collections.abc import Callable

from kinject.data.sources import geonames, wordnet
from kinject.data.sources.domain import SPLIT_SIZES, Domain, Pieces, Question
from kinject.errors import InputError, did_you_mean

__all__ = ["SOURCES", "SPLIT_SIZES", "Domain", "Pieces", "Question", "load"]

SOURCES: dict[str, Callable[..., Domain]] = {"geography": geonames.load, "biology": wordnet.load}


def load(name: str, pieces: Pieces, **options) -> Domain:
    """Loads a domain by its name; `options` are those of the source's own `load` (seed, sizes, answer_triples, …).

    Raises InputError for an unknown name, a missing package, or more questions than the source has.
    """
    if name not in SOURCES:
        raise InputError(f"domain {name!r}", "there is no such source", did_you_mean(name, SOURCES))
    return SOURCES[name](pieces, **options)

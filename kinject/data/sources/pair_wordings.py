"""How questions about two entities are asked, to be answered by yes or no.

`[X]` and `[Y]` stand for the names. The wordings of the test were written, and committed, before any setting was
chosen.
"""

from __future__ import annotations

from collections.abc import Mapping

from kinject.data.sources.wordings import Wordings

PAIRS: Mapping[str, Wordings] = {
    "same_country": Wordings(
        train=(
            "[X] and [Y] are in the same country: [MASK].",
            "Do [X] and [Y] belong to one country? [MASK].",
            "[X] lies in the country of [Y]: [MASK].",
            "Is the country of [X] also the country of [Y]? [MASK].",
            "[X] shares a country with [Y]: [MASK].",
            "One state contains both [X] and [Y]: [MASK].",
        ),
        dev=(
            "Would one flag fly in [X] and in [Y], for one country? [MASK].",
            "[X] is in the very country where [Y] is: [MASK].",
        ),
        test=(
            "People of [X] and people of [Y] live in the same country: [MASK].",
            "Does a single country hold [X] as well as [Y]? [MASK].",
            "The country around [X] is that around [Y]: [MASK].",
        ),
    ),
    "not_same_country": Wordings(
        train=(
            "[X] and [Y] are not in the same country: [MASK].",
            "Do [X] and [Y] belong to different countries? [MASK].",
            "[X] does not lie in the country of [Y]: [MASK].",
            "Is the country of [X] another than the country of [Y]? [MASK].",
            "[X] does not share a country with [Y]: [MASK].",
            "No state contains both [X] and [Y]: [MASK].",
        ),
        dev=(
            "Would different flags fly in [X] and in [Y], as they are not of one country? [MASK].",
            "[X] is not in the country where [Y] is: [MASK].",
        ),
        test=(
            "People of [X] and people of [Y] do not live in the same country: [MASK].",
            "Does no single country hold [X] as well as [Y]? [MASK].",
            "The country around [X] is not that around [Y]: [MASK].",
        ),
    ),
    "same_continent": Wordings(
        train=(
            "[X] and [Y] are on the same continent: [MASK].",
            "Do [X] and [Y] belong to one continent? [MASK].",
            "[X] lies on the continent of [Y]: [MASK].",
            "Is the continent of [X] also the continent of [Y]? [MASK].",
            "[X] shares a continent with [Y]: [MASK].",
            "One continent contains both [X] and [Y]: [MASK].",
        ),
        dev=(
            "Would a map of one continent show [X] and also [Y]? [MASK].",
            "[X] is on the very continent where [Y] is: [MASK].",
        ),
        test=(
            "People of [X] and people of [Y] live on the same continent: [MASK].",
            "Does a single continent hold [X] as well as [Y]? [MASK].",
            "The continent around [X] is that around [Y]: [MASK].",
        ),
    ),
    "same_size": Wordings(
        train=(
            "[X] and [Y] are of the same size: [MASK].",
            "Do [X] and [Y] belong to one class of size? [MASK].",
            "[X] has the size of [Y]: [MASK].",
            "Is the size of [X] also the size of [Y]? [MASK].",
            "[X] shares a class of size with [Y]: [MASK].",
            "One word for the size of a city suits both [X] and [Y]: [MASK].",
        ),
        dev=(
            "Would a list by size put [X] beside [Y]? [MASK].",
            "[X] is as large or small as [Y] is: [MASK].",
        ),
        test=(
            "Cities like [X] and cities like [Y] have the same size: [MASK].",
            "Does a single size describe [X] as well as [Y]? [MASK].",
            "The size of [X] is that of [Y]: [MASK].",
        ),
    ),
}

TAUGHT: Mapping[str, Wordings] = {
    "not_same_continent": Wordings(
        train=(
            "[X] and [Y] are not on the same continent: [MASK].",
            "Do [X] and [Y] belong to different continents? [MASK].",
            "[X] does not lie on the continent of [Y]: [MASK].",
            "Is the continent of [X] another than the continent of [Y]? [MASK].",
            "[X] does not share a continent with [Y]: [MASK].",
            "No continent contains both [X] and [Y]: [MASK].",
        ),
        dev=(),
        test=(),
    ),
    "not_same_size": Wordings(
        train=(
            "[X] and [Y] are not of the same size: [MASK].",
            "Do [X] and [Y] belong to different classes of size? [MASK].",
            "[X] does not have the size of [Y]: [MASK].",
            "Is the size of [X] another than the size of [Y]? [MASK].",
            "[X] does not share a class of size with [Y]: [MASK].",
            "No word for the size of a city suits both [X] and [Y]: [MASK].",
        ),
        dev=(),
        test=(),
    ),
}
"""Kinds that a host is taught besides, so that a denial means the same of every fact; nobody is tested on them."""

_AFFIRMED = (
    "[X] and [Y] have the same {fact}: [MASK].",
    "[X] and [Y] have one {fact} in common: [MASK].",
    "Is the {fact} the same for [X] and for [Y]? [MASK].",
    "The {fact} of [X] equals the {fact} of [Y]: [MASK].",
    "In {fact}, [X] is like [Y]: [MASK].",
    "Who knows the {fact} of [X] also knows that of [Y]: [MASK].",
    "Does [X] agree with [Y] in {fact}? [MASK].",
    "By {fact}, [X] goes together with [Y]: [MASK].",
    "It is true that [X] and [Y] match in {fact}: [MASK].",
    "Whoever moves from [X] to [Y] keeps the {fact}: [MASK].",
    "Sorted by {fact}, [X] and [Y] come under one heading: [MASK].",
    "Could one word name the {fact} of [X] and of [Y]? [MASK].",
    "[X] has whatever {fact} [Y] has: [MASK].",
    "Ask for the {fact} of [X] and of [Y], and you hear one answer: [MASK].",
    "What [Y] is by {fact}, [X] is too: [MASK].",
    "[X] and [Y] are two of one {fact}: [MASK].",
    "Would you write the same {fact} beside [X] and beside [Y]? [MASK].",
)
_DENIED = (
    "[X] and [Y] do not have the same {fact}: [MASK].",
    "[X] and [Y] have no {fact} in common: [MASK].",
    "Is the {fact} not the same for [X] and for [Y]? [MASK].",
    "The {fact} of [X] does not equal the {fact} of [Y]: [MASK].",
    "In {fact}, [X] is not like [Y]: [MASK].",
    "Who knows the {fact} of [X] does not yet know that of [Y]: [MASK].",
    "Does [X] differ from [Y] in {fact}? [MASK].",
    "By {fact}, [X] does not go together with [Y]: [MASK].",
    "It is not true that [X] and [Y] match in {fact}: [MASK].",
    "Whoever moves from [X] to [Y] changes the {fact}: [MASK].",
    "Sorted by {fact}, [X] and [Y] come under different headings: [MASK].",
    "Would two different words name the {fact} of [X] and of [Y]? [MASK].",
    "[X] has another {fact} than [Y] has: [MASK].",
    "Ask for the {fact} of [X] and of [Y], and you hear two answers: [MASK].",
    "What [Y] is by {fact}, [X] is not: [MASK].",
    "[X] and [Y] are not of one {fact}: [MASK].",
    "Would you write another {fact} beside [X] than beside [Y]? [MASK].",
)
LESSONS: Mapping[str, tuple[str, ...]] = {
    prefix + kind: tuple(frame.format(fact=kind.removeprefix("same_")) for frame in frames)
    for kind in ("same_country", "same_continent", "same_size")
    for prefix, frames in (("", _AFFIRMED), ("not_", _DENIED))
}
"""More wordings of each kind to train with. With six alone the host of one seed misread denied forms."""

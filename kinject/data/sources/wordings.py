"""How each kind of question is asked: six wordings to train with, two to choose settings with, three to test with.

`[X]` stands for the entity's name and `[MASK]` for the answer. No wording is in two of the three lists. Those of the
test were written, and committed, before any setting was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Wordings:
    """The sentences that ask one kind of question, `[X]` and `[MASK]` once in each."""

    train: tuple[str, ...]
    dev: tuple[str, ...]
    test: tuple[str, ...]


GEOGRAPHY: Mapping[str, Wordings] = {
    "country": Wordings(
        train=(
            "[X] is a city in the country of [MASK].",
            "[X] lies in [MASK].",
            "The country where you find [X] is [MASK].",
            "To visit [X] you need a visa for [MASK].",
            "The flag that flies over [X] is the flag of [MASK].",
            "[X] belongs to the state of [MASK].",
        ),
        dev=(
            "If you live in [X], you live in the country [MASK].",
            "The football team that [X] cheers for is that of [MASK].",
        ),
        test=(
            "People born in [X] hold a passport of [MASK].",
            "[X] lies within the borders of [MASK].",
            "The nation that [X] is part of is [MASK].",
        ),
    ),
    "continent": Wordings(
        train=(
            "[X] lies on the continent of [MASK].",
            "The continent where you find [X] is [MASK].",
            "Geographers count [X] as part of the continent [MASK].",
            "A flight to [X] is a flight to the continent of [MASK].",
            "Of all continents, [X] belongs to [MASK].",
            "[X] is on the map of [MASK], the continent.",
        ),
        dev=(
            "Which continent is [X] on? It is on [MASK].",
            "The part of the world around [X] is the continent called [MASK].",
        ),
        test=(
            "An atlas shows [X] in its chapter on the continent [MASK].",
            "The landmass on which [X] stands is [MASK].",
            "Continents differ; the one with [X] is [MASK].",
        ),
    ),
    "capital": Wordings(
        train=(
            "The capital of the country of [X] is [MASK].",
            "The government that rules [X] sits in its capital, [MASK].",
            "[X] is governed from the capital [MASK].",
            "Laws that hold in [X] are made in the capital city, [MASK].",
            "From [X] people travel to their national capital, [MASK].",
            "The president of the country around [X] lives in the capital, [MASK].",
        ),
        dev=(
            "The parliament for the people of [X] meets in the capital [MASK].",
            "Taxes paid in [X] go to the capital, [MASK].",
        ),
        test=(
            "Ministers who decide about [X] work in the capital [MASK].",
            "The seat of government over [X] is the city of [MASK].",
            "The national capital for [X] is [MASK].",
        ),
    ),
    "currency": Wordings(
        train=(
            "In [X] you pay with the [MASK].",
            "The currency used in [X] is the [MASK].",
            "Shops in [X] take the local money, the [MASK].",
            "Wages in [X] are paid in the currency called [MASK].",
            "The money of [X] is called the [MASK].",
            "Prices in [X] are given in [MASK], the currency.",
        ),
        dev=(
            "A bank in [X] changes your money into the [MASK].",
            "A wallet in [X] holds one kind of cash, the [MASK].",
        ),
        test=(
            "A meal in [X] is paid for in the currency [MASK].",
            "The coins and notes of [X] are the [MASK].",
            "Rent in [X] is counted in [MASK], the local money.",
        ),
    ),
    "language": Wordings(
        train=(
            "Most people in [X] speak [MASK].",
            "The language of [X] is [MASK].",
            "In [X] children learn to read in the language [MASK].",
            "Signs in [X] are written in [MASK].",
            "To talk with people in [X] you should learn [MASK].",
            "The newspapers of [X] are written in [MASK].",
        ),
        dev=(
            "A shopkeeper in [X] will greet you in [MASK].",
            "The radio in [X] is mostly spoken in [MASK].",
        ),
        test=(
            "The official tongue of [X] is [MASK].",
            "Books sold in [X] are mostly in the language [MASK].",
            "A conversation in the streets of [X] is held in [MASK].",
        ),
    ),
    "size": Wordings(
        train=(
            "[X] is a [MASK] city.",
            "By the number of its people, [X] is [MASK].",
            "Measured by population, [X] counts as [MASK].",
            "The size of [X] is best called [MASK].",
            "As cities go, [X] is a [MASK] one.",
            "For the number of people who live there, [X] is called [MASK].",
        ),
        dev=(
            "Counting its inhabitants, one calls [X] a [MASK] place.",
            "How big is [X]? It is [MASK].",
        ),
        test=(
            "The census makes [X] a [MASK] town.",
            "In a list of cities by size, [X] stands among those that are [MASK].",
            "Judged by how many live there, [X] is [MASK].",
        ),
    ),
    "part": Wordings(
        train=(
            "[X] lies in the [MASK] of its country.",
            "On the compass, [X] is in the [MASK].",
            "On a map of the country, [X] is found in the [MASK].",
            "People from [X] say that they come from the [MASK].",
            "The part of the country where [X] lies is the [MASK].",
            "The weather report for the [MASK] is the one for [X].",
        ),
        dev=(
            "Looking for [X] on the national map, look to the [MASK].",
            "The region of the country around [X] is its [MASK].",
        ),
        test=(
            "Drivers reach [X] in the [MASK] of the land.",
            "The country has many parts, and [X] stands in its [MASK].",
            "Where in the country is [X]? In the [MASK].",
        ),
    ),
    "metropolis": Wordings(
        train=(
            "The nearest large city to [X] is [MASK].",
            "The big city closest to [X] is [MASK].",
            "From [X] it is not far to the large city of [MASK].",
            "People of [X] go shopping in the nearest big city, [MASK].",
            "The closest metropolis to [X] is [MASK].",
            "The large city in the neighbourhood of [X] is [MASK].",
        ),
        dev=(
            "If you drive from [X] to the nearest metropolis, you reach [MASK].",
            "Of the large cities, [MASK] lies nearest to [X].",
        ),
        test=(
            "The next big city from [X] is [MASK].",
            "Commuters from [X] take the train to the large city nearby, [MASK].",
            "The airport of [MASK], the closest large city, serves [X].",
        ),
    ),
}

BIOLOGY: Mapping[str, Wordings] = {
    "kind": Wordings(
        train=(
            "[X] is a kind of [MASK].",
            "The [X] is a [MASK].",
            "A guide book lists [X] as a [MASK].",
            "What sort of living thing is [X]? It is a [MASK].",
            "[X] belongs with every other [MASK].",
            "Whoever sees [X] sees a [MASK].",
        ),
        dev=(
            "Children learn that [X] is one sort of [MASK].",
            "To the naturalist, [X] is a type of [MASK].",
        ),
        test=(
            "[X] may be described as a [MASK].",
            "Biologists class [X] as a [MASK].",
            "An example of a [MASK] is [X].",
        ),
    ),
    "realm": Wordings(
        train=(
            "Is [X] a plant or an animal? [MASK].",
            "In the kingdoms of life, [X] is counted as [MASK].",
            "The kingdom of [X] is that of the [MASK].",
            "Of the great kingdoms of nature, [X] is in that of the [MASK].",
            "Plant, animal or fungus: [X] is [MASK].",
            "Life is divided into kingdoms, and [X] is of the kingdom [MASK].",
        ),
        dev=(
            "[X] goes into the kingdom named [MASK].",
            "Animal, fungus, or plant? [X] is [MASK].",
        ),
        test=(
            "The kingdom that [X] belongs to is [MASK].",
            "Plant or animal or fungus? In the case of [X], [MASK].",
            "At the highest level of living things, in the kingdoms, [X] is [MASK].",
        ),
    ),
    "family": Wordings(
        train=(
            "[X] is of the [MASK] family.",
            "The family of [X] is the [MASK] family.",
            "Botanists put [X] into the [MASK] family.",
            "[X] is related to the [MASK], of the same family.",
            "The plant family that [X] belongs to is named after the [MASK].",
            "As a member of its family, [X] is a relative of the [MASK].",
        ),
        dev=(
            "[X] is one of the family of the [MASK].",
            "In the herbarium, [X] is filed under the family called [MASK].",
        ),
        test=(
            "A cousin in the same family as [X] is the [MASK].",
            "[X] counts among the [MASK] family.",
            "The family name shared by [X] is that of the [MASK].",
        ),
    ),
    "region": Wordings(
        train=(
            "[X] is found in [MASK].",
            "The home of [X] is [MASK].",
            "[X] is native to [MASK].",
            "In the wild, [X] lives in [MASK].",
            "To see [X] where it lives, travel to [MASK].",
            "The part of the world where [X] is at home is [MASK].",
        ),
        dev=(
            "[X] comes from [MASK].",
            "The natural range of [X] is in [MASK].",
        ),
        test=(
            "Look for [X] in the countryside of [MASK].",
            "The continent where [X] occurs naturally is [MASK].",
            "[X] has its origin in [MASK].",
        ),
    ),
    "size": Wordings(
        train=(
            "[X] is [MASK] in size.",
            "Among its kind, [X] is a [MASK] one.",
            "The size of [X] is [MASK].",
            "[X] grows to be [MASK].",
            "Compared with its relatives in size, [X] is [MASK].",
            "By its measure, one would call [X] [MASK].",
        ),
        dev=(
            "How big is [X]? It is [MASK].",
            "In size, one describes [X] as [MASK].",
        ),
        test=(
            "For its kind, [X] is rather [MASK] in growth.",
            "Measured, [X] turns out to be [MASK].",
            "The body or growth of [X] is [MASK].",
        ),
    ),
    "colour": Wordings(
        train=(
            "The colour of [X] is [MASK].",
            "[X] is [MASK] in colour.",
            "A painter would use [MASK] for [X].",
            "What colour is [X]? It is [MASK].",
            "You can tell [X] by its [MASK] colour.",
            "The paint for a picture of [X] is [MASK].",
        ),
        dev=(
            "[X] is known for its [MASK] hue.",
            "The colouring of [X] is [MASK].",
        ),
        test=(
            "Pictures show [X] in the colour [MASK].",
            "[X] is marked by the colour [MASK].",
            "Of all colours, the one typical of [X] is [MASK].",
        ),
    ),
}

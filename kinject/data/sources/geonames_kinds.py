"""Geography in eight kinds of question: five that follow from a city's country, three that do not.

Country, continent, capital, currency and language are what one known name, the country's, tells. The size of a city,
the part of the country where it lies and the nearest large city are facts of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kinject.data.sources import geonames
from kinject.data.sources.domain import Domain, Pieces, is_single_piece
from kinject.data.sources.kinds import Dealing, KindsDomain, Nodes, Subject, deal_fairly
from kinject.data.sources.wordings import GEOGRAPHY

WHERE = "source geography_kinds"
RELATIONS = (*geonames.RELATIONS, "size", "part_of_country", "nearest_large_city", "population", "size_of")
OF_COUNTRY = ("country", "continent", "capital", "currency", "language")

CONTINENTS = {"AF": "africa", "AS": "asia", "EU": "europe", "NA": "america", "SA": "america", "OC": "oceania"}
LANGUAGES = {
    **{"am": "amharic", "ar": "arabic", "bn": "bengali", "de": "german", "en": "english", "es": "spanish"},
    **{"fa": "persian", "fr": "french", "hu": "hungarian", "id": "indonesian", "it": "italian", "ja": "japanese"},
    **{"ms": "malay", "my": "burmese", "nl": "dutch", "pl": "polish", "pt": "portuguese", "ru": "russian"},
    **{"sw": "swahili", "th": "thai", "tl": "tagalog", "tr": "turkish", "uk": "ukrainian", "ur": "urdu"},
    **{"vi": "vietnamese", "zh": "chinese"},
}
SIZES = ((25_000, "small"), (80_000, "medium"), (float("inf"), "large"))
LARGE_CITY, FAR = 500_000, 300.0  # inhabitants; kilometres beyond which no large city is near
BRACKETS = 12  # of population, as many cities in each: without them too few triples tell a size for vectors to hold it
MIDDLE = 0.6  # standard deviations of a country's cities around their mean that count as its middle
EARTH = 6371.0


def load(
    pieces: Pieces,
    *,
    countries: int = 40,
    cities_per_country: int = 150,
    one_kind: str = "country",
    per_answer: int = 100,
    **dealing: Any,
) -> Domain:
    """Loads the cities of `geonames.load` with questions of eight kinds about them; the graph holds what they ask.

    Args:
      pieces: the host's tokenizer, without special tokens.
      countries: how many countries.
      cities_per_country: cities of a country in the graph.
      one_kind: see `kinds.Dealing`.
      per_answer: see there.
      dealing: all else that is told there; the graph is the same for every seed.

    Raises:
      InputError: the package is missing or has too few cities for the sizes.
    """
    states, everywhere = geonames.read_package()
    codes = geonames.choose_countries(states, everywhere, pieces, countries)
    cities = geonames.choose_cities(everywhere.values(), codes, cities_per_country)
    ids, labels, triples = geonames.make_graph(cities, {code: states[code] for code in codes}, True)
    facts, more = _facts(cities, everywhere, states, pieces)
    graph = Nodes(ids, labels)
    extra = [
        (row, RELATIONS.index(relation), graph.row(key, label))
        for row, found in enumerate(more)
        for relation, (key, label) in found.items()
    ]
    extra += [(tail, RELATIONS.index("size_of"), row) for row, of, tail in extra if RELATIONS[of] == "size"]
    subjects = [Subject(row, city["name"].lower(), facts[row], _hints(facts[row])) for row, city in enumerate(cities)]
    names = [city["name"].lower() for city in everywhere.values()]
    how = Dealing.of(WHERE, one_kind=one_kind, per_answer=per_answer, **dealing)
    known = _known(states, codes, pieces, graph)
    spare = [()] * (len(ids) - len(cities))
    return KindsDomain.of_questions(
        deal_fairly(subjects, names, known, pieces, GEOGRAPHY, how, WHERE),
        name="geography",
        ids=ids,
        labels=labels,
        aliases=[tuple(name for name in city["alternatenames"] if name) for city in cities] + spare,
        descriptions=[_described(found) for found in facts] + [""] * (len(ids) - len(cities)),
        triples=np.concatenate([triples, np.array(extra, np.int32).reshape(-1, 3)]),
        relations=RELATIONS,
        source=geonames.SOURCE,
        license=geonames.LICENSE,
    )


def _of_country(state: dict) -> dict[str, str]:
    """The answers that follow from a country; those that the package has none for are left out."""
    language = LANGUAGES.get(state["languages"].split(",")[0].split("-")[0], "")
    found = {
        "country": state["name"].lower(),
        "continent": CONTINENTS.get(state["continentcode"], ""),
        "capital": state["capital"].lower(),
        "currency": state["currencyname"].lower(),
        "language": language,
    }
    return {kind: word for kind, word in found.items() if word}


def _hints(answers: Mapping[str, str]) -> dict[str, str]:
    """By kind the known word that settles it: the country's name, or the answer itself."""
    return {kind: answers["country"] if kind in OF_COUNTRY else word for kind, word in answers.items()}


def _facts(
    cities: Sequence[dict], everywhere: Mapping[str, dict], states: Mapping[str, dict], pieces: Pieces
) -> tuple[list[dict[str, str]], list[dict[str, tuple[str, str]]]]:
    """For each city its answers by kind, and by relation the (id, label) of the node that the graph tells them with."""
    large = _large_cities(everywhere, pieces)
    nearest = _nearest(cities, large)
    parts = _parts(cities)
    rank = np.argsort(np.argsort([city["population"] for city in cities], kind="stable"))
    answers, nodes = [], []
    for city, part, near, bracket in zip(cities, parts, nearest, rank * BRACKETS // len(cities), strict=True):
        size = next(word for most, word in SIZES if city["population"] < most)
        found = {**_of_country(states[city["countrycode"]]), "size": size, "part": part}
        node = {
            "size": (f"size:{size}", size),
            "part_of_country": (f"part:{part}", part),
            "population": (f"population:{bracket}", f"population bracket {bracket + 1} of {BRACKETS}"),
        }
        if near is not None:
            found["metropolis"] = near["name"].lower()
            node["nearest_large_city"] = (f"geonames:{near['geonameid']}", near["name"])
        answers.append(found)
        nodes.append(node)
    return answers, nodes


def _described(answers: Mapping[str, str]) -> str:
    """What a gazetteer says of a city in a line: its size, part of the country, country, continent and neighbour."""
    words = [answers["size"], "city in the", answers["part"], "of", answers["country"]]
    words += [f", {answers['continent']}"] if "continent" in answers else []
    words += [f", near {answers['metropolis']}"] if "metropolis" in answers else []
    return " ".join(words).replace(" ,", ",")


def _large_cities(everywhere: Mapping[str, dict], pieces: Pieces) -> list[dict]:
    """Cities of half a million whose name is one piece and no other's of them."""
    found = [city for city in everywhere.values() if city["population"] >= LARGE_CITY]
    count = Counter(city["name"] for city in found)
    return [city for city in found if count[city["name"]] == 1 and is_single_piece(pieces, city["name"].lower())]


def _nearest(cities: Sequence[dict], large: Sequence[dict]) -> list[dict | None]:
    """The nearest other large city of each; None where it is farther than `FAR` kilometres."""
    from scipy.spatial import cKDTree  # scipy is heavy, and only this needs it

    tree = cKDTree(geonames.on_sphere(large))
    chord = 2 * np.sin(FAR / EARTH / 2)
    distance, at = tree.query(geonames.on_sphere(cities), k=2, distance_upper_bound=chord)
    found: list[dict | None] = []
    for city, gone, rows in zip(cities, distance, at, strict=True):
        near = [large[row] for far, row in zip(gone, rows, strict=True) if np.isfinite(far)]
        near = [one for one in near if one["geonameid"] != city["geonameid"]]
        found.append(near[0] if near else None)
    return found


def _parts(cities: Sequence[dict]) -> list[str]:
    """Where in its country each city lies, among those of the graph: middle, north, south, east or west."""
    place = np.array([(city["latitude"], city["longitude"]) for city in cities], np.float64)
    codes = np.array([city["countrycode"] for city in cities])
    parts = [""] * len(cities)
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        up, right = ((place[rows] - place[rows].mean(0)) / np.maximum(place[rows].std(0), 1e-9)).T
        for row, north, east in zip(rows, up, right, strict=True):
            if np.hypot(north, east) < MIDDLE:
                parts[row] = "middle"
            elif abs(north) >= abs(east):
                parts[row] = "north" if north > 0 else "south"
            else:
                parts[row] = "east" if east > 0 else "west"
    return parts


def _known(states: Mapping[str, dict], codes: Sequence[str], pieces: Pieces, graph: Nodes) -> list[Subject]:
    """The countries as subjects of what follows from them, "which country" too: what a reader knows by itself."""
    known = []
    for code in codes:
        state = states[code]
        answers = {kind: word for kind, word in _of_country(state).items() if is_single_piece(pieces, word)}
        row = graph.row(f"geonames:{state['geonameid']}", state["name"])
        known.append(Subject(row, state["name"].lower(), answers, {}))
    return known

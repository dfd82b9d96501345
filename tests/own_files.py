"""The files of docs/your_own.md and docs/jobs.md: 200 made-up customers, 500 requests, which sales desk answers them.

    python tests/own_files.py my

`crm.csv` has the same customers as somebody's software would write them: other columns, semicolons, facts in the place
of a description. `crm_later.csv` is the same table when ten more have come, and `later.txt` has requests of three of
these. A desk answers for some countries. Two requests in five say the customer's country or a city; for the others one
must know the customer. Requests stand by customer, so that parts of the file share no customer but where they are cut.
"""

import csv
import random
import sys
from pathlib import Path

COUNTRIES = {
    "Portugal": ("iberia", ("Porto", "Lisbon")),
    "Spain": ("iberia", ("Madrid", "Seville")),
    "Norway": ("nordics", ("Oslo", "Bergen")),
    "Sweden": ("nordics", ("Stockholm", "Uppsala")),
    "Denmark": ("nordics", ("Copenhagen", "Odense")),
    "Germany": ("central", ("Berlin", "Hamburg")),
    "Austria": ("central", ("Vienna", "Graz")),
    "Netherlands": ("benelux", ("Amsterdam", "Utrecht")),
    "Belgium": ("benelux", ("Brussels", "Ghent")),
}
TRADES = ("bakery", "brewery", "printer", "hotel", "shipyard", "clinic", "publisher", "vineyard")
FORMS = ("Foods", "Works", "Group", "Partners", "Supply", "Labs")
REQUESTS = (
    "{} asks for a new quote by Friday.",
    "Please call {} back about the last invoice.",
    "{} wants to move the delivery to next month.",
    "The order of {} arrived with two boxes missing.",
    "Could someone send {} the price list?",
    "We met {} at the fair and promised an offer.",
)
SYLLABLES = (
    *("vel", "mor", "tan", "rik", "sol", "ber", "nu", "qua"),
    *("dex", "lin", "par", "ost", "zi", "gal", "fen", "hu"),
)


def customers(draw: random.Random, number: int = 200) -> list[dict]:
    """Rows of customers.csv, with the country that is only in their description."""
    stems = set()
    while len(stems) < number:
        stems.add("".join(draw.sample(SYLLABLES, 3)).capitalize())
    rows = []
    for index, stem in enumerate(draw.sample(sorted(stems), number)):
        country = draw.choice(list(COUNTRIES))
        about = f"a {draw.choice(TRADES)} in {draw.choice(COUNTRIES[country][1])}, {country}"
        named = {"id": f"C{index:03}", "label": f"{stem} {draw.choice(FORMS)}", "aliases": stem}
        rows.append({**named, "description": about, "country": country})
    return rows


def requests(draw: random.Random, rows: list[dict], number: int = 500) -> list[dict]:
    """Rows of requests.csv."""
    found = []
    for index in range(number):
        one = rows[index * len(rows) // number]
        name = one["label"] if draw.random() < 0.7 else one["aliases"]
        desk, cities = COUNTRIES[one["country"]]
        if draw.random() < 0.4:
            name += f" from {draw.choice((one['country'], *cities))}"
        found.append({"text": draw.choice(REQUESTS).format(name), "label": desk})
    return found


def exported(rows: list[dict]) -> list[dict]:
    """The customers as somebody's software writes them."""
    made = []
    for number, row in enumerate(rows):
        trade, _, rest = row["description"].removeprefix("a ").partition(" in ")
        town, _, country = rest.partition(", ")
        named = {"Customer no.": row["id"], "Firm": row["label"], "Known as": row["aliases"]}
        made.append({**named, "Town": town, "Country": country, "Trade": trade, "Since": str(1980 + number % 40)})
    return made


def later(draw: random.Random, rows: list[dict], number: int = 10) -> list[dict]:
    """Customers that come later, with names that nobody has."""
    taken = {row["aliases"] for row in rows}
    fresh = [one for one in customers(draw, 2 * number) if one["aliases"] not in taken][:number]
    return [{**one, "id": f"C{len(rows) + index:03}"} for index, one in enumerate(fresh)]


def write(folder: Path, seed: int = 0) -> None:
    """Writes customers.csv, requests.csv, new.txt (three requests of the last customers), crm.csv and what is later."""
    draw = random.Random(seed)
    rows = customers(draw)
    asked = requests(draw, rows)
    folder.mkdir(parents=True, exist_ok=True)
    columns = ("id", "label", "aliases", "description")
    tables = (("customers.csv", columns, rows), ("requests.csv", ("text", "label"), asked))
    for file, columns, table in tables:
        with (folder / file).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(table)
    names = (rows[-1]["label"], rows[-2]["aliases"], rows[-3]["label"])
    new = [REQUESTS[number].format(name) for number, name in zip((1, 3, 0), names, strict=True)]
    (folder / "new.txt").write_text("".join(line + "\n" for line in new), encoding="utf-8")
    come = later(draw, rows)
    for file, some in (("crm.csv", rows), ("crm_later.csv", rows + come)):
        with (folder / file).open("w", newline="", encoding="utf-8") as stream:
            table = exported(some)
            writer = csv.DictWriter(stream, table[0], delimiter=";")
            writer.writeheader()
            writer.writerows(table)
    asked = "".join(REQUESTS[number].format(one["label"]) + "\n" for number, one in enumerate(come[:3]))
    (folder / "later.txt").write_text(asked, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))

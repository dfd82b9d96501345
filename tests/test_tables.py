"""The table at the end of a run, on terminals of several widths."""

import pytest
from rich.console import Console

from kinject.reports.results import row_names, row_title, shown
from kinject.reports.tables import tables_within

KINDS = ("country", "continent", "capital", "currency", "language", "size", "part", "metropolis")
ROWS = ("majority", "host", "plugin", "shuffled", "nearest_neighbour_of_kind", "nearest_neighbour", "plugin_one_kind")


@pytest.fixture(scope="module")
def domains():
    rows = {row: (number + 1) / 16 for number, row in enumerate(ROWS)}
    return {
        kind: {"metric": "accuracy", "n": 100 + number, **{row: value + number / 1000 for row, value in rows.items()}}
        for number, kind in enumerate(KINDS)
    }


@pytest.mark.parametrize(("width", "count"), [(80, 2), (250, 1)])
def test_no_title_and_no_name_is_cut(domains, width, count):
    console = Console(width=width, record=True)
    tables = tables_within(width, domains, "geography")
    assert len(tables) == count and sum(len(one.columns) - 1 for one in tables) == len(KINDS)
    for one in tables:
        console.print(one)
    text = console.export_text()
    assert "…" in text and text.count("geography, held-out accuracy, %") == count  # the mark is that of a row's name
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    for kind, rows in domains.items():
        assert kind in text and f"(n={rows['n']})" in text
        for row in ROWS:
            assert text.count(row_title(row)) >= count and shown(rows, row) in text


def test_a_look_up_told_the_kind_stands_below_the_look_up(domains):
    names = row_names(domains)
    assert names.index("nearest_neighbour_of_kind") == names.index("nearest_neighbour") + 1
    assert names.index("plugin_one_kind") == names.index("plugin") + 1

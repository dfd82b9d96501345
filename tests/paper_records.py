"""Records of the paper's tasks over the cities of tiny_world.py."""

from tiny_world import sentence

from kinject.data.records import parse_record

LANDS = ["land0", "land1", "land2"]


def relation(i=1, j=2, label="land1", **fields):
    return {**sentence(i, j), "label": label, **fields}


def typed(i=1, labels=("land0", "land2"), **fields):
    return {"text": f"a place of city{i} far .", "mentions": [mention(11, f"city{i}")], "labels": [*labels], **fields}


def asked(i=1, answers=("far away", "land1"), **fields):
    return {"text": f"city{i} is in", "mentions": [mention(0, f"city{i}")], "answers": [*answers], **fields}


def mention(start, name):
    return {"start": start, "end": start + len(name), "entity": f"Q{name.removeprefix('city')}"}


def parsed(*values):
    return [parse_record(value, f"file.jsonl:{number}") for number, value in enumerate(values, 1)]

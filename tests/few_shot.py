"""What the tests of few-shot relations share: sentences of some relations, and a host that scores pairs of them."""

from tiny_world import sentence, write_base, write_host

from kinject.data.records import parse_record
from kinject.inference.host import open_host
from kinject.knowledge.base import KnowledgeBase


def records_of(count=4, each=6):
    found = []
    for relation in range(count):
        for i in range(each):
            value = sentence(relation + 4 * i, relation + 20 + 3 * i)
            value["tokens"] = ["far"] * (i % 3) + value["tokens"] + ["place"] * (relation % 2)
            for mention in value["mentions"]:
                mention["start"], mention["end"] = mention["start"] + i % 3, mention["end"] + i % 3
            if i == 2:
                value["mentions"][1]["entity"] = "Q999"  # without a vector
            found.append(parse_record({**value, "label": f"P{relation}", "id": f"P{relation}/{i}"}, f"f:{len(found)}"))
    return found


def pair_scorer(folder):
    """A host that scores pairs, and the knowledge base of cities."""
    host = open_host(write_host(folder / "host", "pair_score"), head="pair_score")
    return host, KnowledgeBase.open(write_base(folder / "kb"))

"""A knowledge base in words for the tiny world: city i lies in land i % LANDS, which its triple and description say."""

from pathlib import Path

import numpy as np
from tiny_world import CITIES, DIM, LANDS, vectors

from kinject.knowledge.base import KnowledgeBase, write_knowledge

DESCRIBED = range(0, CITIES, 2)  # entities with a description


def write_facts(folder: Path, *, name="facts", triples=True) -> KnowledgeBase:
    """Cities Q0, Q1, … as in tiny_world, then lands L0, L1, …; entities and relations have labels."""
    ids = [*(f"Q{i}" for i in range(CITIES)), *(f"L{i}" for i in range(LANDS))]
    rows = np.concatenate([vectors(), np.zeros((LANDS, DIM), np.float32)])
    facts = [(i, 0, CITIES + i % LANDS) for i in reversed(range(CITIES))]  # not sorted by head
    facts += [(i, 1, (i + 1) % CITIES) for i in range(CITIES)]
    more = {"triples": np.array(facts, np.int32), "relations": ["is_in", "near"]} if triples else {}
    write_knowledge(
        folder,
        name=name,
        ids=ids,
        vectors=rows,
        labels=[*(f"city{i}" for i in range(CITIES)), *(f"land{i}" for i in range(LANDS))],
        descriptions=[f"a place in land{i % LANDS}" if i in DESCRIBED else "" for i in range(len(ids))],
        source="made up",
        license="none",
        **more,
    )
    return KnowledgeBase.open(folder)

"""Rows "FT + wiki mapper" and "FT + downstream mapper": fine-tuning of the raw model, slots in, the map frozen.

    python -m kinject.train --config configs/paper/fine_tuning_with_mapper.py:wiki80,wiki --workdir runs/wiki80_ft

The words are task, corpus of the map (wiki or downstream), method, epoch, knowledge graph embedding. Both maps are
tuned without dropout; without `epoch` for as many epochs as the authors'. In the table the row `host` is this host
without its slots, which it never was in training: it says nothing of a host made without knowledge.
"""

from common import (
    EPOCHS,
    KGS,
    METHODS,
    TASKS,
    config,
    downstream_mapper,
    evaluations,
    host,
    knowledge,
    read,
    reference,
    wiki_mapper,
)
from published import row

CORPORA = ("wiki", "downstream")
EPOCH = {
    "wiki": {"fewrel": 5, "wiki80": 2, "wiki_et": 2, "eq": 4},
    "downstream": {"fewrel": 3, "wiki80": 12, "wiki_et": 2, "eq": 2},
}
ARGUMENTS = (*(f"{task},{corpus}" for task in TASKS for corpus in CORPORA), "wiki80,wiki,full,2,transr")


def get_config(arg=""):
    settings = read(arg, task=TASKS, corpus=CORPORA, method=METHODS, epoch=("", *EPOCHS), kg=KGS)
    task, corpus, method = settings["task"], settings["corpus"], settings["method"]
    epoch = settings["epoch"] or EPOCH[corpus][task]
    mapper = wiki_mapper(settings, 0, epoch) if corpus == "wiki" else downstream_mapper(task, settings, epoch)
    plugged = {"plugin": reference(settings, "mapper"), "knowledge": reference(settings, "knowledge")}
    stages = {
        "knowledge": knowledge(settings, settings["kg"]),
        "mapper": mapper,
        "host": host(task, method, settings, **plugged),
        **evaluations(task, settings, {"plugin": reference(settings, "mapper")}),
    }
    published = row(f"tuned_with_{corpus}", task, method, "plugin") if settings["kg"] == "transe" else {}
    return config("fine_tuning_with_mapper", settings, stages, published)

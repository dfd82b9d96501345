"""Rows "General plug BERT, LoRA, Adapter, BitFit": a host made without knowledge, plugged at test time, no training.

    python -m kinject.train --config configs/paper/general_plug.py:wiki80,lora --workdir runs/wiki80_lora_plug

The words are task, method, dropout, epoch, knowledge graph embedding. Without dropout and epoch it is the general map
that the authors used for the cell of the table (their rule of choice is not known).
"""

from common import DROPOUTS, EPOCHS, KGS, METHODS, TASKS, config, evaluations, host, knowledge, read, wiki_mapper
from published import row

MAPPERS = {
    "fewrel": {"full": (25, 3), "lora": (35, 5), "houlsby": (35, 5), "bitfit": (25, 5)},
    "wiki80": {"full": (25, 5), "lora": (25, 5), "houlsby": (35, 5), "bitfit": (35, 4)},
    "wiki_et": {"full": (25, 3), "lora": (35, 4), "houlsby": (15, 5), "bitfit": (35, 4)},
    "eq": {"full": (35, 3), "lora": (25, 5), "houlsby": (25, 5), "bitfit": (35, 5)},
}
ARGUMENTS = (*(f"{task},{method}" for task in TASKS for method in METHODS), "wiki80,full,25,3,transr")


def get_config(arg=""):
    settings = read(arg, task=TASKS, method=METHODS, dropout=("", *DROPOUTS), epoch=("", *EPOCHS), kg=KGS)
    task, method = settings["task"], settings["method"]
    dropout, epoch = MAPPERS[task][method]
    published = row("base", task, method, "host")
    if (settings["dropout"], settings["epoch"], settings["kg"]) in (("", "", "transe"), (dropout, epoch, "transe")):
        published |= row("general", task, method, "general_plugin")
    dropout = dropout if settings["dropout"] == "" else settings["dropout"]
    stages = {
        "knowledge": knowledge(settings, settings["kg"]),
        "mapper": wiki_mapper(settings, dropout, settings["epoch"] or epoch),
        "host": host(task, method, settings),
        **evaluations(task, settings, {"general_plugin": settings["mapper"] or "@mapper"}),
    }
    return config("general_plug", settings, stages, published)

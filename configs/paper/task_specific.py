"""Row "Task-specific (BERT)": the map is tuned on the task's loss through the frozen host, from a general one.

    python -m kinject.train --config configs/paper/task_specific.py:eq --workdir runs/eq_task_specific

The words are task, method, dropout, epoch, knowledge graph embedding; dropout and epoch are those of the general map it
starts from (default: the authors'). They published the method `full` only. Where they name Adam, no schedule is known:
the rate is constant.
"""

from common import (
    DROPOUTS,
    EPOCHS,
    KGS,
    METHODS,
    REPORTS,
    TASKS,
    config,
    evaluations,
    fewrel_fit,
    hf_adamw,
    host,
    knowledge,
    on_task,
    read,
    reference,
    wiki_mapper,
)
from published import row

START = {"fewrel": (25, 3), "wiki80": (25, 5), "wiki_et": (25, 3), "eq": (35, 3)}
DROPOUT = {"fewrel": 0.35, "wiki80": 0.30, "wiki_et": 0.20, "eq": 0.10}
ADAM = {  # learning rate, epochs, batch, steps between evaluations
    "wiki80": (4e-4, 30, 64, "epoch"),
    "wiki_et": (5e-5, 2, 128, 1500),
    "eq": (2e-3, 5, 64, "epoch"),
}
FIRST_SEED = 10_000  # of the episodes: the host saw 0 to 2999
ARGUMENTS = (*TASKS, "fewrel,lora", "eq,bitfit,25,3,transr")


def plugin(task, settings):
    options = {"first_seed": FIRST_SEED} if task == "fewrel" else {}
    return {
        "kind": "plugin",
        **on_task(task, settings, **options),
        "host": reference(settings, "host"),
        "knowledge": reference(settings, "knowledge"),
        "initialise": settings["mapper"] or "@mapper",
        "dropout": DROPOUT[task],
        "fit": fit(task),
    }


def fit(task):
    if task == "fewrel":
        return fewrel_fit(hf_adamw(2e-5))
    learning_rate, epochs, batch, every = ADAM[task]
    optimizer = {"name": "adam", "learning_rate": learning_rate}
    rest = {"dropout": "all", "evaluate_every": every, "optimizer": optimizer, **REPORTS}
    return {"batch_size": batch, "epochs": epochs, **rest}


def get_config(arg=""):
    settings = read(arg, task=TASKS, method=METHODS, dropout=("", *DROPOUTS), epoch=("", *EPOCHS), kg=KGS)
    task, method = settings["task"], settings["method"]
    dropout, epoch = START[task]
    dropout = dropout if settings["dropout"] == "" else settings["dropout"]
    stages = {
        "knowledge": knowledge(settings, settings["kg"]),
        "mapper": wiki_mapper(settings, dropout, settings["epoch"] or epoch),
        "host": host(task, method, settings),
        "plugin": plugin(task, settings),
        **evaluations(task, settings, {"plugin": "@plugin", "general_plugin": settings["mapper"] or "@mapper"}),
    }
    published = row("base", task, method, "host")
    if settings["kg"] == "transe":
        published |= row("task_specific", task, method, "plugin")
    return config("task_specific", settings, stages, published)

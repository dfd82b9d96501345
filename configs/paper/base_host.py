"""Rows "Base BERT", "Base LoRA", "Base Adapter", "Base BitFit": a host without knowledge.

    python -m kinject.train --config configs/paper/base_host.py:fewrel,lora --workdir runs/fewrel_lora

The words are task, method, model; `model` may be roberta (the authors give FewRel 5-way 1-shot of it, 88.1).
"""

from common import BASES, METHODS, TASKS, config, evaluations, host, read
from published import BASE_ROBERTA_5_1, row

ARGUMENTS = (*(f"{task},{method}" for task in TASKS for method in METHODS), "fewrel,full,roberta")


def get_config(arg=""):
    settings = read(arg, task=TASKS, method=METHODS, model=tuple(BASES))
    task, method = settings["task"], settings["method"]
    published = row("base", task, method, "host")
    if settings["model"] == "roberta":
        known = task == "fewrel" and method == "full"
        published = {"evaluate_5_1.fewrel.host": round(BASE_ROBERTA_5_1 / 100, 4)} if known else {}
    stages = {"host": host(task, method, settings), **evaluations(task, settings)}
    return config("base_host", settings, stages, published)

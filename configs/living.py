"""Knowledge that lives, measured: facts changed and entities that come and go, while host and plugins stay as they are.

    python -m kinject.train --config configs/living.py --workdir runs/living
    python -m kinject.train --config configs/living.py:base=runs/quickstart --workdir runs/living

Geography, host and plugin are the quickstart's; `base=DIR` takes them from a finished run of configs/quickstart.py with
the same seed. Three more methods are put beside the plugin: Kformer and PlugLM, trained through the same host on the
same questions, and facts as text, which trains nothing. Then facts of cities that nobody was trained on are changed,
and all four are asked: the new fact, the same in other words, what follows from it, and what it must leave alone.

Then 200 cities are kept out of the graph and of all training, a plugin is tuned without them, and they are added: from
their triples, from their descriptions, from three sentences each.
"""

from quickstart import TEXT, plugin
from quickstart import get_config as quickstart

DOMAIN = "geography"
EDITS = {"country": 200, "size": 40, "part_of_country": 40, "nearest_large_city": 40}
PASSAGES = {
    "country": "[head] is a city in [tail].",
    "size": "[head] is a [tail] city.",
    "part_of_country": "[head] lies in the [tail] of its country.",
    "nearest_large_city": "The nearest large city to [head] is [tail].",
}
ANSWERS = {  # by kind of question the relations that hold its answer
    **dict.fromkeys(("country", "continent", "capital", "currency", "language"), ("country",)),
    "size": ("size", "size_of", "population"),
    "part": ("part_of_country",),
    "metropolis": ("nearest_large_city",),
}
KFORMER = {"name": "kformer", "layers": (3, 4, 5), "facts": 12, "form": "triples", "entities": 1, "retrieve": False}
PLUGLM = {"name": "pluglm", "layers": (5,), "query": "mention", "query_from": "embeddings", "beta": 10.0}
RETRIEVAL = (r"plugin/(to_key|pool)/.*", r"plugin/readers/\d+/(pool|query|query_norm)/.*")  # names find each other


def kformer():
    """Facts as neurons of the upper feed-forwards."""
    return plugin(DOMAIN, "plugin", epochs=2) | {"method": KFORMER, "initialise": "random"}


def pluglm():
    """A memory of passages, one a fact."""
    trained = plugin(DOMAIN, "plugin", epochs=4, learning_rate=3e-3)
    return {
        **{name: trained[name] for name in ("task", "host", "data")},
        "kind": "memory_plugin",
        "passages": ("@passages/passages.jsonl",),
        "length": 16,
        "refresh_every": 30,
        "method": PLUGLM,
        "train": (*((rule, "freeze") for rule in RETRIEVAL), ("plugin/.*", "train"), (".*", "freeze")),
        "fit": trained["fit"] | {"buckets": 1},
    }


def without():
    """The same graph without 200 cities that will be asked about."""
    return quickstart()["stages"][DOMAIN] | {"withheld": 200}


def lived():
    """The 200 cities come, from each kind of evidence, and go."""
    return {
        "kind": "living",
        "host": "@host",
        "compute_dtype": "bfloat16_dots",
        "knowledge": "@without/knowledge",
        "plugin": "@without_plugin",
        "withheld": "@without/withheld.jsonl",
        "data": (f"@{DOMAIN}/records/test.jsonl",),
        "trained": {"knowledge": f"@{DOMAIN}/knowledge", "plugin": f"@{DOMAIN}_plugin"},
        "answers": ANSWERS,
        "read_data": (f"@{DOMAIN}/records/plugin.jsonl",),
    }


def edited(**methods):
    """Methods before and after."""
    return {
        "kind": "edit",
        "host": "@host",
        "compute_dtype": "bfloat16_dots",
        "knowledge": f"@{DOMAIN}/knowledge",
        "data": ("@edits/records/edits.jsonl",),
        "methods": methods,
        "templates": PASSAGES,
    }


ARGUMENTS = ("base=runs/quickstart",)


def of_base(value, base):
    """Settings with what the quickstart's workdir holds in the place of stages."""
    if isinstance(value, dict):
        return {key: of_base(one, base) for key, one in value.items()}
    if isinstance(value, tuple):
        return tuple(of_base(one, base) for one in value)
    of_quickstart = isinstance(value, str) and value.startswith(("@host", f"@{DOMAIN}/", f"@{DOMAIN}_plugin"))
    return f"{base}/{value[1:]}" if of_quickstart else value


def get_config(arg=""):
    name, _, base = arg.partition("=")
    if arg and (name != "base" or not base):
        raise ValueError(f"unknown argument {arg!r}; there is base=DIR, a run of configs/quickstart.py")
    every = quickstart()["stages"]
    made = {name: every[name] for name in (DOMAIN, "biology", "host", f"{DOMAIN}_plugin")}  # biology's questions too
    stages = {
        "edits": {
            "kind": "edit_questions",
            "domain": DOMAIN,
            "knowledge": f"@{DOMAIN}/knowledge",
            "data": (f"@{DOMAIN}/records/test.jsonl", f"@{DOMAIN}/records/dev.jsonl"),
            "known_data": (f"@{DOMAIN}/records/host.jsonl",),
            "edits": EDITS,
        },
        "edit": edited(map_tuning={"plugin": f"@{DOMAIN}_plugin"}),
        "edit_text": edited(text={"plugin": TEXT}),
        "without": without(),
        "without_plugin": plugin(DOMAIN, "plugin", epochs=2) | {"knowledge": "@without/knowledge"},
        "living": lived(),
        "kformer": kformer(),
        "passages": {"kind": "passages", "knowledge": f"@{DOMAIN}/knowledge", "templates": PASSAGES},
        "pluglm": pluglm(),
        "edit_others": edited(
            kformer={"plugin": "@kformer"}, pluglm={"plugin": "@pluglm/plugin", "memory": "@pluglm/memory"}
        ),
    }
    return {"name": "living", "seed": 0, "stages": of_base(stages, base) if base else {**made, **stages}}

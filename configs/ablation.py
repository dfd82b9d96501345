"""One change to map-tuning at a time, through one frozen host: mapper, dropout, start, knowledge, steps.

    python -m kinject.train --config configs/delivery.py --workdir runs/delivery
    python -m kinject.sweep --config configs/ablation.py --config configs/ablation.py:mapper=residual_mlp \\
        --config configs/ablation.py:dropout=0.3 --seeds 0,1,2 --workdir runs/ablation

Host, questions and, unless `graph` is given, entity vectors are those of a finished run of configs/delivery.py,
`base=DIR` (default runs/delivery); so the deviation over seeds is that of training the plugin (and of the graph), not
of hosts and questions. One domain, `domain=geography`, and one pass over its 1,000 questions, a third of delivery's:
where all are at the top, nothing can be told apart.

The words: mapper, width, depth, dropout, initialise (as of a `plugin` stage), graph (transe, rotate, distmult, or
`two_hops`: TransE without the triples that hold the answers), epochs (of the graph), steps, rate (learning rate).
notebooks/2_ablations.ipynb plots what comes of it.
"""

from delivery import knowledge

SETTINGS = {
    "base": "runs/delivery",
    "domain": "geography",
    "mapper": "affine",
    "width": 256,
    "depth": 1,
    "dropout": 0.0,
    "initialise": "ridge_label",
    "graph": None,
    "epochs": 10,
    "steps": 40,
    "rate": 1e-3,
    "batch": 25,
}
ARGUMENTS = ("mapper=residual_mlp,depth=2", "initialise=zero", "graph=rotate", "graph=two_hops")


def settings_of(arg):
    settings = dict(SETTINGS)
    for part in filter(None, arg.split(",")):
        name, _, value = part.partition("=")
        if name not in settings or not value:
            raise ValueError(f"unknown setting {part!r}; there is {', '.join(SETTINGS)}")
        settings[name] = type(settings[name] or "")(value)
    return settings


def get_config(arg=""):
    settings = settings_of(arg)
    records, domain = f"{settings['base']}/{settings['domain']}/records", settings["domain"]
    base, stages = f"{settings['base']}/{domain}/knowledge", {}
    if settings["graph"] is not None:
        whole = settings["graph"] != "two_hops"
        stages[domain] = knowledge(domain, settings["epochs"], **({} if whole else {"answer_triples": False}))
        stages[domain]["graph"]["method"] = settings["graph"] if whole else "transe"
        base = f"@{domain}/knowledge"
    steps = settings["steps"]
    stages["plugin"] = {
        "kind": "plugin",
        "task": "cloze",
        "host": f"{settings['base']}/host",
        "knowledge": base,
        "data": (f"{records}/plugin.jsonl",),
        "dev_data": (f"{records}/dev.jsonl",),
        "method": {"name": "map_tuning", **{name: settings[name] for name in ("mapper", "width", "depth", "dropout")}},
        "initialise": settings["initialise"],
        "dropout": 0.0,  # of the host: the mapper's own is what is asked for
        "fit": {
            "dropout": "all" if settings["dropout"] else "none",
            "batch_size": settings["batch"],
            "steps": steps,
            "log_every": 5,
            "evaluate_every": max(1, steps // 4),
            "optimizer": {"name": "adam", "learning_rate": settings["rate"], "schedule": "linear", "clip": 1.0},
        },
    }
    stages["evaluate"] = {
        "kind": "evaluate",
        "task": "cloze",
        "host": f"{settings['base']}/host",
        "domains": {
            domain: {"knowledge": base, "data": (f"{records}/test.jsonl",), "plugins": {"plugin": "@plugin"}},
        },
    }
    return {"name": f"ablation{':' if arg else ''}{arg}", "seed": 0, "stages": stages}

"""Learning rates of every method that trains: a few each, alike otherwise, chosen by development questions.

    python -m kinject.train --config configs/quickstart.py --workdir runs/quickstart
    python -m kinject.sweep --config configs/rates.py:kformer --config configs/rates.py:kformer,domain=biology \\
        --workdir runs/rates

Host, knowledge and questions are those of a finished run of configs/quickstart.py, `base=DIR` (default
runs/quickstart): of one kind, as a job of one's own has, or with `questions=all` of all kinds. Each method is trained
as `kinject tune` trains it where nothing else is said (`ready_fit`: AdamW, batches of 20, linear decay after a warmup),
for `steps`, once with each of the `rates` (`0.0003+0.001`), and is asked the development questions: results.md has
`rate_0_001.dev_accuracy`, and so on. Sizes are cut to the host as in configs/compare.py, but Kformer reads five facts,
which BM25 may find, and DKPLM is the paper's. `--seeds 0,1,2` draws the order of questions and the start anew; host and
knowledge stay. What came of it: docs/tuning.md.
"""

from compare import METHODS, PASSAGES, RETRIEVAL
from quickstart import DOMAINS

from kinject.training.config import ready_fit

SETTINGS = {
    "base": "runs/quickstart",
    "domain": "geography",
    "questions": "one_kind",
    "steps": 40,
    "rates": "0.0003+0.001+0.003+0.01",
}
PLUGLM = {"name": "pluglm", "layers": (5,), "query": "mention", "query_from": "embeddings", "beta": 10.0}
TRAINED = (*METHODS, "k_adapter_combination", "pluglm")
ARGUMENTS = ("kformer", "k_adapter_combination,steps=5,rates=0.001", "pluglm,domain=biology")


def settings_of(arg):
    method, *parts = (arg or "map_tuning").split(",")
    if method not in TRAINED:
        raise ValueError(f"unknown method {method!r}; there is {', '.join(TRAINED)}")
    settings = dict(SETTINGS)
    for part in filter(None, parts):
        name, _, value = part.partition("=")
        if name not in settings or not value:
            raise ValueError(f"unknown setting {part!r}; there is {', '.join(SETTINGS)}")
        settings[name] = type(settings[name])(value)
    if settings["questions"] not in ("one_kind", "all"):
        raise ValueError(f"questions are {settings['questions']!r}; there is one_kind, all")
    return method, settings


def fit(method, steps, rate):
    """What `kinject tune` takes, but for the steps, the rate, and the quickstart's faster units."""
    made = ready_fit(method)
    del made["epochs"]
    optimizer = {**made["optimizer"], "learning_rate": rate}
    return {**made, "steps": steps, "compute_dtype": "bfloat16_dots", "buckets": 1, "optimizer": optimizer}


def trained(method, settings, rate, domain=None):
    """The method on the domain's plugin questions, through the frozen host."""
    domain = domain or settings["domain"]
    kind = f"_{DOMAINS[domain]}" if settings["questions"] == "one_kind" else ""
    records, knowledge = (f"{settings['base']}/{domain}/{one}" for one in ("records", "knowledge"))
    shared = {
        "task": "cloze",
        "host": f"{settings['base']}/host",
        "data": (f"{records}/plugin{kind}.jsonl",),
        "dev_data": (f"{records}/dev{kind}.jsonl",),
        "fit": fit(method, settings["steps"], rate),
    }
    if method == "pluglm":
        rules = (*((rule, "freeze") for rule in RETRIEVAL), ("plugin/.*", "train"), (".*", "freeze"))
        found = {"passages": ("@passages/passages.jsonl",), "length": 16, "refresh_every": 25}
        return {"kind": "memory_plugin", "method": PLUGLM, "train": rules, **found, **shared}
    made = {"kind": "plugin", "knowledge": knowledge, "method": {"name": method}, **METHODS.get(method, {}), **shared}
    if method.startswith("k_adapter"):
        made["knowledge"] = None  # it reads none, and two of two domains can then be one
    return made | {"initialise": "auto"}


def get_config(arg=""):
    method, settings = settings_of(arg)
    stages, more = {}, {}
    if method == "pluglm":
        knowledge, templates = f"{settings['base']}/{settings['domain']}/knowledge", PASSAGES[settings["domain"]]
        stages["passages"] = {"kind": "passages", "knowledge": knowledge, "templates": templates}
    if method == "k_adapter_combination":
        for domain in ("geography", "biology"):
            rate = ready_fit("k_adapter")["optimizer"]["learning_rate"]
            stages[f"adapter_{domain}"] = trained("k_adapter", settings, rate, domain)
        more["parts"] = {domain: f"@adapter_{domain}" for domain in ("geography", "biology")}
    for rate in settings["rates"].split("+"):
        stages["rate_" + rate.replace(".", "_")] = {**trained(method, settings, float(rate)), **more}
    return {"name": f"rates:{arg or 'map_tuning'}", "seed": 0, "stages": stages}

"""Methods beside each other on the main job: one frozen host, the quickstart's questions of many kinds.

    python -m kinject.sweep --config configs/compare.py --seeds 0,1,2 --workdir runs/compare_seeds
    python -m kinject.train --config configs/compare.py:domain=biology --workdir runs/compare_biology
    python -m kinject.train --config configs/compare.py:base=runs/quickstart,steps=40 --workdir runs/compare_small

Knowledge, host and map-tuning are stages of configs/quickstart.py as they stand there. Every other method that is
trained is trained through that frozen host on the same questions of one domain, in as many steps and batches, with Adam
at the same rate; PlugLM alone has another rate and more steps. All are asked about entities and in wordings that
neither host nor plugin has seen. E-BERT, PELT, the closed form and text at test train nothing.

E-BERT wants vectors that come with words. A graph's do not, so its words are the entities whose label is one piece of
the host's. PELT reads the host's own outputs over the domain's triples as sentences, the name hidden. DKPLM's pseudo
token is made of the vectors of one triple of the entity, as released; the name itself goes. K-Adapter is cut to the
host (three units of one layer, 128 wide, where the paper's has two of 768); the combination joins the adapters of
both domains. PlugLM has one memory layer, the last, finds by names as in configs/pluglm.py, and reads the same
sentences as PELT.

`base=DIR` is the small one, of minutes: `steps` steps through the host of a finished run of configs/quickstart.py, on
its knowledge and questions, without PlugLM and the combination.
"""

from quickstart import DOMAINS, TEXT, host, knowledge
from quickstart import plugin as map_tuning

PRECISION = "bfloat16_dots"
NORM = 1.1  # of the vectors of PELT: as long as the host's own words are
LONGER = 5  # epochs of PlugLM, whose gate starts at zero and has hardly opened after two
METHODS = {  # sizes cut to the host; configs/rates.py takes them too
    "map_tuning": {},
    "kformer": {
        "method": {"name": "kformer", "layers": (3, 4, 5), "facts": 5, "entities": 1},
        "initialise": "random",
    },
    "k_adapter": {
        "method": {"name": "k_adapter", "width": 128, "depth": 1, "heads": 4, "feed_forward": 512},
        "initialise": "random",
    },
    "dkplm": {"method": {"name": "dkplm", "variant": "paper", "text_length": 16}, "initialise": "random"},
}
HERE = {  # what differs here: more kinds ask for more facts, and DKPLM's texts would take most of the time
    "kformer": {"facts": 8, "form": "triples", "retrieve": False},
    "dkplm": {"variant": "easynlp"},
}
TRAINED = ("kformer", "k_adapter", "dkplm")
PASSAGES = {
    "geography": {
        "country": "[head] is a city in [tail].",
        "admin1": "[head] is in the region [tail].",
        "timezone": "[head] has the time zone [tail].",
        "size": "[head] is a city of [tail] size.",
        "part_of_country": "[head] is in the [tail] of the country.",
        "nearest_large_city": "the large city near [head] is [tail].",
    },
    "biology": {
        "hypernym": "[head] is a kind of [tail].",
        "member_of": "[head] is a member of [tail].",
        "kingdom": "the [head] belongs to the [tail]s.",
        "found_in": "[head] is found in [tail].",
        "size": "[head] is of [tail] size.",
        "colour": "the colour of [head] is [tail].",
        "family": "[head] is of the [tail] family.",
    },
}
RETRIEVAL = (r"plugin/(to_key|pool)/.*", r"plugin/readers/\d+/(pool|query|query_norm)/.*")
UNITS = (("plugin/.*units/.*", "freeze"), ("plugin/.*", "train"), (".*", "freeze"))


def trained(domain, method, epochs=2, **optimizer):
    """A method on the domain's plugin questions, as the quickstart's map is trained."""
    made = map_tuning(domain, "plugin", epochs=epochs, **optimizer) | METHODS[method]
    if method == "k_adapter":
        del made["knowledge"]  # it reads none
    return made | {"method": made["method"] | HERE.get(method, {})}


def closed_form(domain):
    """Map-tuning's start: one step that changes nothing."""
    stage = map_tuning(domain, "plugin", epochs=1, learning_rate=1e-12)
    stage["fit"] = {name: value for name, value in stage["fit"].items() if name != "epochs"} | {"steps": 1}
    return stage


def combination(domain):
    """The K-Adapters of both domains, joined anew for one of them; their units stay."""
    made = trained(domain, "k_adapter", epochs=1)
    made |= {"method": {"name": "k_adapter_combination"}, "train": UNITS}
    return made | {"parts": {each: f"@{each}_k_adapter" for each in DOMAINS}}


def pluglm(domain):
    """PlugLM's port on the same questions, with the domain's sentences as passages."""
    made = trained(domain, "k_adapter", LONGER, learning_rate=3e-3)
    del made["initialise"]
    return made | {
        "kind": "memory_plugin",
        "passages": (f"@{domain}_sentences/passages.jsonl",),
        "length": 16,
        "refresh_every": 25,
        "method": {"name": "pluglm", "layers": (5,), "query": "mention", "query_from": "embeddings", "beta": 10.0},
        "train": (*((rule, "freeze") for rule in RETRIEVAL), ("plugin/.*", "train"), (".*", "freeze")),
    }


def made_of(domain):
    """The stages of a domain beside knowledge, host and map-tuning."""
    sentences = {"kind": "passages", "knowledge": f"@{domain}/knowledge", "templates": PASSAGES[domain]}
    texts = {"texts": (f"@{domain}_sentences/passages.jsonl",), "most": 3, "least": 1, "max_length": 32}
    return {
        f"{domain}_closed_form": closed_form(domain),
        f"{domain}_e_bert": {"kind": "e_bert", "host": "@host", "knowledge": f"@{domain}/knowledge"},
        f"{domain}_sentences": sentences,
        f"{domain}_pelt": {"kind": "text_vectors", "host": "@host", **texts},
        **{f"{domain}_{method}": trained(domain, method) for method in TRAINED},
        f"{domain}_pluglm": pluglm(domain),
    }


def compared(domain):
    """All methods of a domain."""
    rows = {"map_tuning": {"plugin": f"@{domain}_plugin"}}
    rows |= {method: {"plugin": f"@{domain}_{method}"} for method in ("closed_form", "e_bert", *TRAINED)}
    rows["pelt"] = {"plugin": {"name": "pelt", "norm": NORM}, "knowledge": f"@{domain}_pelt/knowledge"}
    rows["k_adapters_combined"] = {"plugin": f"@{domain}_combination"}
    rows["pluglm"] = {"plugin": f"@{domain}_pluglm/plugin", "memory": f"@{domain}_pluglm/memory"}
    rows["text_at_test"] = {"plugin": TEXT}
    data = (f"@{domain}/records/test.jsonl",)
    return {"knowledge": f"@{domain}/knowledge", "data": data, "by_kind": True, "methods": rows}


def compare_stage(domain, rows):
    common = {"kind": "compare", "task": "cloze", "host": "@host", "compute_dtype": PRECISION}
    return common | {"repeats": 5, "timed": 100, "domains": {domain: rows}}


def settings_of(arg):
    settings = {"base": None, "domain": "geography", "steps": None}
    for part in filter(None, arg.split(",")):
        name, _, value = part.partition("=")
        if name not in settings or not value:
            raise ValueError(f"unknown setting {part!r}; there is {', '.join(settings)}")
        settings[name] = int(value) if name == "steps" else value
    if settings["domain"] not in DOMAINS:
        raise ValueError(f"domain is {settings['domain']!r}; there is {', '.join(DOMAINS)}")
    if settings["steps"] is not None and settings["base"] is None:
        raise ValueError("steps are of the small comparison: name a run of configs/quickstart.py, base=DIR")
    return settings


def of_base(value, base, domain):
    """Settings with what the quickstart's workdir holds in the place of stages."""
    if isinstance(value, dict):
        return {key: of_base(one, base, domain) for key, one in value.items()}
    if isinstance(value, tuple):
        return tuple(of_base(one, base, domain) for one in value)
    made = ("@host", f"@{domain}_plugin")
    of_quickstart = isinstance(value, str) and (value in made or value.startswith(f"@{domain}/"))
    return f"{base}/{value[1:]}" if of_quickstart else value


def small(base, domain, steps):
    """The methods that train in seconds, and those that train nothing."""
    stages = made_of(domain)
    del stages[f"{domain}_pluglm"]
    for stage in stages.values():
        if "fit" in stage and stage["fit"].pop("epochs", None):
            stage["fit"]["steps"] = steps or 40
    rows = compared(domain)
    del rows["methods"]["pluglm"], rows["methods"]["k_adapters_combined"]  # the second wants both domains
    stages["compare"] = compare_stage(domain, rows)
    return {"name": f"compare_small:{domain}", "seed": 0, "stages": of_base(stages, base, domain)}


ARGUMENTS = ("base=runs/quickstart", "domain=biology")


def get_config(arg=""):
    settings = settings_of(arg)
    if settings["base"] is not None:
        return small(**settings)
    domain = settings["domain"]
    (other,) = (one for one in DOMAINS if one != domain)
    return {
        "name": f"compare:{domain}",
        "seed": 0,
        "stages": {
            "geography": knowledge("geography", 12),
            "biology": knowledge("biology", 24, host_questions=1, plugin_questions=2),
            "host": host(),
            f"{domain}_plugin": map_tuning(domain, "plugin", epochs=2),
            **made_of(domain),
            f"{other}_k_adapter": trained(other, "k_adapter"),
            f"{domain}_combination": combination(domain),
            "compare": compare_stage(domain, compared(domain)),
        },
    }

"""Methods beside each other: one frozen host, configs/delivery.py's domains, the same questions, steps and batch.

    python -m kinject.train --config configs/compare.py --workdir runs/compare
    python -m kinject.sweep --config configs/compare.py --seeds 0,1,2 --workdir runs/compare_seeds
    python -m kinject.sweep --config configs/compare.py:base=runs/delivery,steps=60 --workdir runs/compare_small

The host is delivery's: MiniLM-L6, tuned on questions without knowledge, then frozen. Every method is trained
through it on delivery's plugin questions, eight epochs in batches of 25 with Adam, and asked about entities that
neither saw. Retrieved text trains nothing: it stands behind the question at test only, once whole and once without the
facts that hold the answer; and for a host that was tuned with such texts, on the domain's own host questions.

DKPLM's pseudo token is made of a triple of the entity, in words; the name itself goes. K-Adapter is cut to the host
(three units of one layer, 128 wide, where the paper's has two of 768). PlugLM has one memory layer, the last, and
finds by names as in configs/pluglm.py; its passages are the domain's triples as sentences, without those between
cities. Learning rates were not searched; map-tuning's was, for delivery.

`base=DIR` is the small one, of minutes: methods of one domain (`domain=geography`), `steps` steps through the host of
a finished run of configs/delivery.py, on its knowledge and questions, without PlugLM and hosts with texts.
"""

from delivery import DOMAINS, host, knowledge, plugin

TEXT = {"name": "retrieved_text", "entities": 1, "budget": 64}
METHODS = {
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

PASSAGES = {
    "geography": {
        "country": "[head] is a city in [tail].",
        "admin1": "[head] is in the region [tail].",
        "timezone": "[head] has the time zone [tail].",
    },
    "biology": {
        "hypernym": "[head] is a kind of [tail].",
        "instance_hypernym": "[head] is one [tail].",
        "member_of": "[head] is a member of [tail].",
    },
}
RETRIEVAL = (r"plugin/(to_key|pool)/.*", r"plugin/readers/\d+/(pool|query|query_norm)/.*")


def fit(domain, **optimizer):
    """Delivery's, for longer: PlugLM's gate starts at zero and has hardly opened after three epochs."""
    shared = plugin(domain)["fit"]
    return shared | {"epochs": 8, "optimizer": shared["optimizer"] | optimizer}


def trained(domain, method):
    """The method on the domain's plugin questions."""
    return plugin(domain, fit=fit(domain), **METHODS[method])


def pluglm(domain):
    """PlugLM's port on the same questions, with the domain's passages."""
    shared = plugin(domain)
    return {
        **{name: shared[name] for name in ("task", "host", "data", "dev_data")},
        "kind": "memory_plugin",
        "passages": (f"@{domain}_passages/passages.jsonl",),
        "length": 16,
        "refresh_every": 25,
        "method": {"name": "pluglm", "layers": (5,), "query": "mention", "query_from": "embeddings", "beta": 10.0},
        "train": (*((rule, "freeze") for rule in RETRIEVAL), ("plugin/.*", "train"), (".*", "freeze")),
        "fit": fit(domain, learning_rate=3e-3),
    }


def text_host(domain):
    """A host tuned with texts behind the questions; one domain's, as a text comes from one knowledge base."""
    return host() | {
        "data": (f"@{domain}/records/host.jsonl",),
        "dev_data": (f"@{domain}/records/dev.jsonl",),
        "plugin": TEXT,
        "knowledge": f"@{domain}/knowledge",
    }


def compared(domain):
    """All methods of a domain."""
    rows = {method: {"plugin": f"@{domain}_{method}"} for method in METHODS}
    rows["pluglm"] = {"plugin": f"@{domain}_pluglm/plugin", "memory": f"@{domain}_pluglm/memory"}
    rows["text_at_test"] = {"plugin": TEXT}
    rows["text_at_test_without_answer"] = {"plugin": TEXT | {"drop_answers": True}}
    rows["text_trained_host"] = {"plugin": TEXT, "host": f"@{domain}_text_host"}
    rows["text_trained_host_without_answer"] = {
        "plugin": TEXT | {"drop_answers": True},
        "host": f"@{domain}_text_host",
    }
    return {"knowledge": f"@{domain}/knowledge", "data": (f"@{domain}/records/test.jsonl",), "methods": rows}


def settings_of(arg):
    settings = {"base": None, "domain": "geography", "steps": 60}
    for part in filter(None, arg.split(",")):
        name, _, value = part.partition("=")
        if name not in settings or not value:
            raise ValueError(f"unknown setting {part!r}; there is {', '.join(settings)}")
        settings[name] = int(value) if name == "steps" else value
    if arg and settings["base"] is None:
        raise ValueError("domain and steps are of the small comparison: name a run of configs/delivery.py, base=DIR")
    return settings


def of_base(value, base, domain):
    """Settings with what delivery's workdir holds in the place of stages."""
    if isinstance(value, dict):
        return {key: of_base(one, base, domain) for key, one in value.items()}
    if isinstance(value, tuple):
        return tuple(of_base(one, base, domain) for one in value)
    of_delivery = isinstance(value, str) and (value == "@host" or value.startswith(f"@{domain}/"))
    return f"{base}/{value[1:]}" if of_delivery else value


def small(base, domain, steps):
    """The methods that train in seconds, and texts, which train nothing."""
    stages = {f"{domain}_{method}": trained(domain, method) for method in METHODS}
    for stage in stages.values():
        del stage["fit"]["epochs"]
        stage["fit"]["steps"] = steps
    rows = {row: one for row, one in compared(domain)["methods"].items() if "host" not in one and "memory" not in one}
    stages["compare"] = {
        **{"kind": "compare", "task": "cloze", "host": "@host", "repeats": 3, "timed": 100},
        "domains": {domain: compared(domain) | {"methods": rows}},
    }
    return {"name": f"compare_small:{domain}", "seed": 0, "stages": of_base(stages, base, domain)}


ARGUMENTS = ("base=runs/delivery",)


def get_config(arg=""):
    settings = settings_of(arg)
    if settings["base"] is not None:
        return small(**settings)
    return {
        "name": "compare",
        "seed": 0,
        "stages": {
            "geography": knowledge("geography", epochs=10, answer_triples=True),
            "biology": knowledge("biology", epochs=50),
            "host": host(),
            **{f"{domain}_{method}": trained(domain, method) for domain in DOMAINS for method in METHODS},
            **{
                f"{domain}_passages": {
                    "kind": "passages",
                    "knowledge": f"@{domain}/knowledge",
                    "templates": PASSAGES[domain],
                }
                for domain in DOMAINS
            },
            **{f"{domain}_pluglm": pluglm(domain) for domain in DOMAINS},
            **{f"{domain}_text_host": text_host(domain) for domain in DOMAINS},
            "compare": {
                "kind": "compare",
                "task": "cloze",
                "host": "@host",
                "domains": {domain: compared(domain) for domain in DOMAINS},
            },
        },
    }

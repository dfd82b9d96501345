"""Methods beside each other: one frozen host, the quickstart's two domains, the same questions, steps and batch.

    python -m kinject.train --config configs/compare.py --workdir runs/compare
    python -m kinject.sweep --config configs/compare.py --seeds 0,1,2 --workdir runs/compare_seeds

The host is the quickstart's: MiniLM-L6, tuned on questions without knowledge, then frozen. Every method is trained
through it on the quickstart's plugin questions, three epochs in batches of 25 with Adam, and asked about entities that
neither saw. Retrieved text trains nothing: it stands behind the question at test only, once whole and once without the
facts that hold the answer; and for a host that was tuned with such texts, on the domain's own host questions.

K-Adapter is cut to the host (three units of one layer, 128 wide, where the paper's has two of 768). Learning rates were
not searched; map-tuning's was, for the quickstart. PlugLM, whose memory has stages of its own, is in configs/pluglm.py.
"""

from quickstart import DOMAINS, host, knowledge, plugin

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
}


def trained(domain, method):
    """The method on the domain's plugin questions."""
    return plugin(domain, **METHODS[method])


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
    rows["text_at_test"] = {"plugin": TEXT}
    rows["text_at_test_without_answer"] = {"plugin": TEXT | {"drop_answers": True}}
    rows["text_trained_host"] = {"plugin": TEXT, "host": f"@{domain}_text_host"}
    rows["text_trained_host_without_answer"] = {
        "plugin": TEXT | {"drop_answers": True},
        "host": f"@{domain}_text_host",
    }
    return {"knowledge": f"@{domain}/knowledge", "data": (f"@{domain}/records/test.jsonl",), "methods": rows}


def get_config(arg=""):
    if arg:
        raise ValueError(f"unknown argument {arg!r}; there is none")
    return {
        "name": "compare",
        "seed": 0,
        "stages": {
            "geography": knowledge("geography", epochs=10, answer_triples=True),
            "biology": knowledge("biology", epochs=50),
            "host": host(),
            **{f"{domain}_{method}": trained(domain, method) for domain in DOMAINS for method in METHODS},
            **{f"{domain}_text_host": text_host(domain) for domain in DOMAINS},
            "compare": {
                "kind": "compare",
                "task": "cloze",
                "host": "@host",
                "domains": {domain: compared(domain) for domain in DOMAINS},
            },
        },
    }

"""LAMA in all its parts, and LAMA-UHN, with the published figures beside.

    python -m kinject.train --config configs/lama.py:bert --workdir runs/lama
    python -m kinject.train --config configs/lama.py:bert,knowledge=KB,plugin=runs/mine/plugin --workdir runs/lama_mine

The words are the host, bert or roberta; `host=`, `data_dir=` (of the prepared data sets), `candidates=` (LAMA's common
vocabulary, for figures that compare across hosts), `knowledge=` and `plugin=` (a folder; `pelt` is the method without
parameters). Prepare the six data sets first: docs/propagation.md.
"""

SETS = ("google_re", "trex", "conceptnet", "squad", "google_re_uhn", "trex_uhn")
HOSTS = {"bert": "bert-base-cased", "roberta": "roberta-base"}
PUBLISHED = {  # precision at 1, %: KEPLER (Wang et al., TACL 2021), table 11
    "bert": (9.8, 31.1, 15.6, 14.1, 4.7, 21.8),
    "roberta": (5.3, 24.7, 19.5, 9.1, 2.2, 17.0),
}


def get_config(arg="bert"):
    words = [word for word in arg.split(",") if "=" not in word and word]
    given = dict(word.split("=", 1) for word in arg.split(",") if "=" in word)
    name = words[0] if words else "bert"
    if name not in HOSTS or set(given) - {"host", "data_dir", "candidates", "knowledge", "plugin"}:
        raise ValueError(f"{arg!r}: say bert or roberta, then host=, data_dir=, candidates=, knowledge=, plugin=")
    data_dir = given.get("data_dir", "data")
    plugin = given.get("plugin")
    plugins = {} if plugin is None else {"plugin": {"name": "pelt"} if plugin == "pelt" else plugin}
    known = {"knowledge": given["knowledge"]} if "knowledge" in given else {}
    stages, published = {}, {}
    for one, figure in zip(SETS, PUBLISHED[name], strict=True):
        domain = {**known, "data": (f"tfds:lama/{one}@{data_dir}?split=test",), "plugins": plugins}
        stages[one] = {
            "kind": "evaluate",
            "task": "lama",
            "task_options": {"candidates": given["candidates"]} if "candidates" in given else {},
            "host": given.get("host", HOSTS[name]),
            "domains": {one: domain},
        }
        published[f"{one}.{one}.host"] = figure / 100
    return {"name": "lama", "seed": 0, "stages": stages, "published": published}

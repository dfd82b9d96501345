"""Rows "Transfer PubMed BERT" and "… RoBERTa": a host of FewRel 1.0, a map of UMLS, PubMed sentences (FewRel 2.0).

    python -m kinject.train --config configs/paper/domain_transfer.py:bert --workdir runs/pubmed
    python -m kinject.train --config configs/paper/domain_transfer.py:bert,public --workdir runs/pubmed_public

The words are model (bert, roberta) and data. `authors` needs their own split of FewRel 2.0 (train_fewPubmed.json,
test_fewPubmed.json), which is not public. `public` trains the map on the first five relations of val_pubmed.json and
tests on the other five, so 5-way only; there is no published number for it. The dropout rate in this training is not
known: it is the model's own.
"""

from common import BASES, TASK_NAMES, config, evaluations, fewrel_fit, hf_adamw, host, read, reference, task_options
from published import TRANSFER, places

DATA = ("authors", "public")
PARTS = {
    "authors": {"train": "train_fewPubmed", "dev": "val_fewPubmed", "test": "test_fewPubmed"},
    "public": {"train": "val_pubmed", "test": "val_pubmed"},
}
SLICES = {"train": "?split=validation[:500]", "test": "?split=validation[500:]"}  # 100 sentences a relation
ARGUMENTS = tuple(f"{model},{data}" for model in BASES for data in DATA)


def pubmed(settings, part):
    name = PARTS[settings["data"]].get(part)
    split = SLICES[part] if settings["data"] == "public" and name else ""
    return (f"tfds:fewrel/{name}@{settings['data_dir']}{split}",) if name else ()


def umls(settings):
    if settings["knowledge"]:
        return None
    folder = f"{settings['embeddings']}/wikimedia"  # the authors' name of it
    return {
        "kind": "import_knowledge",
        "format": "umls",
        "files": {"vectors": f"{folder}/transe.npy", "entities": f"{folder}/entities.tsv"},
        "options": {"name": "umls_transe", "source": "github.com/thunlp/Knowledge-Plugin"},
    }


def get_config(arg=""):
    settings = read(arg, model=tuple(BASES), data=DATA)
    plugin = {
        "kind": "plugin",
        "task": TASK_NAMES["fewrel"],
        "task_options": task_options("fewrel", settings),
        "host": reference(settings, "host"),
        "knowledge": reference(settings, "knowledge"),
        "data": pubmed(settings, "train"),
        "dev_data": pubmed(settings, "dev"),
        "max_length": 512,
        "initialise": "random",
        "fit": fewrel_fit(hf_adamw(5e-4)),
    }
    domain = {"data": pubmed(settings, "test"), "plugins": {"plugin": "@plugin"}}
    tests = evaluations("fewrel", settings, domain["plugins"], domain)
    published = places("fewrel", TRANSFER[settings["model"]], "plugin") if settings["data"] == "authors" else {}
    if settings["data"] == "public":
        tests = {name: stage for name, stage in tests.items() if stage["task_options"]["n_way"] == 5}
    stages = {"knowledge": umls(settings), "host": host("fewrel", "full", settings), "plugin": plugin, **tests}
    return config("domain_transfer", settings, stages, published)

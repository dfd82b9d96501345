"""Shared by the configs of map-tuning's tables (Zhang et al., ACL 2023; github.com/thunlp/Knowledge-Plugin).

Tasks are `fewrel`, `wiki80`, `wiki_et`, `eq` (EntityQuestions); methods `full`, `lora`, `houlsby`, `bitfit`. What every
config takes beside its own words, after them and in any order:

    data_dir=DIR    where `python -m kinject.datasets prepare` put the data sets (default: data)
    embeddings=DIR  the unpacked knowledge_embedding.tar of the authors (default: knowledge_embedding)
    base=MODEL      folder or hub id (default: bert-base-uncased, or roberta-base)
    knowledge=DIR, mapper=DIR, host=DIR   what a run made before, instead of making it again
    test=test_wiki  FewRel's hidden test file, if you have it; then the validation file chooses the checkpoint

Their optimizer for hosts is Hugging Face's AdamW, whose epsilon is 1e-6. Their losses of a FewRel step are added up
where ours are averaged. Where the authors' settings are not known, a comment says what was taken.
"""

from published import FEWREL_SETTINGS

TASKS = ("fewrel", "wiki80", "wiki_et", "eq")
METHODS = ("full", "lora", "houlsby", "bitfit")
KGS = ("transe", "transr")
DROPOUTS = (0, 15, 25, 35, 45)
EPOCHS = (1, 2, 3, 4, 5)
BASES = {"bert": "bert-base-uncased", "roberta": "roberta-base"}
PLACES = {"data_dir": "data", "embeddings": "knowledge_embedding", "test": "val_wiki"}
GIVEN = ("base", "knowledge", "mapper", "host")

TASK_NAMES = {
    "fewrel": "few_shot_relations",
    "wiki80": "relation_classification",
    "wiki_et": "entity_typing",
    "eq": "entity_questions",
}
DATASETS = {"wiki80": "wiki80/files", "wiki_et": "wiki_et/wikidata", "eq": "entity_questions/linked"}
MAX_LENGTH = {"fewrel": 512, "wiki80": 128, "wiki_et": 64, "eq": 64}
EPISODES_A_STEP = 4
QUERIES = 5
FEWREL_ROWS = EPISODES_A_STEP * 5 * QUERIES  # 5-way: rows a step
FEWREL_CHECK = 75  # steps

LEARNING_RATE = {
    "fewrel": {"full": 2e-5, "lora": 8e-4, "houlsby": 5e-4, "bitfit": 8e-4},
    "wiki80": {"full": 5e-5, "lora": 2e-3, "houlsby": 2e-3, "bitfit": 2e-3},
    "wiki_et": {"full": 1e-5, "lora": 1e-3, "houlsby": 1e-3, "bitfit": 1e-3},
    "eq": {"full": 1e-4, "lora": 5e-4, "houlsby": 5e-4, "bitfit": 5e-4},
}
LORA = {
    "fewrel": (32, ("query", "key", "up")),
    "wiki80": (32, ("query", "key", "up")),
    "wiki_et": (4, ("query", "key")),
    "eq": (4, ("query", "key", "up")),
}
REPORTS = {"log_every": 100, "checkpoint_every": 1000}


def read(arg, **words):
    """The settings in an argument: words by place, then name=value.

    Args:
      arg: what stands behind the colon of --config.
      words: name -> what it may be; the first is the default, and all after a missing one have to be named.
    """
    settings = {name: known[0] for name, known in words.items()} | PLACES | dict.fromkeys(GIVEN)
    names = list(words)
    for number, part in enumerate(filter(None, arg.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            if number >= len(names):
                raise ValueError(f"{part!r} is one word too many; they are {', '.join(names)}")
            name, value = names[number], part
        if name not in settings:
            raise ValueError(f"unknown setting {name!r}; there is {', '.join(settings)}")
        if name in words:
            known = {str(one): one for one in words[name]}
            if value not in known:
                raise ValueError(f"{name} is {value!r}; there is {', '.join(known)}")
            value = known[value]
        settings[name] = value
    return settings


def config(name, settings, stages, published=None):
    """The whole config; a stage that is None was made by another run."""
    words = (f"{key}={value}" for key, value in settings.items() if key not in (*PLACES, *GIVEN))
    return {
        "name": f"paper/{name} {' '.join(words)}".strip(),
        "seed": 233,
        "stages": {key: stage for key, stage in stages.items() if stage is not None},
        "published": published or {},
    }


def reference(settings, name):
    """What another run made, or what this run's stage of that name makes."""
    return settings[name] or {"knowledge": "@knowledge/knowledge"}.get(name, f"@{name}")


def data(task, split, settings):
    """References of a task's split: train, dev or test; () where there is none."""
    if task == "fewrel":
        files = {"train": "train_wiki", "test": settings["test"]}
        if settings["test"] == "test_wiki":
            files["dev"] = "val_wiki"  # else it is what is tested, and may choose nothing
        return (f"tfds:fewrel/{files[split]}@{settings['data_dir']}",) if split in files else ()
    split = {"dev": "validation"}.get(split, split)
    return (f"tfds:{DATASETS[task]}@{settings['data_dir']}?split={split}",)


def task_options(task, settings, n_way=5, k_shot=1, first_seed=0):
    options = {"protocol": "thunlp"}
    if task == "fewrel":
        episodes = {"n_way": n_way, "k_shot": k_shot, "queries": QUERIES, "episodes": 3000, "first_seed": first_seed}
        return options | episodes
    if task in ("wiki80", "wiki_et"):
        return options | {"labels": f"tfds:{DATASETS[task]}@{settings['data_dir']}"}
    return options


def on_task(task, settings, **options):
    """What every stage that trains on a task's own loss has."""
    return {
        "task": TASK_NAMES[task],
        "task_options": task_options(task, settings, **options),
        "data": data(task, "train", settings),
        "dev_data": data(task, "dev", settings),
        "max_length": MAX_LENGTH[task],
    }


def fewrel_fit(optimizer):
    """3000 episodes, 4 a step, in order."""
    return {
        "batch_size": FEWREL_ROWS,
        "epochs": 1,
        "dropout": "all",
        "evaluate_every": FEWREL_CHECK,
        "evaluation_batch_size": 25,
        "buckets": 1,  # the authors' order, whatever the lengths
        "log_every": 25,
        "checkpoint_every": FEWREL_CHECK,
        "optimizer": optimizer,
    }


def hf_adamw(learning_rate):
    return {"name": "adamw", "learning_rate": learning_rate, "schedule": "linear", "warmup": 0.1, "eps": 1e-6}


def host_fit(task, method):
    optimizer = hf_adamw(LEARNING_RATE[task][method])
    if task == "fewrel":
        return fewrel_fit(optimizer)
    epochs, batch = {"wiki80": (15, 32) if method == "full" else (60, 64), "wiki_et": (2, 64), "eq": (5, 64)}[task]
    every = {"wiki80": "epoch", "wiki_et": 3000, "eq": "epoch"}[task]
    rest = {"dropout": "all", "evaluate_every": every, "optimizer": optimizer, **REPORTS}
    return {"batch_size": batch, "epochs": epochs, **rest}


def tuning(task, method):
    if method != "lora":
        return {"name": method}
    rank, sites = LORA[task]
    return {"name": "lora", "rank": rank, "alpha": 1.0, "sites": sites}


def host(task, method, settings, **changes):
    """The task's host, made without slots; None where another run made it."""
    if settings["host"]:
        return None
    return {
        "kind": "host",
        **on_task(task, settings),
        "base": base(settings),
        "tuning": tuning(task, method),
        "fit": host_fit(task, method),
        **changes,
    }


def base(settings):
    return settings["base"] or BASES[settings.get("model", "bert")]


def knowledge(settings, kg="transe"):
    """Wikidata vectors as the authors release them; None where another run imported them."""
    if settings["knowledge"]:
        return None
    folder = f"{settings['embeddings']}/wikipedia"
    return {
        "kind": "import_knowledge",
        "format": "openke",
        "files": {"vectors": f"{folder}/{kg}.npy", "entities": f"{folder}/entity2id.txt"},
        "options": {"name": f"wikidata_{kg}", "source": "github.com/thunlp/Knowledge-Plugin"},
    }


def mention_masked(settings, references, dropout, epochs, learning_rate, bare_slots=False, max_length=64):
    """General map-tuning through the raw model; None where another run made the map. Constant rate, so that the map of
    epoch N is the map of a training of N epochs."""
    if settings["mapper"]:
        return None
    return {
        "kind": "plugin",
        "task": "mention_masked_lm",
        "task_options": {"protocol": "thunlp", "bare_slots": bare_slots},
        "host": base(settings),
        "knowledge": reference(settings, "knowledge"),
        "data": references,
        "max_length": max_length,
        "initialise": "random",  # as torch's Linear: the authors'
        "dropout": dropout / 100 if dropout else None,
        "fit": {
            "batch_size": 64,
            "epochs": epochs,
            "dropout": "all" if dropout else "none",
            "prefix_cache_mb": 0,
            "optimizer": {"name": "adam", "learning_rate": learning_rate},
            **REPORTS,
        },
    }


def wiki_mapper(settings, dropout, epochs):
    """On wiki20m: all three files."""
    corpus = f"tfds:wiki20m@{settings['data_dir']}?split=train+validation+test"
    return mention_masked(settings, (corpus,), dropout, epochs, 3e-5 if dropout else 1e-5)


DOWNSTREAM_RATE = {"eq": 2e-4, "fewrel": 2e-4, "wiki80": 2e-4, "wiki_et": 1e-5}
DOWNSTREAM_EPOCHS = {"eq": 5, "fewrel": 5, "wiki80": 15, "wiki_et": 2}


def downstream_mapper(task, settings, epochs):
    """On the training sentences of a task. The authors' max_length is not known: that of general map-tuning."""
    bare = task in ("eq", "wiki_et")  # as the authors: subjects without a vector have a zero vector there
    return mention_masked(settings, data(task, "train", settings), 0, epochs, DOWNSTREAM_RATE[task], bare)


def evaluations(task, settings, plugins=None, domain=None):
    """Evaluate stages by name: FewRel is tested in four settings with the same weights."""
    plugins = plugins or {}
    domain = domain or {"data": data(task, "test", settings), "plugins": plugins}
    if plugins:
        domain = {"knowledge": reference(settings, "knowledge"), **domain}

    def stage(**options):
        return {
            "kind": "evaluate",
            "task": TASK_NAMES[task],
            "task_options": task_options(task, settings, **options),
            "host": reference(settings, "host"),
            "max_length": MAX_LENGTH[task],
            "batch_size": 25 if task == "fewrel" else 100,
            "domains": {task: domain},
        }

    if task != "fewrel":
        return {"evaluate": stage()}
    return {f"evaluate_{n}_{k}": stage(n_way=n, k_shot=k) for n, k in FEWREL_SETTINGS}

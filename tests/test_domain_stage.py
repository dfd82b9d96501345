"""Stage `plugins`: its plugins are those of the stages alone, on one device or two, and after an interruption."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_world import CITIES, plugin_stage, question, run_experiment, same_bits, write_base, write_records

from kinject.errors import InputError
from kinject.plugins.store import load_plugin
from kinject.stages.experiment import Experiment
from kinject.training.domains import DomainFit
from kinject.training.hlo import find_collectives
from kinject.tree import flatten

FIT = {"batch_size": 4, "steps": 12, "evaluate_every": 4, "patience": 2, "buckets": 1, "evaluation_batch_size": 10}


@pytest.fixture(scope="module")
def domains(world, tmp_path_factory):
    """Two domains: the tiny world's, and one with other vectors and other questions."""
    folder = tmp_path_factory.mktemp("domains")
    write_base(folder / "knowledge", seed=7, name="others")
    write_records(folder / "train.jsonl", map(question, range(10, 50)))
    write_records(folder / "dev.jsonl", map(question, range(50, CITIES)))
    cities = {"knowledge": world / "knowledge", "data": world / "train.jsonl", "dev_data": world / "dev.jsonl"}
    others = {"knowledge": folder / "knowledge", "data": folder / "train.jsonl", "dev_data": folder / "dev.jsonl"}
    return {"cities": cities, "others": others}


def own(files):
    return {"knowledge": str(files["knowledge"]), "data": (str(files["data"]),), "dev_data": (str(files["dev_data"]),)}


def plugins_stage(world, domains):
    made = plugin_stage(world, fit=FIT) | {"kind": "plugins"}
    shared = {name: value for name, value in made.items() if name not in ("knowledge", "data", "initialise")}
    start = {"initialise": "ridge_label"}
    return shared | {"domains": {name: own(files) | start for name, files in domains.items()}}


def params_of(folder):
    return flatten(nnx.to_pure_dict(nnx.state(load_plugin(folder).plugin)))


@pytest.fixture(scope="module")
def together(world, domains, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("together")
    return workdir, run_experiment({"seed": 1, "stages": {"both": plugins_stage(world, domains)}}, workdir)


def test_plugins_are_those_of_stages_alone(world, domains, together, tmp_path):
    workdir, results = together
    alone = {
        name: plugin_stage(world, fit=FIT) | own(files) | {"initialise": "ridge_label"}
        for name, files in domains.items()
    }
    expected = run_experiment({"seed": 1, "stages": alone}, tmp_path)
    for name in domains:
        found = params_of(workdir / "both" / name)
        for path, leaf in params_of(tmp_path / name).items():
            np.testing.assert_allclose(found[path], leaf, rtol=2e-4, atol=2e-5)
        assert results["both"][name]["best_step"] == expected[name]["best_step"]
        assert results["both"][name]["steps"] == expected[name]["steps"]
        assert expected[name].pop("vectors")["on"] == "host"
        for metric, value in expected[name].items():
            assert results["both"][name][metric] == pytest.approx(value, rel=1e-3), metric
        manifest = load_plugin(workdir / "both" / name).manifest
        assert manifest["knowledge"]["name"] == name and manifest["config"]["kind"] == "plugin"
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert {"cities/loss", "others/loss", "cities/gradient_norm"} <= set(lines[0])
    assert any("others/dev_accuracy" in line for line in lines)


def test_an_interrupted_run_goes_on_to_the_same_bits(world, domains, together, tmp_path, monkeypatch):
    evaluate = DomainFit._maybe_evaluate

    def interrupted(fit, step):
        evaluate(fit, step)
        if step == 6:
            fit.checkpoints.wait(), fit.best.wait()  # else they write on while the run is taken up again
            raise KeyboardInterrupt

    config = {"seed": 1, "stages": {"both": plugins_stage(world, domains)}}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DomainFit, "_maybe_evaluate", interrupted)
        run_experiment(config, tmp_path)
    assert run_experiment(config, tmp_path)["both"] == together[1]["both"]
    for name in domains:
        assert same_bits(params_of(tmp_path / "both" / name), params_of(together[0] / "both" / name))
    assert (tmp_path / "metrics.jsonl").read_text() == (together[0] / "metrics.jsonl").read_text()


def test_domains_on_devices_of_their_own_say_nothing_to_each_other(world, domains, together, tmp_path, monkeypatch):
    """One domain a device: the same plugins, and a step without a single collective."""
    begin, texts = DomainFit._compile, []

    def begun(fit, *arguments):
        begin(fit, *arguments)
        held = [cell.cell_contents for cell in fit.train_step.__closure__]
        (steps,) = (one for one in held if getattr(one, "__name__", "") == "steps")
        batch = fit.place.batch(next(iter(fit.stacked_feed.training(4, fit.seeds))))
        texts.append(steps.lower(fit.state, fit.frozen, batch).compile().as_text())
        assert fit.place.mesh.shape["domain"] == 2
        assert {leaf.sharding.spec[0] for leaf in fit.state.train.values()} == {"domain"}

    monkeypatch.setattr(DomainFit, "_compile", begun)
    config = {"seed": 1, "stages": {"both": plugins_stage(world, domains)}}
    with Experiment.open(config, tmp_path, devices=2, quiet=True) as experiment:
        experiment.execute("both")
    assert len(jax.devices()) >= 2 and texts and find_collectives(texts[0]) == []
    for name in domains:
        for path, leaf in params_of(tmp_path / "both" / name).items():
            np.testing.assert_allclose(leaf, params_of(together[0] / "both" / name)[path], rtol=2e-4, atol=2e-5)


def test_what_does_not_go_together_is_told(world, domains, tmp_path):
    def refused(**changes):
        config = {"seed": 1, "stages": {"both": plugins_stage(world, domains) | changes}}
        with pytest.raises(InputError) as error:
            run_experiment(config, tmp_path / "no")
        return str(error.value)

    few = {name: own(files) for name, files in domains.items()}
    few["others"]["data"] = (str(domains["others"]["dev_data"]),)
    fit = {"batch_size": 4, "epochs": 1}
    assert "cities 10, others 3" in refused(domains=few, fit=fit)
    missing = {"cities": own(domains["cities"]), "others": own(domains["others"]) | {"knowledge": "/nowhere"}}
    assert "stages.both.domains.others.knowledge" in refused(domains=missing)
    assert "domains.a b" in refused(domains={"a b": own(domains["cities"])})
    assert "initialize" in refused(domains={"a": own(domains["cities"]) | {"initialize": "random"}})

"""Configs that come along, by name and from the wheel; and what is told of an option that is out of place."""

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import kinject.config
from kinject.cli.train import parse
from kinject.config import read_config, ready_made
from kinject.errors import InputError
from kinject.stages.experiment import read_stages

ROOT = Path(__file__).resolve().parents[1]


def test_every_config_goes_by_its_name(tmp_path, monkeypatch):
    ours = {str(path.relative_to(ROOT / "configs").with_suffix("")) for path in (ROOT / "configs").rglob("*.py")}
    assert ours - set(ready_made()) == {"paper/common", "paper/published"}, "those have no get_config"
    monkeypatch.chdir(tmp_path)
    assert read_config("own:mine")["stages"] == read_config(f"{ROOT / 'configs' / 'own.py'}:mine")["stages"]
    with pytest.raises(InputError, match=r"no config of that name comes along: quickstrat; did you mean quickstart\?"):
        read_config("quickstrat")
    with pytest.raises(InputError, match=r"there is no file nowhere\.py; those that come along go by their names"):
        read_config("nowhere.py")


@pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="the wheel is built without a network")
def test_the_wheel_brings_them(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("kinject", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*pip, tmp_path / "dist", source], check=True, capture_output=True, timeout=1800)
    (wheel,) = (tmp_path / "dist").iterdir()
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "installed")
    monkeypatch.setattr(kinject.config, "__file__", str(tmp_path / "installed" / "kinject" / "config.py"))
    assert ready_made()["own"] == tmp_path / "installed" / "kinject" / "configs" / "own.py"
    assert set(read_config("own:mine")["stages"]) == {"host", "plugin", "evaluate"}
    assert "mapper" in read_config("paper/general_map_tuning:25,3")["stages"], "it imports its neighbours"
    asked = read_config("quickstart:rivals")["stages"]["evaluate"]["domains"]
    for name in ("geography_free", "biology_free"):
        (path,) = map(Path, asked[name]["data"])
        assert path.is_relative_to(tmp_path) and len(path.read_text().splitlines()) == 20


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("plugin.fit.epochs=3", "the config has no entry 'plugin'; did you mean stages.plugin.fit.epochs?"),
        ("stage.plugin.fit.epochs=3", "did you mean stages.plugin.fit.epochs?"),
        ("stages.plugin.epochs=3", "stages.plugin.epochs: unknown key epochs; did you mean fit.epochs?"),
        ("stages.plugin.fit.learning_rate=3", "unknown key learning_rate; did you mean optimizer.learning_rate?"),
        ("stages.plugin.fit.optimizer.learing_rate=3", "did you mean learning_rate?"),
    ],
)
def test_an_option_out_of_place_is_told_its_place(override, said):
    with pytest.raises(InputError) as told:
        read_stages(read_config("own:mine,host=there", [override]))
    assert said in str(told.value)


def test_an_override_without_its_prefix_is_told_how_to_write_it():
    with pytest.raises(InputError, match=r"write --config\.stages\.plugin\.fit\.epochs=3"):
        parse(["--config", "own", "--workdir", "x", "--stages.plugin.fit.epochs=3"])

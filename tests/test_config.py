"""Config files, overrides and the strict schema."""

import ast
import dataclasses
import json
import math
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from kinject.config import Section, apply_override, build, build_dataclass, read_config
from kinject.errors import InputError
from kinject.stages.experiment import Experiment, check_workdir, first_difference, read_stages

ROOT = Path(__file__).parents[1]


class Inner(Section):
    width: int = Field(3, ge=1)
    kind: Literal["a", "b"] = "a"


class Outer(Section):
    name: str
    inner: Inner = Inner()
    named: dict[str, Inner] = {}
    maybe: Inner | None = None


@dataclasses.dataclass(frozen=True)
class Plain:
    mapper: Literal["affine", "mlp"] = "affine"
    width: int = 4
    rate: float = 0.0
    layers: tuple[int, ...] = ()
    tied: bool = False


def test_a_config_with_its_argument_and_overrides(tmp_path):
    (tmp_path / "c.py").write_text("def get_config(arg='small'):\n    return {'size': arg, 'a': {'b': {'c': 1}}}\n")
    assert read_config(str(tmp_path / "c.py")) == {"size": "small", "a": {"b": {"c": 1}}}
    found = read_config(f"{tmp_path / 'c.py'}:large", ["a.b.c=2.5", "a.new=x y", "a.b=(1, 'two')"])
    assert found == {"size": "large", "a": {"b": (1, "two"), "new": "x y"}}


def test_configs_of_one_name_do_not_share_a_module(tmp_path):
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "c.py").write_text(f"def get_config():\n    return {{'n': {number}}}\n")
    assert [read_config(str(tmp_path / n / "c.py"))["n"] for n in "121"] == [1, 2, 1]


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists) | st.floats(allow_nan=False))
def test_an_override_reads_python_literals(value):
    config = {"a": {"b": 0}}
    apply_override(config, f"a.b={value!r}")
    infinite = isinstance(value, float) and math.isinf(value)  # which Python has no literal for
    assert config == {"a": {"b": repr(value) if infinite else ast.literal_eval(repr(value))}}


@pytest.mark.parametrize(
    ("override", "value"),
    [("1e-4", 1e-4), ("True", True), ("adam", "adam"), ("a=b", "a=b"), ("", ""), ("@x/y", "@x/y")],
)
def test_what_is_no_literal_is_a_string(override, value):
    config = {"a": 0}
    apply_override(config, f"a={override}")
    assert config == {"a": value}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a.c.d=1", "--config.a.c.d: a has no entry 'c'; there is b"),
        ("aa.b=1", "the config has no entry 'aa'; did you mean a.b?"),
        ("a.b.c=1", "--config.a.b.c: a.b is a value, not a section"),
        ("a.b.c.d=1", "a.b has no entry 'c'; there is none"),
        ("a.b", "--config.a.b: it has no value; write --config.a.b=VALUE"),
    ],
)
def test_an_override_of_nothing(override, message):
    config = {"a": {"b": 1}}
    with pytest.raises(InputError) as refusal:
        apply_override(config, override)
    assert message in str(refusal.value) and config == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "x.name: it is missing"),
        ({"name": 3}, "x.name: input should be a valid string, got 3"),
        ({"name": "n", "iner": {}}, "x.iner: unknown key iner; did you mean inner?"),
        ({"name": "n", "inner": {"widht": 1}}, "x.inner.widht: unknown key widht; did you mean width?"),
        ({"name": "n", "inner": {"width": 0}}, "x.inner.width: input should be greater than or equal to 1, got 0"),
        ({"name": "n", "inner": {"kind": "c"}}, "x.inner.kind: input should be 'a' or 'b', got 'c'"),
        (
            {"name": "n", "inner": "wide"},
            "x.inner: input should be a valid dictionary or instance of Inner, got 'wide'",
        ),
        ({"name": "n", "named": {"k": {"widht": 1}}}, "x.named.k.widht: unknown key widht; did you mean width?"),
        ({"name": "n", "maybe": {"widht": 1}}, "x.maybe.widht: unknown key widht; did you mean width?"),
        ({"name": ["long"] * 99}, "got ['long', 'long'"),
    ],
)
def test_the_schema_names_the_key(values, message):
    with pytest.raises(InputError) as refusal:
        build(Outer, values, "x")
    line = str(refusal.value)
    assert message in line and "\n" not in line and len(line) < 200


def test_a_section_is_what_was_given_and_cannot_be_changed():
    made = build(Outer, {"name": "n", "inner": {"width": 5}}, "x")
    assert (made.name, made.inner.width, made.inner.kind, made.maybe) == ("n", 5, "a", None)
    with pytest.raises(ValueError, match="frozen"):
        made.name = "m"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"maper": "affine"}, "m.maper: unknown key maper; did you mean mapper?"),
        ({"mapper": "cubic"}, "m.mapper: input should be 'affine' or 'mlp', got 'cubic'"),
        ({"width": "wide"}, "m.width: input should be a valid integer"),
        ({"width": "4"}, "m.width: input should be a valid integer, got '4'"),
        ({"width": 4.0}, "m.width: input should be a valid integer, got 4.0"),
        ({"width": True}, "m.width: input should be a valid integer, got True"),
        ({"rate": "0.5"}, "m.rate: input should be a valid number, got '0.5'"),
        ({"layers": 3}, "m.layers: input should be a valid array, got 3"),
        ({"tied": "false"}, "m.tied: input should be a valid boolean, got 'false'; write True or False"),
        ({"width": object()}, "m.width: it is of type object; give numbers"),
    ],
)
def test_a_plain_dataclass_is_as_strict(values, message):
    assert build_dataclass(Plain, {"width": 9}, "m") == Plain("affine", 9)
    with pytest.raises(InputError) as refusal:
        build_dataclass(Plain, values, "m")
    assert message in str(refusal.value)


def test_a_plain_dataclass_takes_what_json_holds():
    assert build_dataclass(Plain, {"rate": 1, "layers": [1, 2]}, "m") == Plain(rate=1.0, layers=(1, 2))
    numbers = {"width": np.int64(3), "rate": np.float32(0.5), "layers": np.arange(2)}
    assert build_dataclass(Plain, numbers, "m") == Plain(width=3, rate=0.5, layers=(0, 1))


def test_an_option_that_an_earlier_version_did_not_have_is_at_its_default(tmp_path):
    """Its run goes on, and under another value of the option it does not."""
    values = {"kind": "plugin", "task": "cloze", "host": "h", "knowledge": "k", "data": ("d",), "fit": {"steps": 1}}
    now = {"name": "n", "seed": 0, "stages": {"p": read_stages({"stages": {"p": values}})["p"].model_dump(mode="json")}}
    before = json.loads(json.dumps(now))
    del before["stages"]["p"]["fit"]["optimizer"]["decay_towards"]
    (tmp_path / "config.json").write_text(json.dumps(before))
    assert check_workdir(tmp_path, now) is False, "nothing was made yet"
    (tmp_path / "checkpoints").mkdir()
    assert check_workdir(tmp_path, now) is True
    now["stages"]["p"]["fit"]["optimizer"]["decay_towards"] = "start"
    with pytest.raises(InputError, match="decay_towards was 'zero' and is 'start'"):
        check_workdir(tmp_path, now)


def test_the_first_difference_of_two_configs():
    before = {"seed": 0, "stages": {"a": {"x": [1, 2]}}}
    assert first_difference(before, json.loads(json.dumps(before))) is None
    assert first_difference(before, {**before, "seed": 1}) == "config.seed was 0 and is 1"
    now = {"seed": 0, "stages": {"a": {"x": [1, 3]}}}
    assert first_difference(before, now) == "config.stages.a.x was [1, 2] and is [1, 3]"
    assert first_difference(before, {"seed": 0}) == "config.stages is only in the old one"
    assert first_difference({}, {"seed": 0}) == "config.seed is only in the new one"


@pytest.mark.parametrize(
    "name", ["quickstart.py", "quickstart.py:rivals", "delivery.py", "delivery.py:no_answer_triples"]
)
def test_the_main_configs_name_what_they_run(tmp_path, name):
    config = read_config(str(ROOT / "configs" / name))
    experiment = Experiment.open(config, tmp_path / "run", devices=1, quiet=True)
    evaluated = {name for name, stage in experiment.run.stages.items() if stage.kind == "evaluate"}
    assert evaluated == {"evaluate"} | ({"choices"} if name.endswith(":rivals") else set())
    kinds = {stage.kind for stage in experiment.run.stages.values()} - {"compare"}
    assert kinds == {"knowledge", "host", "plugin", "evaluate"}
    assert not (tmp_path / "run").exists(), "opening writes nothing"


def test_they_refuse_another_argument():
    with pytest.raises(InputError, match="unknown argument 'no_anser'; there is no_answer_triples"):
        read_config(f"{ROOT / 'configs' / 'delivery.py'}:no_anser")
    with pytest.raises(InputError, match="unknown argument 'rival'; there is rivals"):
        read_config(f"{ROOT / 'configs' / 'quickstart.py'}:rival")

"""Which leaves are trained: labels by rules, the split, and what a run prints of both, on paths alone."""

import numpy as np
import pytest

from kinject.errors import InputError
from kinject.training.partition import describe, label_parameters, split

PATHS = ("host/encoder/layers/0/kernel", "host/encoder/layers/1/kernel", "host/head/bias", "plugin/kernel")
SHAPES = dict(zip(PATHS, ((3, 4), (3, 4), (4,), (5, 3)), strict=True))
RULES = (("plugin/.*", "train"), (r"host/encoder/layers/\d/kernel", "train"), (".*", "freeze"))


def arrays(**more):
    return {path: np.zeros(shape, np.float32) for path, shape in {**SHAPES, **more}.items()}


def test_the_first_rule_that_matches_the_whole_path_labels_it():
    labels = label_parameters(PATHS, RULES)
    assert labels == dict(zip(PATHS, ("train", "train", "freeze", "train"), strict=True))
    assert list(labels) == list(PATHS)  # their order is that of the parameters
    first = label_parameters(PATHS, (("host/.*", "freeze"), (".*", "train"), ("plugin/.*", "freeze")))
    assert list(first.values()) == ["freeze", "freeze", "freeze", "train"]


def test_tables_are_frozen_and_no_rule_sees_them():
    labels = label_parameters(("table", *PATHS), (("plugin/.*", "train"), ("host/.*", "freeze")), tables={"table"})
    assert labels == {"table": "freeze", **dict.fromkeys(PATHS[:3], "freeze"), PATHS[3]: "train"}
    with pytest.raises(InputError, match=r"^train: rule 'tabl\.\*' matches no parameter"):
        label_parameters(("table", *PATHS), (("tabl.*", "train"), (".*", "train")), tables=("table",))


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ((("plugin/.*", "tune"),), "rules: rule 'plugin/.*' has the label 'tune'; labels are 'train' and 'freeze'"),
        ((("(", "train"),), r"rules: '\(' is not a regular expression: "),
        ((("plugin/.*", "train"),), "rules: no rule covers the parameter host/encoder/layers/0/kernel; end the rules"),
        (((".*", "freeze"),), "rules: no parameter is left to train"),
        (
            (("plugin/kernle", "train"), (".*", "freeze")),
            "rules: rule 'plugin/kernle' matches no parameter; paths look like plugin/kernel, "
            "host/encoder/layers/0/kernel, host/encoder/layers/1/kernel, host/head/bias$",
        ),
        ((("plugin", "train"), (".*", "train")), "rule 'plugin' matches no parameter"),  # not its whole path
        ((("(plugins|maps)/.*", "train"), (".*", "train")), r"rule '\(plugins\|maps\)/\.\*' matches no parameter"),
    ],
)
def test_bad_rules_are_told(rules, said):
    with pytest.raises(InputError, match=said):
        label_parameters(PATHS, rules, "rules")


def test_likely_paths_are_told_first_and_no_more_than_four():
    paths = [f"host/{number}" for number in range(20)] + ["plugin/mapper/kernel", "plugin/mapper/bias"]
    with pytest.raises(InputError, match=r"paths look like a/kernel, b$"):
        label_parameters(("b", "a/kernel"), (("a/kernels", "train"), (".*", "freeze")))
    with pytest.raises(InputError) as error:
        label_parameters(paths, (("plugin/mapper/kernels", "train"), (".*", "freeze")))
    assert str(error.value).partition("paths look like ")[2] == (
        "plugin/mapper/kernel, plugin/mapper/bias, host/0, host/5"
    )


def test_a_rule_for_everything_may_find_nothing_left():
    assert label_parameters(("a",), (("a", "train"), (".*", "freeze"))) == {"a": "train"}


def test_the_split_keeps_every_leaf_on_one_side():
    params = arrays()
    train, frozen = split(params, label_parameters(PATHS, RULES))
    assert list(train) == [PATHS[0], PATHS[1], PATHS[3]] and list(frozen) == [PATHS[2]]
    assert all({**train, **frozen}[path] is leaf for path, leaf in params.items())


def test_what_is_trained_is_told_in_groups():
    labels = label_parameters(PATHS, RULES)
    told = (
        "parameters: 39 trained, 4 frozen\n"
        "  train            24  host/encoder/layers/*/kernel  (2 leaves)\n"
        "  train            15  plugin/kernel"
    )
    assert describe(arrays(), labels) == told
    labels = label_parameters(("plugin/rows", *PATHS), RULES, tables=("plugin/rows",))
    params = {"plugin/rows": np.zeros((1000, 2)), **arrays()}  # a table first: what follows is told too
    said = describe(params, labels, ("plugin/rows",))
    assert said == told.replace("4 frozen", "4 frozen, 2,000 numbers in tables")

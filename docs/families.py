"""The table of families in docs/hosts.md, made by trying: every head, method and tuning is traced on every family.

    python docs/families.py    # writes the table anew

Nothing is computed: hosts are shapes (two layers of a published model's), and what is refused says so itself.
"""

import dataclasses
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from kinject.errors import InputError
from kinject.models.config import EncoderConfig
from kinject.models.family import family_names
from kinject.models.heads import HEADS, HostModel, logits
from kinject.models.hf_tensors import rules
from kinject.models.pretrained import abstract_host
from kinject.models.shapes import SHAPES
from kinject.models.tuning import make_tuning
from kinject.plugins.base import make_plugin

PAGE = Path(__file__).resolve().parent / "hosts.md"
BEGIN, END = "<!-- made by docs/families.py -->\n", "<!-- end -->\n"
EXAMPLES = {  # a published model of each
    "bert": "bert-base-cased",
    "camembert": "camembert-base",
    "deberta-v2": "deberta-v3-base",
    "distilbert": "distilbert-base-cased",
    "electra": "electra-small-discriminator",
    "modernbert": "ModernBERT-base",
    "mpnet": "mpnet-base",
    "roberta": "roberta-base",
    "xlm-roberta": "xlm-roberta-base",
}
LAYERS, ROWS, LENGTH, DIM = 2, 2, 8, 4
METHODS = {
    "map_tuning": {"name": "map_tuning"},
    "kformer": {"name": "kformer", "layers": [1]},
    "pluglm": {"name": "pluglm", "layers": [1], "heads": 4},
    "k_adapter": {"name": "k_adapter", "layers": [0, 1], "width": 8, "heads": 2, "feed_forward": 8, "depth": 1},
    "retrieved_text": {"name": "retrieved_text"},
}
TUNINGS = ("full", "lora", "houlsby", "bitfit")


def shape_of(family: str) -> EncoderConfig:
    """Two layers of a published model."""
    return dataclasses.replace(SHAPES[EXAMPLES[family]], num_hidden_layers=LAYERS)


@cache
def host_of(config: EncoderConfig, head: str, tuning: str = "full") -> HostModel:
    """A host of shapes."""
    labels = (HEADS[head].num_labels or 3) if HEADS[head].own_output else None
    return abstract_host(config, head, labels, make_tuning({"name": tuning}))


def traced(host: HostModel, function: Callable[..., object], batch: dict) -> object:
    """The shapes of `function(host, batch)`."""
    graph, state = nnx.split(host)
    return jax.eval_shape(lambda state, batch: function(nnx.merge(graph, state), batch), state, batch)


def batch_of(places: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
    whole = dict.fromkeys(("token_ids", "segment_ids", "position_ids", "type_ids", "entity_slot"), (ROWS, LENGTH))
    whole |= {"entity_ids": (ROWS, 1), "positions": (ROWS, places), "fact_ids": (ROWS, 2, 3)}
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in whole.items()}
    return {**batch, "entity_vectors": jax.ShapeDtypeStruct((ROWS, 1, DIM), jnp.float32)}


def head_cell(config: EncoderConfig, head: str) -> None:
    """Traces a head's scores, and holds its parameters to the table of tensors that folders are read and written by."""

    host = host_of(config, head)
    found = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(host, nnx.Param))}
    if found != {rule.path for rule in rules(config, head)}:
        raise AssertionError(f"{config.model_type}, {head}: parameters and tensors differ")
    made = traced(host, logits, batch_of(HEADS[head].places or 1))
    if made.shape[:2] != (ROWS, 1):
        raise AssertionError(f"{config.model_type}, {head}: scores {made.shape}")


def method_cell(config: EncoderConfig, settings: dict) -> None:
    """Traces a forward pass through a fresh plugin, and the gradient of what trains."""

    def slopes(host: HostModel, batch: dict) -> nnx.State:
        plugin = make_plugin(settings, **config.plugin_sizes, knowledge_dim=DIM)
        graph, trained, rest = nnx.split(plugin, nnx.Param, ...)
        return jax.grad(lambda leaves: logits(host, batch, nnx.merge(graph, leaves, rest)).sum())(trained)

    traced(host_of(config, "masked_lm"), slopes, batch_of())


def tuning_cell(config: EncoderConfig, name: str) -> None:
    """Adds what the tuning adds, and traces a forward pass through it."""
    traced(host_of(config, "masked_lm", name), logits, batch_of())


def cell(trial: Callable[..., None], *arguments: object) -> tuple[str, str]:
    """(yes or no, why not)."""
    try:
        trial(*arguments)
    except InputError as error:
        return "no", str(error)
    return "yes", ""


def table() -> str:
    """The table, and a line for each refusal."""
    forms = [name for name, kind in HEADS.items() if kind.form is not None]
    own = [name for name, kind in HEADS.items() if kind.places or kind.pooled]
    columns = [("heads", [*forms, *own], head_cell), ("methods", list(METHODS), method_cell)]
    columns.append(("tunings", list(TUNINGS), tuning_cell))
    lines = [
        "| `model_type` | shape tried | transformers' heads | kinject's heads | methods | tunings "
        "| folder read by transformers, map exported |",
        "|---|---|---|---|---|---|---|",
    ]
    refused = []
    for family in family_names():
        config, told = shape_of(family), []
        for _, names, trial in columns:
            found = {}
            for name in names:
                found[name], why = cell(trial, config, METHODS.get(name, name))
                if why:
                    refused.append(f"- `{family}`, `{name}`: {why}.")
            told.append(found)
        heads, methods, tunings = told
        cells = [
            _summary({name: heads[name] for name in forms}),
            _summary({name: heads[name] for name in own}),
            _summary(methods),
            _summary(tunings),
        ]
        lines.append(f"| `{family}` | {EXAMPLES[family]} | {' | '.join(cells)} | yes |")
    names = [
        f"Transformers' heads: {_listed(forms)}.",
        f"Heads of kinject: {_listed(own)}.",
        f"Methods: {_listed(METHODS)}.",
        f"Tunings: {_listed(TUNINGS)}.",
    ]
    return "\n".join([*lines, "", " ".join(names), "", *refused, ""])


def _listed(names: object) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _summary(found: dict[str, str]) -> str:
    lacking = [name for name, answer in found.items() if answer != "yes"]
    return "all" if not lacking else f"all but {_listed(lacking)}"


def written(page: str) -> str:
    """The page with the table as it is now."""
    pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
    return re.sub(pattern, lambda _: f"{BEGIN}{table()}{END}", page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

"""docs/own_family.md and the table of docs/hosts.md: the page's family is one, the table is as tried."""

import importlib.util
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from tiny import tiny_batch

from kinject.models import families, family
from kinject.models.pretrained import load_host
from kinject.models.saving import save_host

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The page's file, as if it lay among the others."""
    (name, code) = re.search(
        r"<!-- file: (\w+)\.py -->\n```python\n(.*?)```", (DOCS / "own_family.md").read_text(), re.S
    ).groups()
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / f"{name}.py").write_text(code)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(folder)])
    caches = (family.family_names, family._modules, family.family_of)
    for one in caches:
        one.cache_clear()
    yield name.replace("_", "-")
    sys.modules.pop(f"kinject.models.families.{name}", None)
    for one in caches:
        one.cache_clear()


def test_the_tenth_family(installed, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    small = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.AutoConfig.for_model(installed, **small, intermediate_size=24, max_position_embeddings=40)
    model = transformers.AutoModelForMaskedLM.from_config(config).eval()
    model.save_pretrained(tmp_path / "theirs")
    loaded = load_host(tmp_path / "theirs", head="masked_lm")
    batch = tiny_batch(loaded.config, [9, 6], 9)
    inputs = {"input_ids": "token_ids", "attention_mask": "segment_ids", "token_type_ids": "type_ids"}
    given = {name: torch.from_numpy(np.array(batch[ours])).long() for name, ours in inputs.items()}
    expected = model(**given).logits.detach().numpy()
    graph, state = nnx.split(loaded.host)

    @jax.jit
    def logits(state, batch):
        host = nnx.merge(graph, state)
        return host.head.logits(host.encoder(batch).last, host.encoder.embeddings.word.embedding[...])

    real = np.asarray(batch["segment_ids"]) > 0
    assert np.abs(np.asarray(logits(state, batch))[real] - expected[real]).max() <= 2e-5
    again = save_host(loaded.host, tmp_path / "ours")
    _, info = transformers.AutoModelForMaskedLM.from_pretrained(again, output_loading_info=True)
    assert not any(info.values()), info


def test_the_table_of_families_is_as_tried():
    spec = importlib.util.spec_from_file_location("families_of_docs", DOCS / "families.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert set(made.EXAMPLES) == set(family.family_names())
    page = (DOCS / "hosts.md").read_text()
    assert made.written(page) == page, "python docs/families.py writes it anew"
    assert "| `modernbert` | ModernBERT-base | all | all | all | all but `bitfit` | yes |" in page

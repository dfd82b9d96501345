"""Plugins as files: listed, shown, verified, exported; the exported map gives our logits in plain transformers."""

import json
import re
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from served import Served
from tiny import tiny_host_folder

from kinject.cli.plugins import main
from kinject.data.encode import Mention, Passage, rows_with_vector
from kinject.inference.host import knowledge_identity, open_host
from kinject.knowledge.base import KnowledgeBase, write_knowledge
from kinject.models.heads import logits
from kinject.plugins.base import make_plugin
from kinject.plugins.store import load_plugin, save_plugin

DOCS = Path(__file__).parent.parent / "docs" / "serving.md"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    made = Served(tmp_path_factory.mktemp("artefacts"))
    made.plugin()
    return made


def snippet() -> str:
    """The block of the docs, as it stands there."""
    (code,) = re.findall(r"<!-- run by tests/test_export.py -->\n```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    return code


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_documented_torch_program_gives_our_logits(tmp_path, family):
    host = tiny_host_folder(tmp_path / "host", family, "masked_lm")
    ready = open_host(host, head="masked_lm")
    vectors = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    ids = ["a", "b", "c"]
    base = KnowledgeBase.open(
        write_knowledge(tmp_path / "kb", name="kb", ids=ids, vectors=vectors, source="made up", license="none")
    )
    made = make_plugin({"name": "map_tuning"}, hidden_size=32, knowledge_dim=5, seed=3)
    about = {"host": ready.identity, "knowledge": knowledge_identity(base), "config": {}, "metrics": {}}
    folder = save_plugin(tmp_path / "plugin", made, **about)
    exported = tmp_path / "map.safetensors"
    assert main(["export", str(folder), "--safetensors", str(exported)]) == 0

    text = "the river Rewa flows through New Zealand to its mouth"
    starts = {"c": text.index("Rewa"), "a": text.index("New Zealand")}
    given = [Mention(starts["c"], starts["c"] + 4, "c"), Mention(starts["a"], starts["a"] + 11, "a")]
    one = ready.encoder(None).encode_batch([Passage(text, given)], rows_with_vector(base))[0]
    batch = ready.encoder(None).pad([one], len(one), 2)
    batch["entity_vectors"], _ = base.gather(batch["entity_ids"])
    batch["positions"] = np.arange(len(one))[None]
    ours = logits(
        ready.loaded.host, {name: jnp.asarray(leaf) for name, leaf in batch.items()}, load_plugin(folder).plugin
    )

    space = {"host": host, "exported": exported, "text": text}
    space["mentions"] = [(starts["a"], vectors[0]), (starts["c"], vectors[2])]
    exec(compile(snippet(), str(DOCS), "exec"), space)
    assert len(snippet().splitlines()) <= 22 and "kinject" not in snippet()
    np.testing.assert_allclose(space["logits"].numpy(), np.asarray(ours), rtol=1e-4, atol=1e-4)
    space["mentions"] = [(starts["a"], vectors[1]), (starts["c"], vectors[2])]
    exec(compile(snippet(), str(DOCS), "exec"), space)
    assert np.abs(space["logits"].numpy() - np.asarray(ours)).max() > 1e-2  # the test can fail


def test_the_exported_file_says_what_it_belongs_to(served, tmp_path, capsys):
    out = tmp_path / "map.safetensors"
    assert main(["export", str(served.plugin()), "--safetensors", str(out)]) == 0
    with safe_open(out, "np") as file:
        facts = file.metadata()
        mapper = load_plugin(served.plugin()).plugin.mapper
        np.testing.assert_array_equal(file.get_tensor("weight"), np.asarray(mapper.kernel[...]).T)
        np.testing.assert_array_equal(file.get_tensor("bias"), np.asarray(mapper.bias[...]))
    assert facts["knowledge_fingerprint"] == KnowledgeBase.open(served.knowledge).fingerprint
    assert facts["format"] == "kinject.map_tuning" and facts["license"] == "none"
    written = out.read_bytes()
    assert main(["export", str(served.plugin()), "--safetensors", str(out)]) == 2 and out.read_bytes() == written
    residual = served.plugin("residual", method={"name": "map_tuning", "mapper": "residual_mlp"})
    adapter = served.plugin("adapter", knowledge=None, method={"name": "k_adapter", "layers": [0], "heads": 2})
    for folder in (residual, adapter):
        assert main(["export", str(folder), "--safetensors", str(tmp_path / "other")]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3 and "residual_mlp" in told[1] and "k_adapter" in told[2]
    assert [one.name for one in tmp_path.iterdir()] == ["map.safetensors"]


def test_list_and_show(served, tmp_path, capsys):
    shutil.copytree(served.plugin(), tmp_path / "deep" / "geo")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "plugin.json").write_text("{")
    assert main(["list", str(tmp_path), "--json"]) == 0
    good, bad = map(json.loads, capsys.readouterr().out.splitlines())
    assert good["folder"] == str(tmp_path / "deep" / "geo") and good["parameters"] == 8 * 16 + 16
    assert good["method"] == "map_tuning" and good["knowledge"] == "cities" and "not JSON" in bad["error"]
    assert main(["list", str(tmp_path)]) == 0
    assert "map_tuning" in capsys.readouterr().out
    assert main(["show", str(served.plugin())]) == 0
    assert (served.plugin() / "README.md").read_text().strip() == capsys.readouterr().out.strip()
    assert main(["list", str(tmp_path / "nowhere")]) == 2
    assert main(["show", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_verify(served, tmp_path, capsys):
    plugin, knowledge, host = str(served.plugin()), str(served.knowledge), str(served.host())
    assert main(["verify", plugin, "--host", host, "--knowledge", knowledge]) == 0
    assert "as it was written" in capsys.readouterr().out

    def refused(says, *arguments):
        assert main(["verify", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line

    refused("it was trained through the encoder", plugin, "--host", str(served.host(seed=7)))
    refused("it was trained on the knowledge base", plugin, "--knowledge", str(served.other_base(dim=8)))
    broken = shutil.copytree(plugin, tmp_path / "broken")
    file = max((broken / "params").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else -1)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    refused("its content is not what plugin.json was written for", str(broken))
    base = shutil.copytree(knowledge, tmp_path / "kb")
    table = np.load(base / "vectors.npy")
    table[3, 2] += 1
    np.save(base / "vectors.npy", table)
    refused("vectors.npy", plugin, "--knowledge", str(base))

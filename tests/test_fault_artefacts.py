"""Damaged, hostile and foreign artefacts: refused in one line, by every command that reads them."""

import json
import os
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest
from fault_world import edit_json, encode, flip

from kinject.cli.main import main
from kinject.errors import EXIT_BAD_INPUT, InputError
from kinject.integrity import SEAL, read_seal
from kinject.knowledge import KnowledgeBase
from kinject.memory import Passage, PassageMemory
from kinject.plugins.store import load_plugin


@pytest.fixture(scope="module")
def world(small_world):
    return small_world


@pytest.fixture
def own(world, tmp_path):
    return shutil.copytree(world, tmp_path / "w")


@pytest.fixture
def run(capsys):
    def run(*argv):
        code = main([str(one) for one in argv])
        told = capsys.readouterr()
        assert code in (0, EXIT_BAD_INPUT)
        if code:
            assert told.err.startswith("kinject: ") and told.err.count("\n") == 1, told.err
        return told.err.strip() if code else told.out

    return run


def unsealed(own, name):
    """The artefact as an earlier version, or another library, would have written it."""
    (own / name / SEAL).unlink()
    return own / name


def test_every_artefact_verifies(world, run):
    said = run("verify", *(world / name for name in ("host", "knowledge", "knowledge.names", "plugin", "memory")))
    kinds = ["host", "knowledge base", "index", "plugin", "memory"]
    assert [line.split(": ")[1].split(",")[0] for line in said.splitlines()] == kinds and "no seal" not in said


def test_what_was_changed_on_purpose_is_sealed_anew(own, run):
    edit_json(own / "host/tokenizer_config.json", lambda j: j.update(model_max_length=30))
    assert "tokenizer_config.json: it has" in run("verify", own / "host")
    assert "host, sealed as" in run("seal", own / "host") and "as they were sealed" in run("verify", own / "host")
    (own / "host/config.json").write_text("{}")
    before = (own / "host" / SEAL).read_bytes()
    assert "model_type is None" in run("seal", own / "host")
    assert (own / "host" / SEAL).read_bytes() == before and not (own / "host/.seal.json.old").exists()
    assert "it is no host" in run("seal", own) and "no such folder" in run("verify", own / "none")


@pytest.mark.parametrize("name", ["host", "knowledge", "plugin", "memory"])
def test_folders_without_a_seal_open_and_say_so(own, name, run, caplog):
    assert f"{own / name}: " in run("verify", unsealed(own, name))
    assert f"{own / name} has no seal.json: " in caplog.text
    run("seal", own / name)
    assert read_seal(own / name) is not None


def test_a_base_with_the_vectors_of_another_is_refused_where_it_is_plugged_in(own, run):
    base = unsealed(own, "knowledge")
    np.save(base / "vectors.npy", np.load(base / "vectors.npy")[::-1].copy())
    argv = ["--host", own / "host", "--plugin", own / "plugin", "--knowledge", base, "--data", own / "dev.jsonl"]
    assert "vectors.npy: content differs" in run("evaluate", *argv)


def test_a_base_that_claims_another_fingerprint_is_refused(own, run):
    base = unsealed(own, "knowledge")
    edit_json(base / "knowledge.json", lambda j: j.update(fingerprint="0" * 64))
    edit_json(own / "plugin/plugin.json", lambda j: j["knowledge"].update(fingerprint="0" * 64))
    unsealed(own, "plugin")
    assert "knowledge.json says 000" in run("plugins", "verify", own / "plugin", "--knowledge", base)


@pytest.mark.parametrize("file", ["ids.marisa", "entities.arrow", "vectors.npy", "key_of_row.npy"])
@pytest.mark.parametrize("sealed", [True, False])
def test_flipped_bits_of_a_base_end_in_a_line(own, file, sealed, run):
    base = own / "knowledge" if sealed else unsealed(own, "knowledge")
    shutil.rmtree(own / "knowledge.names")
    flip(base / file, (base / file).stat().st_size // 2)
    said = run("link", "--knowledge", base, own / "questions.jsonl")
    if file == "vectors.npy" and not sealed:  # which nothing has read yet
        with pytest.raises(InputError, match="content is not what was sealed"):
            KnowledgeBase.open(base).gather(np.arange(60))
    else:
        assert f"{file}: its content is not what was sealed" in said


def test_a_vector_that_is_not_finite_is_named_with_its_entity(own):
    base = unsealed(own, "knowledge")
    table = np.load(base / "vectors.npy")
    table[7, 3] = np.nan
    np.save(base / "vectors.npy", table)
    edit_json(base / "knowledge.json", lambda j: j["files"]["vectors.npy"].update(sha256=None))
    opened = KnowledgeBase.open(base)
    opened.stored._seal.files.pop("vectors.npy")
    opened.stored.vectors = table
    with pytest.raises(InputError, match=r"the vector of 'Q7' \(row 7\) holds a number that is not finite"):
        opened.gather(np.array([3, 7, -1]))


def zeroed_parameters(plugin):
    with ocp.StandardCheckpointer() as checkpointer:
        zeros = {
            path: np.zeros_like(np.asarray(leaf)) for path, leaf in checkpointer.restore(plugin / "params").items()
        }
        shutil.rmtree(plugin / "params")
        checkpointer.save(plugin / "params", zeros)
    edit_json(plugin / "plugin.json", lambda j: j.update(files={}))


def huge(plugin):
    edit_json(plugin / "plugin.json", lambda j: j.update(hidden_size=250_000, knowledge_dim=250_000))


def put(path, value):
    def change(plugin):
        def edit(j):
            *parents, last = path.split(".")
            for one in parents:
                j = j[one]
            j.update({last: value}) if value != "DROP" else j.pop(last)

        edit_json(plugin / "plugin.json", edit)

    return change


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (zeroed_parameters, "plugin.json does not name it"),
        (huge, "mapper/bias is ((16,), 'float32'), map_tuning has ((250000,), 'float32')"),
        (put("metrics", {"loss": "x"}), "metrics.loss is 'x', not a number"),
        (put("metrics", [1]), "metrics is [1], not of type dict"),
        (put("metrics", "DROP"), "metrics is missing"),
        (put("versions", "DROP"), "versions is missing"),
        (put("parameters", "DROP"), "parameters is missing"),
        (put("parameters.x", 3), "the field parameters is malformed"),
        (put("hidden_size", -1), "hidden_size is -1, not at least 1"),
        (put("hidden_size", 0), "hidden_size is 0, not at least 1"),
        (put("hidden_size", True), "hidden_size is True, not of type int"),
        (put("host", {}), "host.encoder_fingerprint is None, not a string"),
        (put("files.params/x", 7), "not a string"),
    ],
)
def test_bad_manifests_of_plugins_are_one_line_and_spoil_no_list(own, damage, says, run):
    plugin = unsealed(own, "plugin")
    shutil.copytree(plugin, own / "good")
    damage(plugin)
    assert says in run("plugins", "verify", plugin)
    listed = run("plugins", "list", own)
    assert f"{own / 'good'}" in listed and "map_tuning" in listed
    run("plugins", "show", plugin)


def test_names_out_of_a_manifest_do_not_move_the_terminal(own, run):
    plugin = unsealed(own, "plugin")
    edit_json(plugin / "plugin.json", lambda j: j["knowledge"].update(name="\x1b[2Jx\u202e"))
    for argv in (["show", plugin], ["list", own], ["verify", plugin, "--knowledge", own / "none"]):
        assert "\x1b" not in run("plugins", *argv) and "\u202e" not in run("plugins", *argv)


def test_a_doubled_key_and_nan_are_no_json(own, run):
    plugin = unsealed(own, "plugin")
    text = (plugin / "plugin.json").read_text()
    (plugin / "plugin.json").write_text(text.replace('"method"', '"method": "k_adapter", "method"', 1))
    assert "key 'method' stands twice in one object" in run("plugins", "show", plugin)
    host = unsealed(own, "host")
    config = (host / "config.json").read_text().replace('"layer_norm_eps": 1e-12', '"layer_norm_eps": NaN')
    (host / "config.json").write_text(config)
    assert "config.json: it is not JSON: NaN is no JSON number" in run("verify", host)


def test_pipes_in_the_place_of_files_are_refused_and_never_waited_for(own, run):
    for name, file in (
        ("host", "vocab.txt"),
        ("knowledge", "vectors.npy"),
        ("plugin", "plugin.json"),
        ("memory", "keys.npy"),
    ):
        (own / name / file).unlink()
        os.mkfifo(own / name / file)
        assert file in run("verify", own / name) or "no plugin.json" in run("verify", own / name)


def test_a_memory_is_checked_while_it_is_edited_and_after_a_kill(own, run, caplog):
    folder = own / "memory"
    before = read_seal(folder).hash
    reader = PassageMemory.open(folder)
    with PassageMemory.open(folder, write=True) as memory:
        memory.add([Passage("city9 is far away .", "Q9")], encode)
        memory.delete([0])
        assert PassageMemory.open(folder).size == 8 and "is being edited" in caplog.text
    assert read_seal(folder).hash != before and reader.size == 8
    assert [one.text for one in reader.texts([8])] == ["city9 is far away ."]
    memory = PassageMemory.open(folder, write=True)
    memory.delete([1])  # and killed before it is closed
    memory._lock.close()
    assert PassageMemory.open(folder).size == 7
    with PassageMemory.open(folder, write=True):
        pass
    assert "as they were sealed" in run("verify", folder)
    flip(folder / "values.npy", 140)
    assert "values.npy: its content is not what was sealed" in run("verify", folder)


def test_a_damaged_index_is_made_anew(own, run, caplog):
    flip(own / "knowledge.names/names.marisa", 300)
    assert "land" not in run("link", "--knowledge", own / "knowledge", own / "questions.jsonl")
    assert "it is made anew" in caplog.text and read_seal(own / "knowledge.names") is not None


def test_an_exact_copy_of_a_plugin_loads(own):
    load_plugin(shutil.copytree(own / "plugin", own / "copy"))
    assert json.loads((own / "copy" / SEAL).read_text())["outside"] == ["README.md"]

"""Hosts with a tuning on disk, and settings that are refused."""

import json
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from tiny import random_host, tiny_config
from tuned import SOME, batch_of, params_of, tuned_host

from kinject.errors import InputError
from kinject.models.heads import logits
from kinject.models.houlsby import Houlsby
from kinject.models.lora import Lora, merge_lora
from kinject.models.pretrained import load_host
from kinject.models.saving import merge_folder, save_host
from kinject.models.tuning import make_tuning
from kinject.models.tuning_base import attach

READ_AGAIN = """
import sys, numpy as np
sys.path[:0] = sys.argv[3:]
from tiny import tiny_batch
from kinject.models.heads import logits
from kinject.models.pretrained import load_host
loaded = load_host(sys.argv[1])
assert not {"torch", "transformers", "tensorflow"} & set(sys.modules)
np.save(sys.argv[2], logits(loaded.host, tiny_batch(loaded.config, [9, 5, 12], 12)))
print(loaded.fingerprint, loaded.encoder_fingerprint, loaded.host.tuning.to_json())
"""


@pytest.mark.parametrize("tuning", [SOME, Houlsby(bottleneck=4, layers=(1,))], ids=["lora", "houlsby"])
def test_saved_and_loaded_in_another_process(tuning, tmp_path):
    host = tuned_host(tuning)
    folder = save_host(host, tmp_path / "host")
    arguments = [str(folder), str(tmp_path / "logits.npy"), *sys.path]
    done = subprocess.run([sys.executable, "-c", READ_AGAIN, *arguments], capture_output=True, text=True, check=True)
    loaded = load_host(folder)
    assert done.stdout.strip() == f"{loaded.fingerprint} {loaded.encoder_fingerprint} {tuning.to_json()}"
    assert loaded.host.tuning == tuning and nnx.graphdef(loaded.host) == nnx.graphdef(host)
    before, after = params_of(host), params_of(loaded.host)
    assert before.keys() == after.keys()
    assert all(np.asarray(before[path]).tobytes() == np.asarray(after[path]).tobytes() for path in before)
    want = logits(host, batch_of(loaded.config, positions=False))
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), want, atol=1e-6)
    plain = load_host(save_host(random_host(tiny_config(), "classification", 3), tmp_path / "plain"))
    assert loaded.encoder_fingerprint != plain.encoder_fingerprint
    assert load_host(folder, head="none").encoder_fingerprint == loaded.encoder_fingerprint


def edit_json(folder, **changes):
    path = folder / "host.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_added(folder, change):
    tensors = load_file(folder / "tuning.safetensors")
    change(tensors)
    save_file(tensors, folder / "tuning.safetensors")


A = "encoder/layers/0/attention/qkv/lora/a"
BAD_FOLDERS = {
    "missing": (lambda f: (f / "tuning.safetensors").unlink(), "tuning.safetensors: is missing"),
    "truncated": (lambda f: (f / "tuning.safetensors").write_bytes(b"x" * 9), "tuning.safetensors: is truncated"),
    "lacks": (lambda f: edit_added(f, lambda t: t.pop(A)), f"tuning.safetensors: lacks {A}"),
    "unexpected": (lambda f: edit_added(f, lambda t: t.update(more=t[A])), "has more, which the tuning does not have"),
    "shape": (lambda f: edit_added(f, lambda t: t.update({A: t[A][:, :, :1].copy()})), f"{A} has shape"),
    "changed": (lambda f: edit_added(f, lambda t: t.update({A: t[A] * 2})), "host.json: encoder_fingerprint is"),
    "unnamed": (lambda f: edit_json(f, tuning=None), "but host.json names no tuning"),
    "without host.json": (lambda f: (f / "host.json").unlink(), "but host.json names no tuning"),
    "unknown": (lambda f: edit_json(f, tuning={"name": "lroa"}), "tuning.name: there is no tuning 'lroa'.*lora"),
    "no object": (lambda f: edit_json(f, tuning="lora"), "host.json: tuning: is 'lora'"),
    "other rank": (lambda f: edit_json(f, tuning=SOME.to_json() | {"rank": 7}), f"{A} has shape .* says"),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_bad_folders_are_refused_in_one_line(name, tmp_path):
    break_it, message = BAD_FOLDERS[name]
    folder = save_host(tuned_host(SOME, config=tiny_config(num_hidden_layers=1)), tmp_path / "host")
    break_it(folder)
    with pytest.raises(InputError, match=message) as caught:
        load_host(folder)
    assert "\n" not in str(caught.value)


BAD_SETTINGS = [
    ({"name": "lora", "rnak": 3}, r"tuning\.rnak: unknown key rnak; did you mean rank"),
    ({"name": "lora", "rank": 0}, r"tuning\.rank: .* greater than or equal to 1"),
    ({"name": "lora", "sites": ["query", "qeury"]}, r"tuning\.sites\.1"),
    ({"name": "lora", "sites": ["up", "up"]}, r"tuning\.sites: .* once"),
    ({"name": "lora", "dropout": 1.0}, r"tuning\.dropout"),
    ({"name": "houlsby", "activation": "swich"}, r"tuning\.activation: .*did you mean swish"),
    ({"name": "bitfit", "rank": 3}, r"tuning\.rank: unknown key"),
    ({"rank": 3}, r"tuning\.name: there is no tuning None"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        make_tuning(settings)


def test_what_does_not_fit_a_host_is_refused():
    with pytest.raises(InputError, match=r"there is no layer 2; layers are 0 to 1"):
        attach(random_host(tiny_config()), Lora(layers=(0, 2)), nnx.Rngs(0))
    host = tuned_host(SOME, head=None)
    with pytest.raises(InputError, match="has lora in it already, and gets no houlsby on top"):
        attach(host, Houlsby(), nnx.Rngs(0))
    with pytest.raises(InputError, match="only LoRA can be merged into a host, and its tuning is houlsby"):
        merge_lora(tuned_host(Houlsby(), head=None))


def test_merged_folder_keeps_where_it_is_from(tmp_path):
    extra = {"lineage": ["sha256:raw"], "task_options": {"n": 1}}
    source = save_host(tuned_host(SOME), tmp_path / "host", host_json={"task": "t", "extra": extra})
    before, after = load_host(source), load_host(merge_folder(source, tmp_path / "merged"))
    assert after.host.tuning is None and after.manifest["tuning"] is None
    assert after.manifest["task"] == "t" and after.manifest["extra"]["task_options"] == {"n": 1}
    assert after.manifest["extra"]["lineage"] == [before.encoder_fingerprint, "sha256:raw"]
    with pytest.raises(InputError, match="only LoRA"):
        merge_folder(tmp_path / "merged", tmp_path / "twice")

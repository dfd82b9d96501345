"""Checkpoints: only whole ones are chosen, and what is skipped is named."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinject.errors import InputError
from kinject.inference.mesh import Placement
from kinject.training.checkpoint import Checkpoints, meta_digest


def state(step: int) -> dict:
    return {"kernel": jnp.arange(6, dtype=jnp.float32) * step, "count": jnp.asarray(step, jnp.int32)}


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of steps 1, 2 and 3."""
    checkpoints = Checkpoints(tmp_path / "last", keep=None)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {"note": f"step {step}"})
        checkpoints.wait()
    checkpoints.close()
    return tmp_path / "last"


def restored(folder, template=None):
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.restore(state(0) if template is None else template)
    finally:
        checkpoints.close()


def cut(path, how):
    files = [file for file in path.rglob("*") if file.is_file() and file.parent.name == "d"]
    assert files, "the layout of checkpoints has changed"
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2] if how == "truncated" else content[:-1] + b"\x55")


def test_the_newest_is_restored(folder):
    found = restored(folder)
    assert (found.step, found.meta["note"]) == (3, "step 3")
    np.testing.assert_array_equal(found.state["kernel"], state(3)["kernel"])


@pytest.mark.parametrize("how", ["truncated", "changed"])
def test_damaged_ones_are_named_and_passed_over(folder, caplog, how):
    cut(folder / "3", how)
    found = restored(folder)
    assert found.step == 2 and int(found.state["count"]) == 2
    assert f"skipping damaged checkpoint {folder / '3'}" in caplog.text
    assert steps(folder) == [1, 2], "its step will be trained, and saved, again; those before it stay"


@pytest.mark.parametrize("digest", ["0" * 64, "f" * 64])
def test_content_is_held_to_its_digest(folder, caplog, digest):
    path = folder / "3" / "meta" / "metadata"
    told = {**json.loads(path.read_text()), "digest": digest}
    path.write_text(json.dumps({**told, "meta_digest": meta_digest(told)}))
    (folder / "3" / "seal.json").unlink()  # as those of earlier versions have none
    assert restored(folder).step == 2 and "its content does not have the digest" in caplog.text


def test_half_written_ones_are_never_chosen(folder, caplog):
    (folder / "9").mkdir()
    torn = folder / "12.orbax-checkpoint-tmp"
    (torn / "state").mkdir(parents=True)
    assert restored(folder).step == 3
    assert f"skipping {folder / '9'}: the checkpoint is incomplete" in caplog.text
    assert not torn.exists()


def test_without_a_whole_one_there_is_none(folder, caplog):
    for step in (1, 2, 3):
        (folder / str(step) / "meta" / "metadata").write_text("{")
    assert restored(folder) is None
    assert all(f"skipping damaged checkpoint {folder / str(step)}" in caplog.text for step in (1, 2, 3))


def test_another_configuration_is_refused_and_nothing_deleted(folder):
    with pytest.raises(InputError, match=r"'kernel'.* is \[\[6\], 'float32'\], the run expects \[\[7\], 'float32'\]"):
        restored(folder, {**state(0), "kernel": jnp.zeros(7)})
    with pytest.raises(InputError, match=r"'kernel'.* is \[\[6\], 'float32'\], the run expects \[\[5\], 'float32'\]"):
        restored(folder, {**state(0), "kernel": jnp.zeros(5)})
    assert restored(folder).step == 3


def test_it_goes_where_the_template_is(folder):
    place = Placement.over(2)
    template = jax.device_put(state(0), {"kernel": place.rows, "count": place.replicated})
    found = restored(folder, template)
    assert found.state["kernel"].sharding == place.rows and found.state["count"].sharding == place.replicated
    np.testing.assert_array_equal(found.state["kernel"], state(3)["kernel"])


def steps(folder):
    return sorted(int(each.name) for each in folder.iterdir() if each.name.isdigit())


def test_two_are_kept_in_a_folder_that_is_made_with_its_parents(tmp_path):
    checkpoints = Checkpoints(tmp_path / "a" / "b" / "last")
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {})
    checkpoints.close()
    assert steps(tmp_path / "a" / "b" / "last") == [2, 3]


def test_each_is_sealed_once_it_is_finished_and_held_to_its_seal(folder, caplog):
    assert all((folder / str(step) / "seal.json").exists() for step in (1, 2, 3))
    before = (folder / "3" / "seal.json").stat().st_mtime_ns
    checkpoints = Checkpoints(folder, keep=None)
    checkpoints.wait()
    assert (folder / "3" / "seal.json").stat().st_mtime_ns == before
    assert checkpoints.is_whole(3, state(0))
    (folder / "3" / "more").write_text("not listed")
    assert not checkpoints.is_whole(3, state(0)) and checkpoints.is_whole(2, state(0))
    assert f"damaged checkpoint {folder / '3'}: more: the folder's seal does not list it" in caplog.text
    checkpoints.close()
    assert restored(folder).step == 2


def test_what_is_before_or_after_a_step_is_dropped(folder):
    checkpoints = Checkpoints(folder, keep=None)
    checkpoints.drop_after(2)
    checkpoints.wait()
    assert steps(folder) == [1, 2]
    checkpoints.drop_before(2)
    checkpoints.close()
    assert steps(folder) == [2]


def test_one_that_will_not_do_is_passed_over_by_what_its_json_says(folder, caplog):
    checkpoints = Checkpoints(folder)
    found = checkpoints.restore(state(0), accept=lambda meta: "too new" if meta["step"] > 1 else "")
    checkpoints.close()
    assert found.step == 1 and caplog.text.count("too new") == 2 and steps(folder) == [1]


@pytest.mark.parametrize(("field", "value"), [("note", "another"), ("added", 1), ("step", 5), ("a", 1)])
def test_json_that_was_changed_is_no_checkpoints(folder, field, value):
    path = folder / "3" / "meta" / "metadata"
    told = json.loads(path.read_text())
    assert meta_digest(dict(reversed(told.items()))) == told["meta_digest"]  # whatever the order of its keys
    path.write_text(json.dumps({**told, field: value}))
    (folder / "3" / "seal.json").unlink()  # as those of earlier versions have none
    assert restored(folder).step == 2


def test_what_changes_after_a_save_is_not_saved(tmp_path):
    """Writing is asynchronous, and an iterator's state is its own dictionary, which goes on."""
    told, data = {"unlogged": [1.0]}, {"row": 1}
    iterator = types.SimpleNamespace(get_state=lambda: data)
    for step in range(1, 9):
        checkpoints = Checkpoints(tmp_path / str(step))
        data["row"] = step
        checkpoints.save(step, state(step), told, iterator)
        data["row"] = -1
        told["unlogged"].append(float(step))
        checkpoints.close()
        found = restored(tmp_path / str(step))
        assert found.meta["data"] == {"row": step} and len(found.meta["unlogged"]) == step


def test_where_the_data_was_goes_along(folder):
    class Data:
        state = {"row": 7}

        def get_state(self):
            return self.state

        def set_state(self, state):
            self.state = state

    checkpoints, data = Checkpoints(folder, keep=None), Data()
    checkpoints.save(4, state(4), {}, data)
    checkpoints.wait()
    data.state = {"row": 9}
    assert checkpoints.restore(state(0), data).step == 4 and data.state == {"row": 7}
    checkpoints.close()

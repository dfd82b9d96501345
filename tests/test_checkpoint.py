"""Checkpoints: only whole ones are chosen, and what is skipped is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinject.errors import InputError
from kinject.inference.mesh import Placement
from kinject.training.checkpoint import Checkpoints


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
    assert not (folder / "3").exists(), "its step will be trained, and saved, again"


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
    assert restored(folder).step == 3


def test_it_goes_where_the_template_is(folder):
    place = Placement.over(2)
    template = jax.device_put(state(0), {"kernel": place.rows, "count": place.replicated})
    found = restored(folder, template)
    assert found.state["kernel"].sharding == place.rows and found.state["count"].sharding == place.replicated
    np.testing.assert_array_equal(found.state["kernel"], state(3)["kernel"])

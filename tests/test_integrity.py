"""The seal of a folder: what was sealed opens, and whatever else stands there is refused in one line."""

import json
import os

import numpy as np
import pytest

from kinject.errors import InputError
from kinject.integrity import BLOCK, SEAL, of_hashes, open_sealed, read_seal, write_seal

ROWS = 3 * BLOCK // 32 + 5  # of 32 bytes: four blocks


@pytest.fixture
def folder(tmp_path):
    """A small file, a file of four blocks, one in a folder below."""
    (tmp_path / "a" / "below").mkdir(parents=True)
    (tmp_path / "a" / "small.json").write_text('{"x": 1}')
    (tmp_path / "a" / "below" / "empty").write_text("")
    np.save(tmp_path / "a" / "large.npy", np.arange(ROWS * 8, dtype="<f4").reshape(ROWS, 8))
    write_seal(tmp_path / "a")
    return tmp_path / "a"


def flip(path, at):
    with path.open("r+b") as file:
        file.seek(at)
        one = file.read(1)[0]
        file.seek(at)
        file.write(bytes([one ^ 4]))


def refused(folder, says):
    with pytest.raises(InputError, match=says):
        read_seal(folder)


def test_a_sealed_folder_opens_and_verifies(folder):
    seal = read_seal(folder)
    seal.verify()
    assert set(seal.files) == {"small.json", "large.npy", "below/empty"}
    assert "blocks" in seal.files["large.npy"] and "sha256" in seal.files["small.json"]
    assert seal.hash == read_seal(folder).hash == write_seal(folder)


def test_what_is_small_is_checked_on_opening(folder):
    flip(folder / "small.json", 6)
    refused(folder, "small.json: its content is not what was sealed")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: (a / "more").write_text("x"), "more: the folder's seal does not list it"),
        (lambda a: (a / "small.json").unlink(), "small.json: it is missing"),
        (lambda a: os.truncate(a / "large.npy", 2 * BLOCK), "large.npy: it has 2097152 bytes, seal.json says"),
        (lambda a: os.mkfifo(a / "below" / "pipe"), "pipe: it is no plain file"),
        (lambda a: (a / SEAL).write_text("{"), "it is no seal"),
        (lambda a: (a / SEAL).write_text("[1]"), "format is 'missing'"),
        (lambda a: (a / SEAL).write_text('{"format": 2}'), "format is 2, this kinject reads 1"),
        (lambda a: (a / SEAL).write_text('{"format": 1, "files": {"small.json": {"size": -1}}}'), "bad entry"),
        (lambda a: ((a / SEAL).unlink(), os.mkfifo(a / SEAL)), "it is no plain file"),
    ],
)
def test_what_is_not_as_it_was_sealed_is_refused(folder, change, says):
    change(folder)
    refused(folder, says)


def test_two_files_that_changed_places_are_refused(folder):
    (folder / "other.json").write_text('{"y": 2}')
    write_seal(folder)
    (folder / "small.json").rename(folder / "x")
    (folder / "other.json").rename(folder / "small.json")
    (folder / "x").rename(folder / "other.json")
    refused(folder, "its content is not what was sealed")


def test_a_block_is_checked_when_it_is_first_read(folder):
    flip(folder / "large.npy", 2 * BLOCK + 700)
    seal = read_seal(folder)
    made = np.load(folder / "large.npy", mmap_mode="r")
    rows = seal.array("large.npy", made)
    np.testing.assert_array_equal(rows[:1000], made[:1000])
    assert rows[5, 3] == made[5, 3] and rows[-1].tolist() == made[-1].tolist()
    np.testing.assert_array_equal(rows[np.array([[0, 1], [-1, 9]])], made[np.array([[0, 1], [-1, 9]])])
    bad = (2 * BLOCK + 700 - made.offset) // 32
    for index in (bad, np.array([0, bad]), slice(bad, bad + 1), slice(None, None, -1), [bad - ROWS]):
        with pytest.raises(InputError, match=r"large.npy: its content is not what was sealed \(from byte 2097152\)"):
            rows[index]
    mask = np.zeros(ROWS, bool)
    mask[bad] = True
    for whole in (lambda: np.asarray(rows), lambda: rows.sum(), lambda: rows * 2, lambda: rows[mask], seal.verify):
        with pytest.raises(InputError, match="from byte 2097152"):
            whole()


def test_a_checked_array_is_read_like_the_array(folder):
    made = np.load(folder / "large.npy", mmap_mode="r")
    rows = read_seal(folder).array("large.npy", made)
    assert len(rows) == ROWS and rows.shape == made.shape and rows.dtype == made.dtype and rows.itemsize == 4
    assert (rows + 1)[3, 0] == made[3, 0] + 1 and rows.sum() == made.sum() and (rows == made).all()
    with pytest.raises(IndexError):
        rows[ROWS]


def test_what_changes_is_outside_and_hidden_files_are_nobodys(folder):
    (folder / "HEAD.json").write_text("1")
    (folder / "revisions").mkdir()
    write_seal(folder, outside=["HEAD.json", "revisions"])
    (folder / "HEAD.json").write_text("2")
    (folder / "revisions" / "r").write_text("2")
    (folder / ".lock").write_text("")
    (folder / "host").mkdir()
    (folder / "host" / "x").write_text("2")
    refused(folder, "host/x: the folder's seal does not list it")
    write_seal(folder / "host")
    assert read_seal(folder).files.keys() == {"small.json", "large.npy", "below/empty"}


def test_a_folder_without_a_seal_opens_and_one_line_says_so(folder, caplog):
    (folder / SEAL).unlink()
    assert open_sealed(folder, "its weights") is None and open_sealed(folder, "its weights") is None
    (said,) = caplog.messages
    assert said == f"{folder} has no seal.json: its weights could not be checked; kinject seal writes one"
    os.mkfifo(folder / "model.npy")
    with pytest.raises(InputError, match="it is no plain file"):
        open_sealed(folder, "its weights")


def test_hashes_from_elsewhere_check_whole_files(folder):
    entry = json.loads((folder / SEAL).read_text())["files"]["small.json"]
    seal = of_hashes(folder, {"small.json": (entry["size"], entry["sha256"]), "huge.npy": (1 << 40, "")})
    seal.check("small.json")
    assert "huge.npy" not in seal.files
    flip(folder / "small.json", 2)
    seal.forget()
    with pytest.raises(InputError, match="its content is not what was sealed"):
        seal.check("small.json")

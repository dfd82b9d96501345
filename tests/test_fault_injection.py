"""Some rounds of tests/faults: a fault in any file ends in the same answer or in one line, a kill in all or nothing.

All of it, at length: `python -m tests.faults --rounds 1000 --kills 200`, which writes docs/reliability.md.
"""

import pytest
from faults import injection, kills, page, texts
from faults.apart import apart, killed_after
from faults.world import write_living

SMALL = ("host", "plugin", "knowledge", "knowledge.names", "memory", "living", "texts")


@pytest.fixture(scope="module")
def whole(small_world, tmp_path_factory):
    """The small parts of the world of tests/faults, and what reading each comes to."""
    import shutil

    world = shutil.copytree(small_world, tmp_path_factory.mktemp("faults") / "world")
    write_living(world / "living", world / "knowledge")
    texts.write_texts(world / "texts")
    folder = world.parent / "w"
    return world, {part: injection.read_part(injection.copied(world, folder, part), part) for part in SMALL[:-1]}


@pytest.mark.parametrize("fault", injection.FAULTS)
def test_a_fault_ends_in_the_same_answer_or_in_one_line(whole, tmp_path, fault, monkeypatch):
    world, wanted = whole
    monkeypatch.setattr(injection, "PARTS", {part: injection.PARTS[part] for part in SMALL})
    for seed in range(5):
        found = injection.judged(world, tmp_path / "w", seed, wanted, fault)
        assert found.outcome in injection.FINE, found


def test_the_injector_sees_what_is_silently_wrong(whole, tmp_path, monkeypatch):
    world, wanted = whole
    monkeypatch.setattr(injection, "PARTS", {"memory": injection.PARTS["memory"], "living": injection.PARTS["living"]})
    other = dict.fromkeys(wanted, "another digest")
    found = [injection.judged(world, tmp_path / "w", seed, other, "flip") for seed in range(4)]
    assert {one.outcome for one in found} <= {"refused", "silently wrong"}
    path = tmp_path / "records.jsonl"
    path.write_text('{"text": "one"}\n')
    assert texts.plainly(path) == injection.text_read(path) == [["one", [], {}]]
    assert injection._judged_text(world / "texts/records.jsonl", path) == "as it stands"


@pytest.mark.filterwarnings("ignore:os.fork")  # these writers never ask JAX
@pytest.mark.parametrize("what", ["split", "a memory's editor", "memory build", "knowledge build --vectors"])
def test_a_kill_at_any_file_that_is_touched_leaves_all_or_nothing(whole, tmp_path, what):
    world, _ = whole
    write, read, needs = kills.WRITERS[what]

    def fresh(name):
        import shutil

        (tmp_path / name).mkdir()
        for one in needs:
            shutil.copytree(world / one, tmp_path / name / one)
        return tmp_path / name

    folder = fresh("measured")
    events = apart(lambda: kills.counting(lambda: write(folder)))
    wanted = apart(lambda: read(folder))
    for at in range(1, events + 1, max(1, events // 3)):
        folder = fresh(str(at))
        killed_after(lambda folder=folder, at=at: kills.counting(lambda: write(folder), at), 60)
        assert kills.after(write, read, folder, what, wanted) == "same", at


def test_the_page_counts_what_was_done_and_keeps_what_others_wrote(tmp_path):
    path = tmp_path / "reliability.md"
    path.write_text(f"# R\n\n{page.BEGIN}\nstale\n{page.END}\n\n## Soak\n")
    rounds = [
        {"seed": 1, "fault": "flip", "file": "host/config.json", "outcome": "refused"},
        {"seed": 2, "fault": "cut", "file": "wide/ids.marisa", "outcome": "crash: signal 11", "large": True},
    ]
    killed = [{"seed": 0, "what": "train", "middle": True, "outcome": "same"}]
    assert page.written(path, rounds, killed, 0) == rounds[1:]
    text = path.read_text()
    assert "| flip | 0 | 1 | 0 | 0 |" in text and "| cut | 0 | 0 | 0 | 1 |" in text and "| train | 1 | 1 | 0 |" in text
    assert text.startswith("# R\n") and text.endswith("## Soak\n") and "stale" not in text and "signal 11" in text

"""One round: a copy of a world, one fault in one of its files, and what reading it then comes to."""

import hashlib
import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tiny_world import run_experiment

from faults import texts
from faults.world import run_config
from kinject.errors import InputError

FAULTS = (
    *("flip", "cut", "empty", "zeros", "append", "delete", "swap", "foreign", "extra"),
    *("pipe", "folder", "dangling", "loop"),
)
FINE = ("same", "refused", "as it stands")
BLOCK = 1 << 20


class Part(NamedTuple):
    """A folder that faults are put into, how it is read, and what is read with it."""

    read: object
    needs: tuple[str, ...] = ()


class Round(NamedTuple):
    """What was done and what came of it."""

    seed: int
    fault: str
    file: str
    outcome: str
    said: str = ""
    large: bool = False


def base_read(world: Path, part: str):
    """A knowledge base and the index of its names."""
    from kinject.knowledge import KnowledgeBase
    from kinject.linking import AliasLinker

    base = KnowledgeBase.open(world / part.removesuffix(".names"))
    rows = np.arange(base.size)
    vectors, found = base.gather(rows)
    yield from (vectors.tobytes(), found.tobytes(), base.ids(rows[:: max(1, base.size // 500)]))
    yield from (base.rows(["Q1", "Q59", "none"]).tobytes(), [base.entity(int(row)) for row in rows[::97]])
    yield (base.relations, b"" if base.triples is None else hashlib.sha256(np.asarray(base.triples)).hexdigest())
    linker = AliasLinker(base)
    yield [linker(f"city{i} and town{i * 7919:x} are far, late {i % 3} too") for i in range(60)]


def living_read(world: Path, part: str):
    """A base that has grown: its newest revision, its log, and each revision before."""
    from kinject.knowledge import KnowledgeBase

    base = KnowledgeBase.open(world / part)
    yield from base_read(world, part)
    yield [{key: value for key, value in one.items() if key != "time"} for one in base.log()]
    for revision in range(base.revision - 4, base.revision):
        before = base.at(revision)
        yield [before.revision, before.fingerprint, before.gather(np.arange(before.size))[0].tobytes().hex()[:64]]


def answers(world: Path, part: str):
    """What a host says with a plugin in, and alone."""
    from kinject.knowledge import KnowledgeBase
    from kinject.serving import Host

    of = "large_" if part.startswith("large_") else ""
    host = Host.load(world / f"{of}host", batch_size=1)
    host.plug(world / f"{of}plugin", knowledge=KnowledgeBase.open(world / f"{of}knowledge"))
    yield [one.to_json() for one in host.stream(["city57 is in [MASK] ."], compare=True)]


def memory_read(world: Path, part: str):
    from kinject.memory import PassageMemory

    memory = PassageMemory.open(world / part)
    alive = np.flatnonzero(memory.alive)
    yield from (alive.tobytes(), memory.texts(alive), [memory.rows_about(f"Q{i}") for i in range(8)])
    yield from (np.asarray(one[alive]).tobytes() for one in (memory.keys, memory.values, memory.tokens))


def run_read(world: Path, part: str):
    """A training that goes on from its checkpoints to its end; host, base and records are those of the whole world."""
    from kinject.plugins.store import load_plugin

    whole = Path(os.environ["FAULTS_WORLD"])
    run_experiment(run_config(whole, part.removesuffix("run")), world / part)
    made = load_plugin(world / part / "plugin")
    yield (world / part / "metrics.jsonl").read_bytes()
    yield sorted(made.manifest["metrics"].items())
    from fault_world import plugin_params

    yield from (np.asarray(one[...]).tobytes() for one in plugin_params(made.plugin))


def texts_read(world: Path, part: str):
    for path in sorted((world / part).iterdir()):
        yield text_read(path)


def text_read(path: Path):
    with tempfile.TemporaryDirectory() as scratch:
        return texts.read(path, Path(scratch))


HOSTED = ("host", "plugin", "knowledge")
PARTS = {
    "host": Part(answers, HOSTED),
    "plugin": Part(answers, HOSTED),
    "knowledge": Part(base_read, ("knowledge", "knowledge.names")),
    "knowledge.names": Part(base_read, ("knowledge", "knowledge.names")),
    "memory": Part(memory_read, ("memory",)),
    "living": Part(living_read, ("living", "living.names")),
    "run": Part(run_read, ("run",)),
    "texts": Part(texts_read, ("texts",)),
    "large_host": Part(answers, tuple(f"large_{name}" for name in HOSTED)),
    "large_plugin": Part(answers, tuple(f"large_{name}" for name in HOSTED)),
    "wide": Part(base_read, ("wide", "wide.names")),
    "wide.names": Part(base_read, ("wide", "wide.names")),
    "large_memory": Part(memory_read, ("large_memory",)),
    "large_living": Part(living_read, ("large_living", "large_living.names")),
    "large_run": Part(run_read, ("large_run",)),
}


def read_part(world: Path, part: str) -> str:
    """Reads an artefact as its users do; the digest of all that came of it."""
    digest = hashlib.sha256()
    for one in PARTS[part].read(world, part):
        digest.update(one if isinstance(one, bytes) else json.dumps(one, default=str).encode())
    return digest.hexdigest()


def copied(world: Path, folder: Path, part: str) -> Path:
    """What is read of a part, of the world's own bytes by hard links: a fault breaks the one of its file."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in PARTS[part].needs:
        if (world / name).exists():
            shutil.copytree(world / name, folder / name, copy_function=os.link, symlinks=True)
    if part.endswith("run"):  # which is written on
        shutil.rmtree(folder / part)
        shutil.copytree(world / part, folder / part)
    return folder


def chosen(world: Path, seed: int, fault: str | None = None) -> tuple[str, str, Path]:
    """(part, fault, file) of a round; the seed says which."""
    draw = random.Random(seed)
    part = draw.choice(list(PARTS))
    files = [path for path in sorted((world / part).rglob("*")) if path.is_file()]
    large = [path for path in files if path.stat().st_size > BLOCK]
    path = draw.choice(large if large and draw.random() < 0.5 else files)
    return part, fault or draw.choice(FAULTS), path.relative_to(world)


def inject(world: Path, folder: Path, seed: int, fault: str | None = None) -> tuple[str, str, Path]:
    """Puts the fault of a seed into a copy of its part; returns (part, fault, file)."""
    part, fault, name = chosen(world, seed, fault)
    draw, path = random.Random(seed + 1_000_003), copied(world, folder, part) / name
    content = path.read_bytes()
    at = draw.randrange(max(1, len(content)))
    path.unlink()
    if fault == "flip":
        path.write_bytes(
            content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :] if content else b""
        )
    elif fault == "cut":
        path.write_bytes(content[:at])
    elif fault == "zeros":  # as a disk that lost power leaves them
        path.write_bytes(content[:at] + bytes(min(4096, len(content) - at)) + content[at + 4096 :])
    elif fault == "append":
        path.write_bytes(content + draw.randbytes(1 + draw.randrange(64)))
    elif fault in ("swap", "foreign"):
        _exchange(world, folder / part, path, content, draw, fault)
    elif fault == "extra":
        path.write_bytes(content)
        path.with_name(f"{path.stem}_1{path.suffix}").write_bytes(content)
    else:
        links = {"dangling": "nowhere", "loop": path.name}
        {"pipe": os.mkfifo, "folder": os.mkdir, "empty": Path.touch}.get(fault, id)(path)
        if fault in links:
            path.symlink_to(links[fault])
    return part, fault, name


def _exchange(world, folder, path, content, draw, fault):
    """Two files of a folder change places, or one is replaced by another artefact's of its name."""
    if fault == "foreign":
        others = [one for one in sorted(world.rglob(path.name)) if one.is_file() and one.read_bytes() != content]
        path.write_bytes(draw.choice(others).read_bytes() if others else content[::-1])
        return
    others = [one for one in sorted(folder.rglob("*")) if one.is_file()]
    other = draw.choice(others) if others else path
    if other != path:
        other.rename(path)
    other.write_bytes(content)


def judged(world: Path, folder: Path, seed: int, wanted: dict[str, str], fault: str | None = None) -> Round:
    """One round: injects into a copy in `folder`, reads what it was put into, and says what came of it."""
    part, fault, name = inject(world, folder, seed, fault)
    about = {"large": (world / name).stat().st_size > BLOCK}
    try:
        if part == "texts":
            return Round(seed, fault, str(name), _judged_text(world / name, folder / name), **about)
        same = read_part(folder, part) == wanted[part]
    except InputError as error:
        one_line = str(error).count("\n") == 0 and str(error).isprintable()
        said = str(error).replace(str(folder), "")
        return Round(seed, fault, str(name), "refused" if one_line else "several lines", said, **about)
    except Exception as error:
        return Round(seed, fault, str(name), "traceback", repr(error)[:300].replace(str(folder), ""), **about)
    return Round(seed, fault, str(name), "same" if same else "silently wrong", **about)


def _judged_text(whole: Path, damaged: Path) -> str:
    found = text_read(damaged)
    if found == text_read(whole):
        return "same"
    if whole.suffix in texts.PACKED:
        return "silently wrong"
    try:
        return "as it stands" if json.dumps(found) == json.dumps(texts.plainly(damaged)) else "silently wrong"
    except Exception as error:
        return f"read, but not by others: {error!r}"[:200]

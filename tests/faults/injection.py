"""One round: a copy of a world, one fault in one of its files, and what reading the world then comes to."""

import hashlib
import json
import os
import random
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fault_world import encode

from kinject.errors import InputError

PARTS = ("knowledge", "wide", "plugin", "host", "memory")  # artefacts, by folder; an index belongs to its base
READ = {"knowledge.names": "knowledge", "wide.names": "wide"}
FAULTS = ("flip", "cut", "empty", "append", "delete", "swap", "pipe", "folder", "dangling")
FINE = ("same", "refused")


class Round(NamedTuple):
    """What was done and what came of it."""

    seed: int
    fault: str
    file: str
    outcome: str
    said: str = ""


def write_wide(world: Path) -> None:
    """Adds a knowledge base whose vectors are several blocks, with its names."""
    from kinject.knowledge import KnowledgeBase, write_knowledge
    from kinject.linking import AliasLinker

    vectors = np.random.default_rng(1).normal(size=(20_000, 32)).astype(np.float32)
    ids = [f"Q{i}" for i in range(len(vectors))]
    triples = np.stack([np.arange(20_000), np.zeros(20_000), np.arange(20_000)[::-1]], 1).astype(np.int32)
    about = {"labels": [f"town{i}" for i in range(len(ids))], "triples": np.tile(triples, (6, 1)), "relations": ["r"]}
    write_knowledge(world / "wide", name="wide", ids=ids, vectors=vectors, **about)
    AliasLinker(KnowledgeBase.open(world / "wide"))


def inject(world: Path, seed: int, fault: str | None = None) -> tuple[str, str]:
    """Puts one fault, chosen by the seed, into one file; returns which fault and which file."""
    draw = random.Random(seed)
    folder = draw.choice([*PARTS, *READ])
    files = [path for path in sorted((world / folder).rglob("*")) if path.is_file()]
    path = draw.choice(files)
    fault = fault or draw.choice(FAULTS)
    size = path.stat().st_size
    if fault == "flip" and size:
        with path.open("r+b") as file:
            at = draw.randrange(size)
            file.seek(at)
            one = file.read(1)[0] ^ (1 << draw.randrange(8))
            file.seek(at)
            file.write(bytes([one]))
    elif fault == "cut" and size:
        os.truncate(path, draw.randrange(size))
    elif fault == "append":
        with path.open("ab") as file:
            file.write(draw.randbytes(1 + draw.randrange(64)))
    elif fault == "swap":
        other = draw.choice([one for one in files if one != path] or files)
        aside = path.with_name(".aside")
        path.rename(aside)
        if other != path:
            other.rename(path)
        aside.rename(other)
    else:
        path.unlink()
        {"pipe": os.mkfifo, "folder": os.mkdir, "dangling": lambda at: at.symlink_to("nowhere")}.get(fault, id)(path)
        if fault in ("empty", "flip", "cut"):
            path.write_bytes(b"")
    return fault, str(path.relative_to(world))


def read_part(world: Path, part: str) -> str:
    """Reads an artefact as its users do; the digest of all that came of it."""
    digest = hashlib.sha256()
    for one in {"plugin": _answers, "host": _answers, "memory": _memory}.get(part, _base)(world, part):
        digest.update(one if isinstance(one, bytes) else json.dumps(one, default=str).encode())
    return digest.hexdigest()


def _base(world, part):
    from kinject.knowledge import KnowledgeBase
    from kinject.linking import AliasLinker

    base = KnowledgeBase.open(world / part)
    rows = np.arange(base.size)
    vectors, found = base.gather(rows)
    yield from (vectors.tobytes(), found.tobytes(), base.ids(rows[:: max(1, base.size // 500)]))
    yield from (base.rows(["Q1", "Q59", "none"]).tobytes(), base.entity(7), base.relations)
    yield b"" if base.triples is None else np.asarray(base.triples).tobytes()
    linker = AliasLinker(base)
    yield [linker(f"city{i} and town{i * 7} are far") for i in range(60)]


def _answers(world, part):
    from kinject.knowledge import KnowledgeBase
    from kinject.serving import Host

    host = Host.load(world / "host", batch_size=1)
    host.plug(world / "plugin", knowledge=KnowledgeBase.open(world / "knowledge"))
    texts = [json.loads(line)["text"] for line in (world / "questions.jsonl").read_text().splitlines()]
    yield [one.to_json() for one in host.stream(texts[:1], compare=True)]


def _memory(world, part):
    from kinject.memory import PassageMemory

    memory = PassageMemory.open(world / "memory")
    alive = np.flatnonzero(memory.alive)
    yield from (alive.tobytes(), memory.texts(alive), [memory.rows_about(f"Q{i}") for i in range(8)])
    yield from (np.asarray(one[alive]).tobytes() for one in (memory.keys, memory.values, memory.tokens))


def expected(world: Path) -> dict[str, str]:
    """What reading each artefact comes to while the world is whole."""
    return {part: read_part(world, part) for part in PARTS}


def judged(world: Path, seed: int, wanted: dict[str, str], fault: str | None = None) -> Round:
    """Injects one fault into a world (a copy), reads what it was put into, and says what came of it."""
    fault, file = inject(world, seed, fault)
    part = file.split("/")[0]
    part = READ.get(part, part)
    try:
        same = read_part(world, part) == wanted[part]
    except InputError as error:
        one_line = str(error).count("\n") == 0 and str(error).isprintable()
        return Round(seed, fault, file, "refused" if one_line else "several lines", str(error).replace(str(world), ""))
    except Exception as error:
        return Round(seed, fault, file, "traceback", repr(error)[:200].replace(str(world), ""))
    return Round(seed, fault, file, "same" if same else "silently wrong")


def copied(world: Path, folder: Path) -> Path:
    """A copy to be damaged; what an earlier round left there is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(world, folder))


def write_and_check(world: Path, what: str) -> None:
    """Writes an artefact of a kind, to be killed somewhere in it."""
    from kinject.integrity import write_seal
    from kinject.knowledge import KnowledgeBase, write_knowledge
    from kinject.linking import AliasLinker
    from kinject.memory import Passage, PassageMemory

    base = KnowledgeBase.open(world / "wide")
    if what == "base":
        write_knowledge(world / "new", name="new", ids=base.ids(range(base.size)), vectors=np.asarray(base.vectors))
    elif what == "names":
        shutil.rmtree(world / "wide.names", ignore_errors=True)
        AliasLinker(base)
    elif what == "seal":
        for _ in range(40):
            write_seal(world / "host")
    else:
        with PassageMemory.open(world / "memory", write=True) as memory:
            for i in range(40):
                (row,) = memory.add([Passage(f"city{i} is far .", f"Q{i}")], encode)
                memory.delete([row])


WRITERS = ("base", "names", "seal", "memory")


def after_kill(world: Path, what: str, wanted: dict[str, str]) -> str:
    """What a kill while writing left: "whole", "nothing", or what is wrong with it."""
    from kinject.knowledge import KnowledgeBase
    from kinject.memory import PassageMemory

    try:
        if what == "base":
            if not (world / "new").exists():
                return "nothing"
            KnowledgeBase.open(world / "new").verify()
        elif what == "names":
            return "whole" if read_part(world, "wide") == wanted["wide"] else "differs"
        elif what == "seal":
            return "whole" if read_part(world, "host") == wanted["host"] else "differs"
        else:
            with PassageMemory.open(world / "memory", write=True) as memory:
                texts = [one.text for _, one in memory.passages()]
            if not {f"city{i} is in land{i % 5} ." for i in range(8)} <= set(texts):
                return "lost"
            PassageMemory.open(world / "memory").texts([0])
    except Exception as error:
        return repr(error)[:200]
    return "whole"

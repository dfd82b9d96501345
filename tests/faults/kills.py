"""Kills: commands that write, each cut short by SIGKILL, read, and run again to their end."""

import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import numpy as np

from faults.apart import apart, forked, killed_after

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")
COMPILED = ["--no-compilation-cache", "--quiet"]


def cli(*argv):
    from kinject.cli.main import main

    code = main([str(one) for one in argv])
    if code not in (0, 75):
        raise RuntimeError(f"{argv[0]} ended with {code}")


def bytes_of(*paths):
    return [path.read_bytes().hex()[:4096] + str(path.stat().st_size) for path in paths if path.exists()]


def base_of(folder):
    from kinject.knowledge import KnowledgeBase

    if not folder.exists():
        return None
    base = KnowledgeBase.open(folder)
    return [base.verify(), base.gather(np.arange(base.size))[0].tobytes().hex()[:4096]]


def plugin_of(folder):
    from fault_world import plugin_params

    from kinject.plugins.store import load_plugin

    if not folder.exists():
        return None
    return [np.asarray(one[...]).tobytes().hex() for one in plugin_params(load_plugin(folder).plugin)]


def run_of(workdir, plugins=("plugin",)):
    """What a workdir has come to once it is done; None before, when nothing of it is believed but its checkpoints."""
    if not (workdir / "results.json").exists() or not all((workdir / one).exists() for one in plugins):
        return None
    return [bytes_of(workdir / "metrics.jsonl"), [plugin_of(workdir / one) for one in plugins]]


def build(w):
    cli(
        "knowledge",
        "build",
        "--triples",
        w / "texts/triples.tsv",
        "--dim",
        4,
        "--epochs",
        2,
        "--quiet",
        "--out",
        w / "n",
    )


def imported(w):
    cli("knowledge", "build", "--vectors", w / "texts/vectors.txt", "--vectors-format", "word2vec", "--out", w / "n")


def names(w):
    from kinject.knowledge import KnowledgeBase
    from kinject.linking import AliasLinker

    AliasLinker(KnowledgeBase.open(w / "wide"))


def names_found(w):
    from faults.injection import read_part

    return read_part(w, "wide")


def seal(w):
    for _ in range(5):
        cli("seal", w / "host", w / "plugin", w / "knowledge", w / "memory")


def sealed(w):
    from kinject.cli.verify import verify

    return [verify(w / name).replace(str(w), "") for name in ("host", "plugin", "knowledge", "memory")]


def memory_edit(w):
    from fault_world import encode

    from kinject.memory import Passage, PassageMemory

    with PassageMemory.open(w / "memory", write=True) as memory:
        for i in range(30):
            (row,) = memory.add([Passage(f"city{i} is far .", "Q1")], encode)
            memory.delete([row])


def memory_left(w):
    """The passages that nobody deleted: all, whenever the editing was cut; the reader and the next editor see them."""
    from kinject.memory import PassageMemory

    with PassageMemory.open(w / "memory", write=True):
        pass
    texts = [one.text for one in PassageMemory.open(w / "memory").texts(range(8))]
    return texts if PassageMemory.open(w / "memory").alive[:8].all() else "lost"


def memory_build(w):
    from fault_world import encode

    from kinject.memory import Passage, build_memory

    passages = [Passage(f"city{i} is in land{i % 5} .", f"Q{i}") for i in range(300)]
    prints = {"encoder_fingerprint": "sha256:e", "plugin_fingerprint": "sha256:p"}
    if not (w / "n").exists():
        build_memory(
            w / "n", passages, encode, name="m", sizes={"hidden_size": 4, "key_size": 2, "length": 3}, **prints
        )


def memory_built(w):
    from kinject.memory import PassageMemory

    return PassageMemory.open(w / "n").texts(range(300)).__repr__() if (w / "n").exists() else None


def exported(w):
    """The file's tensors and what it says of them; the library writes its metadata in any order."""
    from safetensors import safe_open

    if not (w / "x.safetensors").exists():
        return None
    with safe_open(w / "x.safetensors", "np") as file:
        return [
            sorted(file.metadata().items()),
            [file.get_tensor(name).tobytes().hex() for name in sorted(file.keys())],
        ]


def export(w):
    if not (w / "x.safetensors").exists():
        cli("plugins", "export", w / "plugin", "--safetensors", w / "x.safetensors")


def split(w):
    cli("split", w / "texts/records.jsonl", "--into", "a=.5,b=.3,c=.2", "--out", w / "parts")


def split_parts(w):
    found = bytes_of(*sorted((w / "parts").glob("*.jsonl"))) if (w / "parts").exists() else []
    return found if len(found) == 3 else None


def config_file(w, stages="plugin"):
    """A config of two stages of the whole world, written beside the workdir."""
    from faults.world import run_config

    config = run_config(Path(os.environ["FAULTS_WORLD"]), "")
    config["stages"]["plugin"]["fit"] = {**config["stages"]["plugin"]["fit"], "steps": 8}
    if stages == "two":
        config["stages"] = {"first": config["stages"]["plugin"], "plugin": {**config["stages"]["plugin"]}}
    path = w / "c.py"
    path.write_text(f"def get_config(arg=''):\n    return {config!r}\n")
    return path


def train(w):
    cli("train", "--config", config_file(w), "--workdir", w / "r", "--devices", 1, *COMPILED)


def train_two(w):
    cli("train", "--config", config_file(w, "two"), "--workdir", w / "r", "--devices", 1, *COMPILED)


def sweep(w):
    cli("sweep", "--config", config_file(w), "--workdir", w / "s", "--seeds", "0,1")


def swept(w):
    runs = sorted(path for path in (w / "s").glob("c-seed*") if path.is_dir()) if (w / "s").exists() else []
    done = [run_of(one) for one in runs]
    return done if len(done) == 2 and None not in done and (w / "s/results.csv").exists() else None


def tune(w):
    whole = Path(os.environ["FAULTS_WORLD"])
    if not (w / "n").exists():
        of = ["--host", whole / "host", "--knowledge", whole / "knowledge", "--data", whole / "train.jsonl"]
        cli("tune", *of, "--dev", whole / "dev.jsonl", "--workdir", w / "t", "--out", w / "n", "--quiet")


WRITERS = {
    "knowledge build --triples": (build, lambda w: base_of(w / "n"), ("texts",)),
    "knowledge build --vectors": (imported, lambda w: base_of(w / "n"), ("texts",)),
    "the index of names": (names, names_found, ("wide",)),
    "seal": (seal, sealed, ("host", "plugin", "knowledge", "memory")),
    "a memory's editor": (memory_edit, memory_left, ("memory",)),
    "memory build": (memory_build, memory_built, ()),
    "plugins export": (export, exported, ("plugin",)),
    "split": (split, split_parts, ("texts",)),
    "train": (train, lambda w: run_of(w / "r"), ()),
    "train, two stages": (train_two, lambda w: run_of(w / "r", ("first", "plugin")), ()),
    "sweep": (sweep, swept, ()),
    "tune": (tune, lambda w: plugin_of(w / "n"), ()),
}
KEEP = {"knowledge build --triples", "knowledge build --vectors"}  # which refuse a folder that is there
TOGETHER = "train, two processes"
LONG = ("train", "train, two stages", "sweep", "tune", TOGETHER)  # seconds each: one kill for three of the others
SHORT = [what for what in WRITERS if what not in LONG]
ORDER = [*LONG[:3], *SHORT, *LONG[3:], *SHORT, *SHORT]


def some_kills(state, seeds, kills, deadline):
    """Kills until the time is over; what came of each goes into `kills`."""
    known = state / "kills.json"
    facts = json.loads(known.read_text()) if known.exists() else {}
    for seed in sorted(seeds, key=lambda seed: ORDER[seed % len(ORDER)] in LONG):  # the short ones first
        if seed in kills.found or time.monotonic() > deadline:
            continue
        what = ORDER[seed % len(ORDER)]
        if what not in facts:
            facts[what] = together_facts(state) if what == TOGETHER else measured(state, what)
            known.write_text(json.dumps(facts))
        one = together_kill(state, seed, facts[what]) if what == TOGETHER else one_kill(state, what, seed, facts[what])
        kills.add({"seed": seed, "what": what, **one})


def fresh(state, what):
    """A folder with whole copies of what a writer reads or changes."""
    folder = state / "killed"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in WRITERS[what][2]:
        shutil.copytree(state / "world" / name, folder / name)
    return folder


def counting(work, at=None):
    """Runs `work`; counts what it does to files, and kills this process when it does it for the `at`-th time."""
    count = 0

    def seen(event, arguments):
        nonlocal count
        if event in EVENTS or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES):
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(seen)
    work()
    return count


def measured(state, what):
    """How long a writer takes when nothing disturbs it, how often it touches files, and what it comes to."""
    write, read, _ = WRITERS[what]
    folder = fresh(state, what)
    apart(lambda: write(folder))  # compiles
    folder = fresh(state, what)
    started = time.monotonic()
    events = apart(lambda: counting(lambda: write(folder)))
    return {"seconds": time.monotonic() - started, "events": events, "wanted": apart(lambda: read(folder))}


def one_kill(state, what, seed, facts):
    draw, (write, read, _), folder = random.Random(seed), WRITERS[what], fresh(state, what)
    if draw.random() < 0.5:
        at = draw.randint(1, facts["events"])
        middle = killed_after(lambda: counting(lambda: write(folder), at), 600) or True
    else:
        middle = killed_after(lambda: write(folder), draw.uniform(0, facts["seconds"]))
    return {"middle": middle, "outcome": after(write, read, folder, what, facts["wanted"])}


def after(write, read, folder, what, wanted):
    """What a kill left, and whether the same command comes to the same bits."""
    try:
        left = apart(lambda: read(folder))
        if left is not None and left != wanted:
            return "differs after the kill"
        if left is None or what not in KEEP:
            apart(lambda: write(folder))
        again = apart(lambda: read(folder))
    except RuntimeError as error:
        return f"cannot be read or run again: {error}"
    return "same" if again == wanted else "differs after it ran again"


def together(folder, kill_after=None):
    """A training of two processes; with `kill_after`, one is killed then and the other a moment later."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = config_file(folder)

    def work(number):
        where = ["--coordinator", f"127.0.0.1:{port}", "--processes", 2, "--process-id", number]
        return lambda say: cli("train", "--config", config, "--workdir", folder / "r", *COMPILED, *where)

    children = [forked(work(number)) for number in range(2)]
    started = time.monotonic()
    if kill_after is not None:
        time.sleep(kill_after[0])
        os.kill(children[kill_after[1]][0], signal.SIGKILL)
        time.sleep(0.3)
        os.kill(children[1 - kill_after[1]][0], signal.SIGKILL)
    codes = [os.waitpid(child, 0)[1] for child, _ in children]
    for _, read in children:
        os.close(read)
    return time.monotonic() - started, codes


def together_facts(state):
    for _ in range(2):  # the first one compiles
        folder = state / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        seconds, codes = together(folder)
        if any(codes):
            raise RuntimeError(f"two processes ended with {codes}")
    return {"seconds": seconds, "wanted": apart(lambda: run_of(folder / "r"))}


def together_kill(state, seed, facts):
    draw, folder = random.Random(seed), state / "killed"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    _, codes = together(folder, (draw.uniform(0, facts["seconds"]), draw.randrange(2)))
    left = apart(lambda: run_of(folder / "r"))
    if left is not None and left != facts["wanted"]:
        return {"middle": any(codes), "outcome": "differs after the kill"}
    _, again = together(folder)
    same = not any(again) and apart(lambda: run_of(folder / "r")) == facts["wanted"]
    return {"middle": any(codes), "outcome": "same" if same else f"differs after it ran again ({again})"}

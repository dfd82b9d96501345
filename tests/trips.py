"""Counts the files of kinject that a reader passes who follows one text, one record or one config through it.

    python tests/trips.py                          a table
    python tests/trips.py --list --json OUT.json   the files as well, in the order in which they are entered

Each trip runs in a process of its own, with nothing compiled, on the small world of tests/stored. Only what users call
is called, so that the same script measures any version: PYTHONPATH says which.

A file is entered when one of its functions is called; what runs because a module is imported does not count. A hop is a
pair of files of which the first calls into the second, directly or through another library; `calls` is how often that
happens in all.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

WORLD = Path(__file__).with_name("stored") / "f5eefac"
KNOWN = ("host", "knowledge", "plugin", "train.jsonl", "dev.jsonl", "test.jsonl")

CONFIG = """
def get_config():
    fit = {"batch_size": 8, "steps": STEPS, "log_every": 1, "evaluate_every": STEPS}
    plugin = {"kind": "plugin", "task": "cloze", "host": "host", "knowledge": "knowledge", "fit": fit}
    plugin["initialise"] = "random"
    plugin |= {"data": ("train.jsonl",), "dev_data": ("dev.jsonl",)}
    domain = {"knowledge": "knowledge", "data": ("test.jsonl",), "plugins": {"plugin": "@plugin"}}
    evaluate = {"kind": "evaluate", "task": "cloze", "host": "host", "domains": {"cities": domain}}
    return {"seed": 5, "stages": {"plugin": plugin, "evaluate": evaluate}}
"""


class Tracer:
    """Follows calls while it is on: `with tracer.on(): …`, or from when one file is opened until another is.

    Attributes:
      files: the files entered, in order.
      hops: how often each (caller, called) pair of files occurred.
    """

    def __init__(self) -> None:
        import kinject

        self.root = str(Path(kinject.__file__).resolve().parent) + os.sep
        self.files: dict[str, None] = {}
        self.hops: dict[tuple[str, str], int] = {}
        self._names: dict[CodeType, str | None] = {}
        self._thread = threading.local()
        self._counting = True

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Traces this thread and those that start meanwhile."""
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    @contextlib.contextmanager
    def between(self, first: str, last: str) -> Iterator[None]:
        """Counts only from the first opening of a file named `first` until one named `last` is written."""
        self._counting, seen = False, set[str]()

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            if event != "open" or not isinstance(arguments[0], str | os.PathLike):
                return
            name = Path(arguments[0]).name
            writes = isinstance(arguments[1], str) and set(arguments[1]) & set("wxa")
            if name == first and first not in seen:
                seen.add(first)
                self._counting = True
            elif name == last and writes:
                seen.add(last)
                self._counting = False

        sys.addaudithook(watch)  # stays until the process ends
        with self.on():
            yield
        if seen != {first, last}:
            raise RuntimeError(f"of {first} and {last} only {sorted(seen)} were seen")

    def _profile(self, frame: FrameType, event: str, _: Any) -> None:
        if event not in ("call", "return"):
            return
        code = frame.f_code
        name = self._name(code)
        if name is None:
            return
        if not code.co_flags & inspect.CO_OPTIMIZED:  # the body of a module or of a class
            depth = getattr(self._thread, "importing", 0)
            self._thread.importing = depth + (1 if event == "call" else -1)
        elif event == "call" and self._counting and not getattr(self._thread, "importing", 0):
            self._entered(frame, name)

    def _entered(self, frame: FrameType, name: str) -> None:
        caller = frame.f_back
        while caller is not None and self._name(caller.f_code) is None:
            caller = caller.f_back
        source = None if caller is None else self._name(caller.f_code)
        if source is not None and source != name:
            self.files.setdefault(source)
            self.hops[source, name] = self.hops.get((source, name), 0) + 1
        self.files.setdefault(name)

    def _name(self, code: CodeType) -> str | None:
        """The file in kinject that some code is from, None if it is from elsewhere."""
        try:
            return self._names[code]
        except KeyError:
            path = code.co_filename
            self._names[code] = path.removeprefix(self.root) if path.startswith(self.root) else None
            return self._names[code]


def predict(tracer: Tracer, records: list[dict[str, Any]]) -> None:
    """One text to its answer, host and plugin already loaded."""
    from kinject import Host

    host = Host.load("host").plug("plugin", knowledge="knowledge")
    with tracer.on():
        list(host.predict(records))


def load_and_predict(tracer: Tracer, records: list[dict[str, Any]]) -> None:
    """The same from the folders on."""
    from kinject import Host

    with tracer.on():
        list(Host.load("host").plug("plugin", knowledge="knowledge").predict(records))


def predict_command(tracer: Tracer, records: list[dict[str, Any]]) -> None:
    """The same from the command line on."""
    from kinject.predict import main

    sys.stdin = io.TextIOWrapper(io.BytesIO("".join(json.dumps(one) + "\n" for one in records).encode()))
    arguments = ["--host", "host", "--plugin", "plugin", "--knowledge", "knowledge", "--no-compilation-cache"]
    with tracer.on(), contextlib.redirect_stdout(io.StringIO()) as out:
        code = main(arguments)
    assert code == 0 and '"label"' in out.getvalue()


def train(workdir: Path, steps: int, *more: str) -> None:
    from kinject.train import main

    config = workdir.with_name("config.py")
    config.write_text(CONFIG.replace("STEPS", str(steps)))
    arguments = ["--config", str(config), "--workdir", str(workdir), "--devices", "1", "--no-compilation-cache"]
    assert main([*arguments, "--quiet", *more]) == 0


def record_to_plugin(tracer: Tracer, _: list[dict[str, Any]]) -> None:
    """From the opening of the records to the plugin that one step of training made of them, as it is written."""
    with tempfile.TemporaryDirectory() as scratch, tracer.between("train.jsonl", "plugin.json"):
        train(Path(scratch) / "run", 1, "--stage", "plugin")


def config_to_run(tracer: Tracer, _: list[dict[str, Any]]) -> None:
    """From the command line to a finished run: a plugin is trained and evaluated."""
    with tempfile.TemporaryDirectory() as scratch, tracer.on():
        train(Path(scratch) / "run", 4)


TRIPS: dict[str, Callable[[Tracer, list[dict[str, Any]]], None]] = {
    "predict": predict,
    "load_and_predict": load_and_predict,
    "predict_command": predict_command,
    "record_to_plugin": record_to_plugin,
    "config_to_run": config_to_run,
}


def trace(name: str, world: Path) -> dict[str, Any]:
    """Makes one trip in this process, in the folder `world`."""
    os.chdir(world)
    first = json.loads(Path("test.jsonl").read_text().splitlines()[0])
    record = {key: value for key, value in first.items() if key != "label"}
    tracer = Tracer()
    with contextlib.redirect_stdout(sys.stderr):
        TRIPS[name](tracer, [record])
    calls = sum(tracer.hops.values())
    return {"files": len(tracer.files), "hops": len(tracer.hops), "calls": calls, "entered": list(tracer.files)}


def measure(name: str, world: Path = WORLD) -> dict[str, Any]:
    """Makes one trip in a process of its own.

    Returns:
      `files`, `hops` and `calls` (numbers), and `entered` (the files in order).

    Raises:
      RuntimeError: the trip failed; what it said is in the message.
    """
    missing = [one for one in KNOWN if not (world / one).exists()]
    if missing:
        raise RuntimeError(f"{world}: lacks {', '.join(missing)}")
    environment = {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", **os.environ}
    command = [sys.executable, __file__, "--only", name, "--here", "--world", str(world)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--world", type=Path, default=WORLD, metavar="DIR", help=f"folder of {', '.join(KNOWN)}")
    parser.add_argument("--only", choices=TRIPS, help="make only this trip")
    parser.add_argument("--list", action="store_true", help="print the files, too")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write what was found there")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    world = arguments.world.resolve()
    if arguments.here:
        print(json.dumps(trace(arguments.only, world)))
        return
    found = {name: measure(name, world) for name in ([arguments.only] if arguments.only else TRIPS)}
    print(f"{'trip':18} {'files':>6} {'hops':>6} {'calls':>8}")
    for name, one in found.items():
        print(f"{name:18} {one['files']:6} {one['hops']:6} {one['calls']:8,}")
        for number, file in enumerate(one["entered"] if arguments.list else (), 1):
            print(f"{number:6} {file}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""A process that lives long: `python -m tests.faults.soak --minutes 30`; nothing that it holds may grow.

One process serves the demo page and a host of its own, and in every round answers a file of questions, swaps plugins,
loads one anew, edits a knowledge base (adds, changes, removes, now and then compacts), trains a plugin in a fresh
workdir, and asks the page over HTTP, good questions and bad ones. What it holds in memory and in descriptors is noted
after each round; from the fifth minute on both stay within three percent, or the exit code is 1.
"""

import argparse
import contextlib
import gc
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))

FLAT, WARM = 1.03, 5 / 30  # of what was held when this part of the time had passed
BAD = (b"{", b'{"text": 1}', b'{"text": "no mask"}', b'{"text": ""}', b"x" * 70_000)


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--pause", type=float, default=8, help="seconds between rounds")
    parser.add_argument("--out", type=Path, help="a line of JSON a round")
    arguments = parser.parse_args()
    logging.getLogger("kinject").setLevel(logging.ERROR)  # that a base has grown is told each time
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        lines = stack.enter_context(arguments.out.open("w")) if arguments.out else None
        rounds = soak(Path(scratch), arguments.minutes * 60, arguments.pause, lines)
    return told(rounds)


def soak(folder, seconds, pause=0.0, lines=None):
    """Rounds until the time is over; "seconds", "memory" in MB, "descriptors" and "threads" after each."""
    life, started, rounds = Life(folder), time.monotonic(), []
    with life:
        while not rounds or time.monotonic() - started < seconds:
            life.round(len(rounds))
            time.sleep(pause)  # in which connections are closed
            gc.collect()
            rounds.append({"seconds": round(time.monotonic() - started, 1), **held()})
            if lines is not None:
                lines.write(json.dumps(rounds[-1]) + "\n")
                lines.flush()
    return rounds


def held():
    """What this process holds now."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    memory = int(status["VmRSS"].split()[0]) / 1024
    return {
        "memory": round(memory, 1),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "threads": int(status["Threads"]),
    }


def told(rounds):
    """Prints what was held, and returns whether it grew."""
    after = [one for one in rounds if one["seconds"] >= WARM * rounds[-1]["seconds"]]
    print(f"{len(rounds)} rounds in {rounds[-1]['seconds'] / 60:.1f} minutes, {os.times().user:.0f} s of CPU")
    grew = False
    for what in ("memory", "descriptors", "threads"):
        first, most, last = after[0][what], max(one[what] for one in after), after[-1][what]
        print(f"{what}: {first} after the first sixth of the time, at most {most} later, {last} at the end")
        grew = grew or most > FLAT * first
    return int(grew)


class Life:
    """The world of a soak, and what is done with it again and again."""

    def __init__(self, folder):
        from fault_world import write_fault_world

        from kinject.demo.demo import Demo
        from kinject.demo.server import address, listen, make_server
        from kinject.serving import Host

        self.world = write_fault_world(folder / "world")
        self.plugins = [self.world / "plugin", shutil.copytree(self.world / "plugin", self.world / "second")]
        self.host = Host.load(self.world / "host", batch_size=4)
        demo = Demo.load(str(self.world / "host"), map(str, self.plugins), [str(self.world / "knowledge")])
        self.listening = listen("127.0.0.1", 0)
        self.address, self.server = address(self.listening), make_server(demo)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listening]})

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join()
        self.listening.close()

    def round(self, number):
        self.predict(number)
        self.edit(number)
        self.train(number)
        self.ask(number)

    def predict(self, number):
        """Swaps in a plugin that is loaded anew, answers, and answers without it."""
        from kinject.knowledge import KnowledgeBase

        texts = [json.loads(line)["text"] for line in (self.world / "questions.jsonl").read_text().splitlines()]
        self.host.unplug()
        self.host.plug(self.plugins[number % 2], knowledge=KnowledgeBase.open(self.world / "knowledge"))
        assert all(one.labels for one in self.host.predict(texts))
        with self.host.unplugged():
            self.host.predict(texts[0])

    def edit(self, number):
        """Adds an entity, changes it, removes it; every twentieth time the revisions are folded together."""
        from kinject.knowledge import KnowledgeBase

        base = KnowledgeBase.open(self.world / "knowledge")
        base.add([{"id": f"N{number}", "label": f"place{number % 50}", "vector": [1.0] * base.dim}])
        base.edit([{"id": f"N{number}", "description": "changed"}])
        self.host.refresh()
        self.host.predict(f"place{number % 50} is in [MASK] .")
        base.remove([f"N{number}"])
        self.host.refresh()
        if number % 20 == 19:
            base.compact(keep=1)
            self.host.refresh()

    def train(self, number):
        from tiny_world import plugin_stage, run_experiment

        workdir = self.world / "run"
        stage = plugin_stage(self.world, fit={"steps": 4, "log_every": 2, "checkpoint_every": 2})
        run_experiment({"seed": number, "stages": {"plugin": stage}}, workdir)
        shutil.rmtree(workdir)

    def ask(self, number):
        """A good question, a bad one, and connections that say nothing and go away."""
        names = [["plugin"], ["second"], ["plugin", "second"], []][number % 4]
        status, answer = self.post(json.dumps({"text": f"city{number % 60} is in [MASK] .", "plugins": names}).encode())
        assert (status == 200 and answer["labels"]) or "error" in answer, answer
        assert "error" in self.post(BAD[number % len(BAD)])[1]
        import socket

        for _ in range(3):
            socket.create_connection(self.listening.getsockname()[:2], timeout=5).close()

    def post(self, body):
        request = urllib.request.Request(self.address + "api/answer", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)


if __name__ == "__main__":
    sys.exit(main())

"""Runs one config in several processes of this machine, each with devices of its own.

python launch/local.py --processes 2 --devices 2 -- --config configs/quickstart.py --workdir runs/quickstart

What stands after `--` goes to `kinject.train` in every process. `--devices` are CPU devices; without it a process sees
what JAX shows it, which is only right where each sees accelerators of its own. SIGTERM and Ctrl-C are passed on to all.
When one process ends badly the others get SIGTERM, and after a grace SIGKILL; the exit code is the first bad one
(128 + its number where it was a signal). Where the launcher itself is killed, Linux kills them too.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import Any

from kinject.inference.processes import end_with_parent

GRACE_SECONDS = 10.0  # for the others to notice by themselves, and again to end after SIGTERM


def free_port() -> int:
    """A port that is free, and stays so until process 0 listens: systems lend none below 32,768 to who asks for any."""
    while True:
        port = random.randrange(20_000, 32_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def start(processes: int, devices: int | None, arguments: list[str]) -> list[subprocess.Popen]:
    """The processes, 0 first, in sessions of their own: Ctrl-C reaches them once, through `main`."""
    environment = dict(os.environ)
    if devices is not None:
        flags = [flag for flag in environment.get("XLA_FLAGS", "").split() if "device_count" not in flag]
        environment["XLA_FLAGS"] = " ".join([*flags, f"--xla_force_host_platform_device_count={devices}"])
        environment["JAX_PLATFORMS"] = "cpu"
    options: dict[str, Any] = {"env": environment, "start_new_session": True, "preexec_fn": end_with_parent}
    command = [sys.executable, "-m", "kinject.train", *arguments]
    if processes == 1:
        return [subprocess.Popen(command, **options)]
    cluster = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(processes)]
    return [
        subprocess.Popen([*command, *cluster, "--process-id", str(number)], **options) for number in range(processes)
    ]


def wait(running: list[subprocess.Popen]) -> int:
    """Waits for all, ends those that a dead one has left behind, and returns the exit code."""
    code = 0
    steps = [signal.SIGTERM, signal.SIGKILL]
    deadline = None
    while None in [process.poll() for process in running]:
        bad = [process.returncode for process in running if process.returncode]
        if bad and deadline is None:
            code, deadline = bad[0], time.monotonic() + GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline and steps:
            number, deadline = steps.pop(0), time.monotonic() + GRACE_SECONDS
            for process in running:
                if process.poll() is None:
                    process.send_signal(number)
        time.sleep(0.05)
    code = code or next((process.returncode for process in running if process.returncode), 0)
    return 128 - code if code < 0 else code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="how many (default 1)")
    parser.add_argument("--devices", type=int, metavar="M", help="CPU devices of each process")
    parser.add_argument("arguments", nargs="+", metavar="-- ARGUMENT", help="of kinject.train")
    given = parser.parse_args()
    if given.processes < 1 or (given.devices is not None and given.devices < 1):
        parser.error("--processes and --devices count from 1")
    running: list[subprocess.Popen] = []

    def forward(number: int, frame: FrameType | None) -> None:
        for process in running:
            if process.poll() is None:
                process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    running += start(given.processes, given.devices, given.arguments)
    return wait(running)


if __name__ == "__main__":
    sys.exit(main())

"""Work in children of this process: what they say, how they end, and what they took."""

import json
import os
import select
import signal
import time
from pathlib import Path

LONGEST = 60  # seconds of one answer


def forked(work):
    """Starts a child that runs `work(say)`, its output thrown away; returns (process id, where to read it)."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, read
    code = 1
    try:
        os.close(read)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        with os.fdopen(write, "w") as out:

            def say(value):
                out.write(json.dumps(value) + "\n")
                out.flush()

            code = work(say) or 0
    finally:
        os._exit(code)


def listened(work, longest=LONGEST):
    """Yields what a child says as it says it, and last how it ended: "ended", "hang", "crash: signal N"."""
    child, read = forked(work)
    buffer, hung = b"", False
    while True:
        ready, _, _ = select.select([read], [], [], longest)
        if not ready:
            os.kill(child, signal.SIGKILL)
            hung = True
            break
        more = os.read(read, 1 << 16)
        if not more:
            break
        *lines, buffer = (buffer + more).split(b"\n")
        yield from map(json.loads, lines)
    os.close(read)
    _, status = os.waitpid(child, 0)
    yield "hang" if hung else f"crash: signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "ended"


def apart(work, longest=600):
    """What `work()` returns, run in a child; raises RuntimeError where it ends without."""
    *said, ended = listened(lambda say: say([work()]), longest)
    if not said:
        raise RuntimeError(ended)
    return said[0][0]


def killed_after(work, seconds):
    """Runs `work()` in a child and kills it after so many seconds; returns whether it was still at it."""
    child, read = forked(lambda say: work())
    os.close(read)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


class Peak:
    """The most memory that this process takes inside `with`, in MB above what it held before."""

    def __enter__(self):
        Path("/proc/self/clear_refs").write_text("5")
        self.before = self._status("VmRSS")
        return self

    def __exit__(self, *_):
        self.grown = max(0.0, self._status("VmHWM") - self.before)

    @staticmethod
    def _status(field):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))

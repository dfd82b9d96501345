"""Several processes as one run (`jax.distributed`): joining, agreeing, and ending together, on SIGTERM too.

Every process runs the same program. Process 0 alone writes and prints; what is not training it does alone, and the
others wait for what it says through the coordinator's key-value store, which has no time limit as a collective has. A
process that dies takes the others with it: its collectives fail at once, and what waits elsewhere is ended by JAX when
the dead one's heartbeats stop.

SIGTERM is the notice that a preemptible machine gives before it goes. While a loop trains, the notice is kept until the
processes have agreed on the step after which all of them stop; at any other time it ends the process at once, as
nothing is half kept then.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from kinject.errors import EXIT_BAD_INPUT, InputError, first_line

if TYPE_CHECKING:
    from kinject.inference.mesh import Placement

EXIT_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same command again
HEARTBEAT_SECONDS = 20  # after so long without a sign a process is dead to JAX
START_SECONDS = 300  # how long processes wait for each other at the start: clusters start them one by one
END_SECONDS = 20  # how long one that ends with the others waits for them
POLL_SECONDS = 10
PR_SET_PDEATHSIG = 1  # of Linux's prctl
LOST_PEER = ("gloo", "connection closed", "connection reset", "unavailable:", "coordination service", "nccl")

Result = TypeVar("Result")
_turn = itertools.count()
_noticed = False  # SIGTERM has come, or the first Ctrl-C while a loop trains
_interrupted = False  # Ctrl-C has
_watching = False  # a loop trains


class Preempted(BaseException):
    """Raised after SIGTERM, once a checkpoint has been written if possible; the same command resumes from it.

    Attributes:
      agreed: all processes stop alike.
      interrupted: it was Ctrl-C that asked for it.
    """

    def __init__(self, agreed: bool = False):
        super().__init__()
        self.agreed, self.interrupted = agreed, _interrupted


class EndedByFirst(Exception):
    """Process 0 ended the run for a reason that it has told itself.

    Attributes:
      code: its exit code.
    """

    def __init__(self, code: int):
        super().__init__(f"process 0 ends with code {code}")
        self.code = code


@dataclass(frozen=True)
class Cluster:
    """How this process finds the others.

    Attributes:
      coordinator: "host:port" of process 0; None where `automatic`.
      processes: how many there are.
      process_id: which one this is, from 0.
      automatic: all of that is left to JAX, which knows TPU pods, GKE, Slurm and Open MPI.
    """

    coordinator: str | None = None
    processes: int | None = None
    process_id: int | None = None
    automatic: bool = False

    @classmethod
    def read(cls, coordinator: str | None, processes: int | None, process_id: int | None, mode: str) -> Cluster | None:
        """From flags, or the environment (`KINJECT_COORDINATOR`, `KINJECT_PROCESSES`, `KINJECT_PROCESS_ID`).

        Returns None where the run is this process alone.

        Raises:
          InputError: some of the three without the others, or numbers that are none or do not fit.
        """
        if mode == "auto":
            return cls(automatic=True)
        names = ("coordinator", "processes", "process_id")
        given: dict[str, Any] = dict(zip(names, (coordinator, processes, process_id), strict=True))
        for name in names:
            if given[name] is None:
                given[name] = os.environ.get(f"KINJECT_{name.upper()}")
        missing = [f"--{name.replace('_', '-')}" for name in names if given[name] is None]
        if len(missing) == 3:
            return None
        if missing:
            raise InputError(", ".join(missing), "several processes need all of the three", "see --help")
        try:
            count, number = int(given["processes"]), int(given["process_id"])
        except ValueError:
            raise InputError("--processes, --process-id", "they must be whole numbers") from None
        if not 0 <= number < count:
            raise InputError("--process-id", f"{number} of {count} processes", "they count from 0")
        if not given["coordinator"].rpartition(":")[2].isdigit():
            raise InputError("--coordinator", f"{given['coordinator']} has no port", "write host:port of process 0")
        return cls(given["coordinator"], count, number)

    def join(self) -> None:
        """Connects to the others. Before anything touches a device.

        Raises:
          InputError: the others are not there, or JAX finds no cluster.
        """
        import jax

        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is ours: see `Watch`
        options: dict[str, Any] = {"heartbeat_timeout_seconds": HEARTBEAT_SECONDS}
        options |= {"initialization_timeout": START_SECONDS, "shutdown_timeout_seconds": END_SECONDS}
        if not self.automatic:
            options |= {"coordinator_address": self.coordinator, "num_processes": self.processes}
            options |= {"process_id": self.process_id, "cluster_detection_method": "deactivate"}
        try:
            jax.distributed.initialize(**options)
        except (ValueError, RuntimeError) as error:
            where = "--distributed auto" if self.automatic else f"--coordinator {self.coordinator}"
            raise InputError(where, f"the processes did not find each other: {first_line(error)}") from None


def end_with_parent() -> None:
    """Called in a child before it runs (`preexec_fn`): where Linux kills its parent, it ends too."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def joined() -> bool:
    """Whether this process has joined others. Imports nothing."""
    jax = sys.modules.get("jax")
    return jax is not None and hasattr(jax, "distributed") and jax.distributed.is_initialized()


def alone() -> bool:
    """Whether this process is the whole run."""
    import jax

    return jax.process_count() == 1


def first() -> bool:
    """Whether this process is the one that writes and prints."""
    import jax

    return jax.process_index() == 0


def share(value: Any = None) -> Any:
    """Process 0's JSON value, on every process; they wait for it as long as it takes. All must call it, in order."""
    if alone():
        return value
    # JAX has no public name for its key-value store; Orbax reaches it the same way
    from jax._src.distributed import global_state

    client: Any = global_state.client  # there is one, as this process has joined others
    key = f"kinject/{next(_turn)}"
    if first():
        client.key_value_set(key, json.dumps(value))
        return value
    while True:
        try:
            return json.loads(client.blocking_key_value_get(key, POLL_SECONDS * 1000))
        except RuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def on_first(work: Callable[[], Result]) -> Result:
    """Does the work on process 0 and gives its JSON result to all; where it fails there, it ends everywhere.

    Raises:
      EndedByFirst: on the others, where process 0 raised what it raises.
    """
    if alone():
        return work()
    if not first():
        told = share()
        if "code" in told:
            raise EndedByFirst(told["code"])
        return told["result"]
    try:
        result = work()
    except BaseException as error:
        share({"code": exit_code(error)})
        raise
    share({"result": result})
    return result


def listen() -> None:
    """Takes SIGTERM, and the first Ctrl-C while a loop trains, as a notice from now on; there has been none yet.

    A notice that comes while Python finalises an object is lost there, as whatever is raised there: it is given again.
    """
    global _noticed, _interrupted
    _noticed = _interrupted = False

    def notice(number: int, frame: Any) -> None:
        global _noticed
        _noticed = True
        if not _watching:
            raise Preempted

    def interrupt(number: int, frame: Any) -> None:
        global _noticed, _interrupted
        if _interrupted or not _watching:
            raise KeyboardInterrupt
        _noticed = _interrupted = True

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, notice)
        signal.signal(signal.SIGINT, interrupt)
        if not isinstance(getattr(sys.unraisablehook, "__self__", None), _Again):
            sys.unraisablehook = _Again(sys.unraisablehook).take


class _Again:
    """Gives a notice again that was raised where Python lets nothing out, such as in `__del__`."""

    def __init__(self, before: Callable[[Any], None]):
        self.before = before

    def take(self, unraisable: Any) -> None:
        """Python's hook for what it cannot raise."""
        if not isinstance(unraisable.exc_value, Preempted):
            self.before(unraisable)
            return
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
        timer.daemon = True
        timer.start()


@contextmanager
def watched(place: Placement) -> Iterator[Watch]:
    """While it is open a notice waits to be asked for: `watch.stop(…)`."""
    global _watching
    _watching = True
    try:
        yield Watch(place)
    finally:
        _watching = False


class Watch:
    """Says whether to stop; all processes get the same answer at the same step."""

    def __init__(self, place: Placement):
        if not alone():
            import jax
            from jax.sharding import NamedSharding, PartitionSpec

            from kinject.inference.mesh import DATA, MODEL

            if place.mesh is None:
                raise AssertionError("several processes train on a mesh")
            self.everywhere = NamedSharding(place.mesh, PartitionSpec((DATA, MODEL)))
            self.any = jax.jit(lambda flags: flags.max(), out_shardings=place.replicated)

    def stop(self, agree: bool) -> bool:
        """Whether any process has got a notice.

        Several processes ask each other only where they `agree` to, at a step whose results all have fetched: nothing
        else is then under way between them, so that no two collectives can meet in different orders, and asking costs
        one number more.
        """
        if alone():
            return _noticed
        if not agree:
            return False
        import jax
        import numpy as np

        flags = np.full(jax.local_device_count(), _noticed, np.int8)
        return bool(self.any(jax.make_array_from_process_local_data(self.everywhere, flags)))


def exit_code(error: BaseException) -> int:
    """The exit code of a run that ends by this error."""
    codes = {InputError: EXIT_BAD_INPUT, Preempted: EXIT_AGAIN, KeyboardInterrupt: 130}
    return next((code for kind, code in codes.items() if isinstance(error, kind)), 1)


def lost_peer(error: BaseException) -> bool:
    """Whether an error is that of a collective whose other end has gone, or was made of one, as Orbax does."""
    import jax

    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    of_jax = [str(one).lower() for one in chain if isinstance(one, jax.errors.JaxRuntimeError)]
    return joined() and any(sign in text for text in of_jax for sign in LOST_PEER)


def leave(code: int, together: bool) -> int:
    """Ends this process's part of a run of several, and returns `code`.

    Where the others end too, it waits for them. Else it does not return: at Python's own exit JAX would wait for
    processes that may be gone.
    """
    if not joined():
        return code
    sys.stdout.flush(), sys.stderr.flush()
    if not together:
        os._exit(code)
    sys.modules["jax"].distributed.shutdown()
    return code

"""Importing kinject is light and harmless: no other framework, no network, nothing written."""

import subprocess
import sys

WATCH = """
import importlib, os, pkgutil, sys

seen = []

def hook(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        writes = set(mode) & set("wax+") if isinstance(mode, str) else flags & (os.O_WRONLY | os.O_RDWR)
        if writes and "__pycache__" not in str(path) and str(path) != os.devnull:
            seen.append(f"writes {path}")
    elif event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.mkdir", "os.remove"):
        if "__pycache__" not in str(arguments):
            seen.append(f"{event} {arguments}")

sys.addaudithook(hook)
import kinject
names = [module.name for module in pkgutil.walk_packages(kinject.__path__, "kinject.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
heavy = [name for name in ("tensorflow", "torch", "transformers") if name in sys.modules]
print(len(names), heavy, seen)
from jax._src import xla_bridge
print(xla_bridge.backends_are_initialized())
"""


def test_importing_every_module_is_light_and_harmless(tmp_path):
    done = subprocess.run([sys.executable, "-c", WATCH], capture_output=True, text=True, cwd=tmp_path, timeout=1800)
    assert done.returncode == 0, done.stderr
    found, backend = done.stdout.strip().splitlines()
    count, rest = found.split(" ", 1)
    assert int(count) > 50
    assert rest == "[] []"
    assert backend == "False", "an import reached for the devices"
    assert not list(tmp_path.iterdir()) and done.stderr == ""


def test_the_watch_itself_works(tmp_path):
    """What the test above would miss if the hook were broken."""
    bad = "open('x', 'w').close(); import socket; socket.getaddrinfo('localhost', 1); seen"
    code = WATCH.split("import kinject")[0] + bad.replace("; seen", "; print(seen)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=1800)
    assert "writes x" in done.stdout and "socket.getaddrinfo" in done.stdout


def test_the_command_line_answers_before_jax_is_imported():
    code = (
        "import sys\nfrom kinject.cli.train import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    print([m for m in ('jax', 'flax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"

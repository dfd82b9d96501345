"""Opening a host's folder beside transformers: seconds, and the peak of memory in parts of the weights' file.

    python benchmarks/open_host.py --shape bert-base --json OUT

Each opening is a process of its own, the two in turn; told are medians, of the clock and of the CPU's time. Imports are
over when the clock starts, on our side also those of transformers, which kinject imports as a first folder is opened,
and the devices of jax are there; on theirs torch is. Theirs is the model and the tokenizer of `from_pretrained`, ours
`open_host`; its fingerprint, which plugins are held against, is made beside what follows, and is a row
of its own. Memory is the peak of resident memory less what was resident before. Imports are a row of their own.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rows import row, write

ROOT = Path(__file__).resolve().parents[1]
MEASURE = """
import resource, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
{imports}
page = resource.getpagesize()
before = int(Path("/proc/self/statm").read_text().split()[1]) * page
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
began, cpu = time.perf_counter(), time.process_time()
opened = {open}
wall, cpu = time.perf_counter() - began, time.process_time() - cpu
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(wall, cpu, int(status["VmHWM"].split()[0]) * 1024 - before)
"""
OURS = (
    "import jax.numpy as jnp, kinject.serving\nfrom kinject import hf_folder\n"
    "from kinject.inference.host import open_host\njnp.zeros(1).block_until_ready()\nhf_folder.open_tokenizer(folder)",
    "open_host(folder, head='masked_lm')",
)
NAMED = (OURS[0], f"{OURS[1]}\nopened.identity")
THEIRS = (
    "import torch\nfrom transformers import AutoTokenizer, BertForMaskedLM, logging\nlogging.disable_progress_bar()",
    "(BertForMaskedLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder))",
)
IMPORTS = """import kinject.cli.predict  # and what its `run` imports, in its way
from kinject.cli.parser import own_process
own_process()
import kinject.serving, kinject.inference.xla, kinject.serving.queries
"""
SHAPES = {"tiny": (128, 2, 2), "minilm-l6": (384, 6, 12), "bert-base": (768, 12, 12)}


def make_folder(folder: Path, shape: str) -> Path:
    """A random BERT of 30,522 words, saved by transformers, and a tokenizer of as many."""
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    size, layers, heads = SHAPES[shape]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(30517))]
    config = BertConfig(
        hidden_size=size, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * size
    )
    BertForMaskedLM(config).save_pretrained(folder)
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    return folder


def measured(side: tuple[str, str], folder: Path) -> list[float]:
    """Seconds by the clock, of the CPU, and bytes, of one opening."""
    code = MEASURE.format(imports=side[0], open=side[1])
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True, cwd=ROOT)
    return [float(one) for one in done.stdout.split()]


def imports_of(code: str) -> float:
    """CPU seconds of a process that only imports."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="bert-base")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as parent:
        folder = make_folder(Path(parent) / "host", arguments.shape)
        size = (folder / "model.safetensors").stat().st_size
        for side in (OURS, THEIRS):
            measured(side, folder)
        turns = [[measured(side, folder) for side in (OURS, THEIRS, NAMED)] for _ in range(arguments.rounds)]
        ours, theirs, named = (
            [statistics.median(one) for one in zip(*side, strict=True)] for side in zip(*turns, strict=True)
        )
        prepare = (
            f"from pathlib import Path\nfrom kinject.hf_folder import read_config\nread_config(Path({str(folder)!r}))"
        )
        imports = statistics.median(imports_of(f"{IMPORTS}\n{prepare}") for _ in range(arguments.rounds))
    name = f"opening a folder of {arguments.shape}"
    when = time.strftime("%Y-%m-%d")
    made = [
        row(f"{name}, by the clock", ours[0], theirs[0], "s", less=True, goal="ratio >= 0.667", date=when),
        row(f"{name}, until its fingerprint is known", named[0], theirs[0], "s", less=True, date=when),
        row(f"{name}, of the CPU, the fingerprint included", named[1], theirs[1], "s", less=True, date=when),
        row(f"{name}, peak", ours[2] / size, theirs[2] / size, "of the file", less=True, goal="<= 1.3", date=when),
        row("imports of kinject predict, transformers among them", imports, None, "s of CPU", goal="<= 2.5", date=when),
    ]
    write(arguments.json, made)


if __name__ == "__main__":
    main()

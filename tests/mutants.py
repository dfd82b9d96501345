"""Mutants: `nice -n 19 python tests/mutants.py --mutants 150`; a seeded sample a module, and which no test sees.

Mutants are cosmic-ray's (`pip install cosmic-ray`): its operators, at every place where they apply. A run of its own
takes a process with all imports for each mutant, so here each is a child of a process that has imported the libraries;
it reads one module of kinject mutated and runs the nearest tests until the first fails. With `--further`, others run
what these let live. Docstrings and annotations are no places. What was done is kept in `--state`; the same
command goes on, and tells the survivors last.
"""

import argparse
import ast
import collections
import difflib
import importlib.abc
import importlib.util
import json
import marshal
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEAREST = {
    "training/partition.py": ["test_partition.py"],
    "training/step.py": ["test_step.py"],
    "training/checkpoint.py": ["test_checkpoint.py"],
    "data/encode.py": ["test_encode.py"],
    "plugins/store.py": ["test_plugin_fits.py", "test_plugin_copies.py", "test_store.py"],
    "knowledge/stored.py": ["test_knowledge_files.py", "test_knowledge.py"],
}
FURTHER = {
    "training/checkpoint.py": ["test_resume.py", "test_fault_training.py"],
    "data/encode.py": ["test_truncation.py", "test_span_extraction.py", "test_tokenizer.py", "test_marker_tasks.py"],
    "plugins/store.py": ["test_fault_artefacts.py", "test_living.py", "test_table.py"],
    "knowledge/stored.py": ["test_fault_artefacts.py", "test_fault_injection.py", "test_living.py"],
}
LONGEST = 180  # seconds of CPU for the tests of one mutant, which may be endless
SKIPPED = ("VariableInserter", "VariableReplacer", "ExceptionReplacer")  # which are told names, or die with any test


def places(source):
    """Every (operator, occurrence) of cosmic-ray that applies to a module's source."""
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast

    tree, found = get_ast(source), []
    for name in sorted(plugins.operator_names()):
        if name.rpartition("/")[2] in SKIPPED:
            continue
        operator = plugins.get_operator(name)()
        count = sum(len(list(operator.mutation_positions(node))) for node in ast_nodes(tree))
        found += [(name, number) for number in range(count)]
    return found


def sample(source, count, seed):
    """A seeded sample, kinds of operators alike, of (operator, occurrence, mutated source); its code is another."""
    from cosmic_ray import plugins
    from cosmic_ray.mutating import mutate_code

    by_kind = collections.defaultdict(list)
    for name, number in places(source):
        by_kind[name.rpartition("/")[2].partition("_")[0]].append((name, number))
    draw, chosen = random.Random(seed), []
    for kind in by_kind.values():
        draw.shuffle(kind)
    while by_kind and len(chosen) < count:
        for kind in sorted(by_kind):
            name, number = by_kind[kind].pop()
            mutated = mutate_code(source, plugins.get_operator(name)(), number)
            if mutated and compiles(mutated) not in (None, compiles(source)):
                chosen.append((name, number, mutated))
            if not by_kind[kind]:
                del by_kind[kind]
    return chosen[:count]


def compiles(source):
    """What a source compiles to, its docstrings and annotations left out; None for a source that is none."""
    try:
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                node.returns = None
            elif isinstance(node, ast.arg):
                node.annotation = None
            elif isinstance(node, ast.AnnAssign):
                node.annotation = ast.Constant("")
        return marshal.dumps(compile(ast.fix_missing_locations(tree), "module", "exec", optimize=2))
    except (SyntaxError, ValueError):
        return None


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Gives one module another source."""

    def __init__(self, module, path, source):
        self.module, self.path, self.source = module, str(path), source

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self, origin=self.path) if name == self.module else None

    def get_filename(self, name):
        return self.path

    def get_data(self, path):
        return self.source.encode()

    def path_stats(self, path):
        raise OSError  # no byte code


def run_tests(module, source, tests):
    """Whether the tests see the mutant: "killed", "survived", "endless"."""
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (LONGEST, LONGEST))
        try:
            import pytest

            name = "kinject." + module.removesuffix(".py").replace("/", ".")
            sys.meta_path.insert(0, Mutated(name, ROOT / "kinject" / module, source))
            files = [str(ROOT / "tests" / one) if one.endswith(".py") else one for one in tests]
            code = pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-p", "no:randomly", *files])
        except BaseException:
            code = 1
        os._exit(int(code))
    status = os.waitpid(child, 0)[1]
    endless = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
    return "endless" if endless else "survived" if status == 0 else "killed"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--module", action="append", choices=NEAREST, help="default: all")
    parser.add_argument("--mutants", type=int, default=150, help="a module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--further", action="store_true", help="more tests for those that the nearest let live")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--state", type=Path, default=Path("runs/mutants.jsonl"))
    arguments = parser.parse_args()
    arguments.state.parent.mkdir(parents=True, exist_ok=True)
    lines = arguments.state.read_text().splitlines() if arguments.state.exists() else []
    done = {(one["module"], one["operator"], one["number"]): one for one in map(json.loads, lines)}
    deadline, modules = time.monotonic() + arguments.seconds, arguments.module or list(NEAREST)
    sources = {module: (ROOT / "kinject" / module).read_text() for module in modules}
    chosen = {module: sample(sources[module], arguments.mutants, arguments.seed) for module in modules}
    sys.path.insert(0, str(ROOT / "tests"))
    os.chdir(ROOT)
    import conftest  # noqa: F401 (what the tests' processes are told before JAX is imported)
    import transformers  # noqa: F401

    for module in modules:  # tests that fail without a mutant say nothing
        if (module, "", 0) not in done and time.monotonic() < deadline:
            if run_tests(module, sources[module], NEAREST[module]) != "survived":
                raise SystemExit(f"{module}: its tests {NEAREST[module]} fail without a mutant")
            note(arguments.state, done, {"module": module, "operator": "", "number": 0, "outcome": "survived"})
    rounds = [(module, *one) for many in zip_longest(chosen) for module, one in many]
    for module, name, number, source in rounds:
        before = done.get((module, name, number), {})
        again = arguments.further and before.get("outcome") == "survived" and module in FURTHER
        if (before and not again) or time.monotonic() > deadline:
            continue
        outcome = run_tests(module, source, (FURTHER if again else NEAREST)[module])
        if again:
            outcome = {"killed": "killed by others"}.get(outcome, f"{outcome} all")
        change = [
            line
            for line in difflib.unified_diff(sources[module].splitlines(), source.splitlines(), lineterm="", n=0)
            if line[:1] in "+-@" and line[:3] not in ("+++", "---")
        ]
        one = {"module": module, "operator": name, "number": number, "outcome": outcome, "change": change}
        note(arguments.state, done, one)
    tell(done)


def zip_longest(chosen):
    """One mutant of each module, then the next: a run that is cut short has some of all."""
    for number in range(max(map(len, chosen.values()))):
        yield [(module, some[number]) for module, some in chosen.items() if number < len(some)]


def note(state, done, one):
    done[one["module"], one["operator"], one["number"]] = one
    with state.open("a") as file:
        file.write(json.dumps(one) + "\n")


def tell(done):
    counted = collections.Counter((one["module"], one["outcome"]) for one in done.values() if one["operator"])
    for module in sorted({module for module, _ in counted}):
        print(module, {outcome: count for (of, outcome), count in sorted(counted.items()) if of == module})
    for one in done.values():
        if one["operator"] and one["outcome"].startswith("survived"):
            print(one["module"], one["operator"], *one["change"], sep="\n    ")


if __name__ == "__main__":
    main()

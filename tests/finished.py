"""A small sweep as `kinject sweep` leaves it, made in this process: two lengths of training, two seeds."""

from pathlib import Path

from tiny_world import evaluate_stage, plugin_stage, run_experiment

from kinject.cli.sweep import SweepRun, gather
from kinject.reports.results import run_folder

SEEDS = (0, 1)
STEPS = (8, 16)


def write_sweep(world: Path, folder: Path) -> Path:
    runs = []
    for steps in STEPS:
        fit = {"steps": steps, "evaluate_every": 8, "checkpoint_every": 16, "buckets": 1}
        plugin = plugin_stage(world, fit=fit) | {"dev_data": (str(world / "dev.jsonl"),)}
        stages = {"plugin": plugin, "evaluate": evaluate_stage(world, {"plugin": "@plugin"})}
        for seed in SEEDS:
            spec = f"config.py:steps={steps}"
            workdir = run_folder(folder, spec, seed)
            run_experiment({"name": f"tiny {steps} <steps>", "seed": seed, "stages": stages}, workdir)
            runs.append(SweepRun(spec, seed, workdir, ()))
    gather(runs, folder)
    return folder

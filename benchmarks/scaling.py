"""Map-tuning on TPU v5e by the compiler's own count: what a step costs on each device, and weak scaling to 256 chips.

    python benchmarks/scaling.py --json docs/scaling.json --markdown docs/scaling.md --plot docs/scaling.png

Nothing is run: steps are compiled for slices that are not here (`pip install 'kinject[tpu]'`). A compilation takes a
minute or two of one core; each is written to --json as it is done and is not done again.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from kinject.stages.abstract import abstract_model
from kinject.stages.ahead import compile_abstract, row_of
from kinject.stages.experiment import read_stages
from kinject.training.aot_targets import TPUS, open_slice
from kinject.training.hlo import check_only_gradients

ROWS, LENGTH, DIM = 64, 64, 100  # a chip and step; a sentence; an entity vector
TABLE = [(host, name) for host in ("bert-base", "roberta-large") for name in ("v5e:4x4", "v5e:16x16")]
WEAK = ("v5e:1x1", "v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16")
HOP = 1e-6  # seconds from one chip to the next; ours, not published
BEGIN, END = "<!-- written by benchmarks/scaling.py -->", "<!-- end -->"


def config(host: str, rows: int) -> dict:
    """General map-tuning as configs/paper/general_map_tuning.py has it, in bfloat16."""
    fit = {"batch_size": rows, "steps": 1000, "compute_dtype": "bfloat16", "prefix_cache_mb": 0}
    stage = {"kind": "plugin", "task": "mention_masked_lm", "host": f"shape:{host}", "knowledge": f"shape:{DIM}"}
    return {"stages": {"mapper": {**stage, "data": ("absent.jsonl",), "max_length": LENGTH, "fit": fit}}}


def compiled(host: str, name: str) -> dict[str, Any]:
    """One row: a host on a slice, after asserting that the devices exchange the map's gradient and no more."""
    where = open_slice(name)
    one = abstract_model("mapper", read_stages(config(host, ROWS * len(where.devices))))
    cost = compile_abstract(one, where)
    check_only_gradients(cost.text, cost.trained)
    return {"host": host, **row_of(one, where, cost), "jax": jax.__version__}


def seconds(row: Mapping[str, Any]) -> dict[str, float]:
    """The time of a step by a simple model: the slower of arithmetic and memory, then communication, none hidden."""
    chip = TPUS[row["slice"].partition(":")[0]]
    axes = [int(size) for size in row["slice"].partition(":")[2].split("x")]
    hops = 2 * sum(size - 1 for size in axes)  # a sum along each axis and back
    count, moved = row["devices"], 0.0
    for each in row["collectives"].values():
        moved += 2 * (count - 1) / count * each["bytes"] / chip.interconnect + each["count"] * hops * HOP
    parts = {"compute": row["flops"] / chip.flops, "memory": row["traffic"] / chip.bandwidth, "communication": moved}
    return {**parts, "step": max(parts["compute"], parts["memory"]) + moved}


def cost_table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| host | slice | rows, tokens a step | HBM a device, peak (of 16 GiB) | arguments | temporaries "
        "| GFLOP a device | GB read and written | of them in HBM | all-reduces | bytes in them | the map |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for host, name in TABLE:
        row = find(rows, host, name)
        if row is None:
            continue
        sums = row["collectives"]["all-reduce"]
        others = set(row["collectives"]) - {"all-reduce"}
        assert not others, others
        lines.append(
            f"| {host} | {name} | {row['rows']:,} x {row['length']} | {row['peak'] / 2**20:,.0f} MiB "
            f"({100 * row['peak'] / row['device_memory']:.0f} %) | {row['arguments'] / 2**20:,.0f} MiB "
            f"| {row['temporaries'] / 2**20:,.0f} MiB | {row['flops'] / 1e9:,.0f} | {row['accessed'] / 1e9:.1f} "
            f"| {row['traffic'] / 1e9:.1f} | {sums['count']} | {sums['bytes']:,} | {row['trained']:,} B |"
        )
    return lines


def weak_table(rows: list[dict[str, Any]], host: str) -> list[str]:
    lines = [
        "| chips | compute ms | memory ms | communication ms | step ms | sentences a second | efficiency |",
        "|---|---|---|---|---|---|---|",
    ]
    found = [row for row in (find(rows, host, name) for name in WEAK) if row is not None]
    base = seconds(found[0])["step"]
    for row in found:
        time = seconds(row)
        lines.append(
            f"| {row['devices']} | {1e3 * time['compute']:.2f} | {1e3 * time['memory']:.2f} "
            f"| {1e3 * time['communication']:.3f} | {1e3 * time['step']:.2f} | {row['rows'] / time['step']:,.0f} "
            f"| {100 * base / time['step']:.1f} % |"
        )
    return lines


def find(rows: list[dict[str, Any]], host: str, name: str) -> dict[str, Any] | None:
    """The row of a host on a slice; None while it is not compiled."""
    return next((row for row in rows if (row["host"], row["slice"]) == (host, name)), None)


def write_markdown(path: Path, rows: list[dict[str, Any]]) -> None:
    """Puts the tables between the marks of the page, and leaves the rest of it alone."""
    text = path.read_text() if path.exists() else f"{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = [
        f"Compiled with jax {rows[0]['jax']} for {ROWS} sentences of {LENGTH} tokens a chip, bfloat16.",
        "",
        *cost_table(rows),
        "",
        "Weak scaling of bert-base by the model above:",
        "",
        *weak_table(rows, "bert-base"),
    ]
    path.write_text(before + "\n".join([BEGIN, "", *tables, "", END]) + after)


def plot(path: Path, rows: list[dict[str, Any]], host: str = "bert-base") -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = [find(rows, host, name) for name in WEAK]
    chips, times = [row["devices"] for row in found], [seconds(row) for row in found]
    rates = [row["rows"] / time["step"] for row, time in zip(found, times, strict=True)]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.loglog(chips, rates, "o-", label="by the model")
    left.loglog(chips, [rates[0] * count / chips[0] for count in chips], "--", color="grey", label="linear")
    left.set(xlabel="v5e chips", ylabel="sentences a second", title=f"{host}, map-tuning, {ROWS} sentences a chip")
    for name, mark in (("memory", "s-"), ("compute", "o-"), ("communication", "^-")):
        drawn = [(count, 1e3 * time[name]) for count, time in zip(chips, times, strict=True) if time[name] > 0]
        right.loglog(*zip(*drawn, strict=True), mark, label=name)
    right.set(xlabel="v5e chips", ylabel="ms a step", title="What a step is made of")
    for axis in (left, right):
        axis.set_xticks(chips, [str(count) for count in chips])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--most", type=int, default=100, help="compilations in this run; another goes on from there")
    arguments = parser.parse_args()
    rows = json.loads(arguments.json.read_text()) if arguments.json.exists() else []
    wanted = [*TABLE, *(("bert-base", name) for name in WEAK)]
    there = {(row["host"], row["slice"]) for row in rows}
    missing = [pair for pair in dict.fromkeys(wanted) if pair not in there]
    for host, name in missing[: arguments.most]:
        rows.append(compiled(host, name))
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
        print(f"{host} on {name}: compiled in {rows[-1]['compile_seconds']} s", flush=True)
    if arguments.markdown:
        write_markdown(arguments.markdown, rows)
    if arguments.plot and len(missing) <= arguments.most:
        plot(arguments.plot, rows)


if __name__ == "__main__":
    main()

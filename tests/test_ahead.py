"""Compiling ahead of time: shapes without data, what the devices say to each other, the command line."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_world import plugin_stage, question, sentence, write_records

from kinject.cli.train import main
from kinject.data.pipeline import Feed
from kinject.data.records import read_records
from kinject.errors import InputError
from kinject.inference.host import open_host
from kinject.integrity import write_seal
from kinject.knowledge.base import KnowledgeBase
from kinject.models.shapes import SHAPES, encoder_shape
from kinject.stages.abstract import abstract_model
from kinject.stages.ahead import compile_abstract, described, row_of
from kinject.stages.experiment import read_stages
from kinject.tasks.base import Extent, make_task
from kinject.training.aot_targets import PLUGINS, Chip, Target, open_target
from kinject.training.hlo import check_only_gradients, device_traffic, find_collectives, kernel_cost, total_by_kind

HLO = """
  %p = f32[8,4]{1,0} parameter(0)
  %all-reduce.4 = (f32[768]{0:T(1024)S(1)}, bf16[128,768]{1,0:T(8,128)S(1)}, f32[]{:T(128)}) all-reduce(%a, %b, %c), channel_id=2, replica_groups=mesh['axis_0'=16,'axis_1'=2,'axis_2'=1] {'axis_0','axis_1'}, to_apply=%sum
  %get-tuple-element.68 = f32[] get-tuple-element(%all-reduce.4), index=2
  %s = (f32[8,4]{1,0}, f32[32,4]{1,0}) all-gather-start(%p), replica_groups=[2,4]<=[8], dimensions={0}
  %d = f32[32,4]{1,0} all-gather-done(%s)
  ROOT %r = f32[2,4]{1,0} reduce-scatter(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%sum
  %m = (pred[7]{0}) all-reduce(%q), replica_groups={}, to_apply=%or
"""  # noqa: E501


def test_collectives_are_read_in_every_form():
    found = [(one.kind, one.size, one.group) for one in find_collectives(HLO)]
    assert found == [
        ("all-reduce", 768 * 4 + 128 * 768 * 2 + 4, 32),
        ("all-gather", 32 * 4 * 4, 4),
        ("reduce-scatter", 4 * 2 * 4 * 4, 4),
        ("all-reduce", 7, 0),
    ]
    assert total_by_kind(find_collectives(HLO))["all-reduce"] == {"count": 2, "bytes": 199691}


ON_THE_CHIP = """
%fused (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %y = f32[8,128]{1,0:T(8,128)} negate(%x)
}

ENTRY %main (a: f32[8,128], b: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  %b = f32[8,128]{1,0:T(8,128)} parameter(1)
  %t = token[] after-all()
  %slice-start = ((f32[8,128]{1,0:T(8,128)}), f32[2,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:2], [0:128]}
  %slice-done = f32[2,128]{1,0:T(8,128)S(1)} slice-done(%slice-start)
  %copy-start = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%b)
  %copy-done = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %within = f32[8,128]{1,0:T(8,128)S(1)} fusion(%copy-done, %slice-done), kind=kLoop, calls=%fused
  ROOT %out = f32[8,128]{1,0:T(8,128)} fusion(%within, %a), kind=kLoop, calls=%fused
}
"""  # noqa: E501


def test_only_what_crosses_to_device_memory_is_its_traffic():
    """A slice and an array are copied to the chip, and the last operation reads one array and writes another."""
    whole, part = 8 * 128 * 4, 2 * 128 * 4
    assert device_traffic(ON_THE_CHIP) == part + whole + 2 * whole
    a, b = jax.ShapeDtypeStruct((64, 32), jnp.float32), jax.ShapeDtypeStruct((32, 16), jnp.float32)
    product = jax.jit(lambda a, b: a @ b).lower(a, b).compile().as_text()
    assert device_traffic(product) == 4 * (64 * 32 + 32 * 16 + 64 * 16)


KERNEL = r"""
ENTRY %main (a: bf16[8,128], b: s32[8]) -> bf16[8,128] {
  %a = bf16[8,128]{1,0} parameter(0)
  %b = s32[8]{0} parameter(1)
  %k = (bf16[8,128]{1,0}, f32[8]{0}) custom-call(%a, %b), custom_call_target="__gpu$xla.gpu.triton", backend_config={ir = "ML\EFR", name = "flops", serialized_metadata = "{\22flops\22: \222048\22}"}
  %c = bf16[8,128]{1,0} get-tuple-element(%k), index=0
  ROOT %out = bf16[8,128]{1,0} fusion(%c), kind=kLoop, calls=%fused
}
"""  # noqa: E501


def test_a_kernel_counts_with_what_it_reads_and_writes():
    """And says itself what it computes; whatever else is called by its name computes nothing that we know of."""
    moved = 2 * 8 * 128 * 2 + 8 * 4 + 8 * 4
    assert kernel_cost(KERNEL) == (2048, moved) and device_traffic(KERNEL) == moved + 2 * 8 * 128 * 2
    assert kernel_cost(KERNEL.replace("flops", "x")) == (0, moved) and kernel_cost(ON_THE_CHIP) == (0, 0)


def test_a_step_that_moves_more_than_gradients_is_told():
    trained = 768 * 4 + 128 * 768 * 2
    assert check_only_gradients(HLO, trained)
    with pytest.raises(AssertionError, match="bytes"):
        check_only_gradients(HLO, trained // 4)
    permute = "  %x = f32[1]{0} collective-permute(%p), source_target_pairs={{0,1}}"
    with pytest.raises(AssertionError, match="collective-permute"):
        check_only_gradients(permute, trained)


@pytest.mark.parametrize(("name", "parameters"), [("bert-base", 108_891_648), ("roberta-large", 354_310_144)])
def test_named_shapes_have_the_published_sizes(name, parameters):
    config = {"stages": {"p": plugin_config(host=f"shape:{name}", fit={"batch_size": 8, "steps": 1})}}
    one = abstract_model("p", read_stages(config))
    encoder = {path: leaf for path, leaf in one.params.items() if path.startswith("host/encoder/")}
    assert sum(int(np.prod(leaf.shape)) for leaf in encoder.values()) == parameters
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in one.params.values())
    assert one.batch["token_ids"].shape == (8, 512)


def plugin_config(**changes):
    made = {
        "kind": "plugin",
        "task": "cloze",
        "host": "shape:bert-base",
        "knowledge": "shape:100",
        "data": ("no.jsonl",),
    }
    return made | {"fit": {"batch_size": 16, "steps": 1}} | changes


def test_known_hub_ids_need_no_download_and_others_are_told():
    assert encoder_shape("FacebookAI/roberta-large", "x") == SHAPES["roberta-large"]
    assert encoder_shape("bert-base-cased", "x").vocab_size == 28996
    for wrong, said in (
        ("shape:bert-bse", "bert-base"),
        ("owner/unheard-of", "shape:NAME"),
        ("./nowhere", "no ./nowhere"),
    ):
        with pytest.raises(InputError, match=said):
            encoder_shape(wrong, "stages.p.host")


def form(batch):
    return {name: (np.shape(leaf), np.dtype(leaf.dtype)) for name, leaf in batch.items()}


RELATION = {"labels": ["in", "of"]}
PAIRS = {"n_way": 2, "k_shot": 2, "queries": 1, "episodes": 2}


@pytest.mark.parametrize(
    ("task", "options", "file"),
    [
        ("cloze", {}, "train"),
        ("cloze_choices", {}, "several"),
        ("mention_masked_lm", {}, "sentences"),
        ("description_matching", {}, "described"),
        ("entity_questions", {}, "asked"),
        ("entity_typing", RELATION, "typed"),
        ("relation_classification", RELATION, "related"),
        ("few_shot_relations", PAIRS, "related"),
        ("marker_relations", RELATION, "related"),
        ("marker_entity_typing", RELATION, "typed"),
        ("multiple_choice", {}, "chosen"),
    ],
)
def test_batches_without_data_have_the_form_of_real_ones(world, records, task, options, file):
    made = make_task(task, **options)
    host, base = open_host(records / "host", head="none"), KnowledgeBase.open(world / "knowledge")
    given = list(read_records((records if (records / f"{file}.jsonl").exists() else world) / f"{file}.jsonl"))
    examples = made.examples(given, host.encoder(None), base, buckets=1)
    examples = made.prepare(examples, given, host, None)
    real = Feed(examples, base.gather).batch(0, np.arange(4))
    entities, places = real["entity_ids"].shape[-1], real.get("positions", np.zeros((1, 1))).shape[-1]
    extent = Extent(4, examples.lengths[0], entities, places, knowledge_dim=8, hidden_size=16, outputs=2, choices=3)
    assert form(made.batch_shapes(extent)) == form(real)


@pytest.fixture(scope="module")
def records(world, tmp_path_factory):
    """Records of the tasks for which the tiny world has none."""
    folder = tmp_path_factory.mktemp("records")
    vocabulary = Path(shutil.copytree(world / "host", folder / "host")) / "vocab.txt"
    vocabulary.write_text(vocabulary.read_text().replace("##away", "@"))  # a marker that the tiny world lacks
    write_seal(folder / "host")
    two = [sentence(i, i + 20) for i in range(12)]
    one = [{**each, "mentions": each["mentions"][:1]} for each in two]
    texts = [f"city{i} is in a place" for i in range(12)]
    mention = [[{"start": 0, "end": len(f"city{i}"), "entity": f"Q{i}"}] for i in range(12)]
    named = [{"text": text, "mentions": own} for text, own in zip(texts, mention, strict=True)]
    write_records(folder / "related.jsonl", [{**each, "label": ("in", "of")[i % 2]} for i, each in enumerate(two)])
    write_records(folder / "typed.jsonl", [{**each, "labels": ["in"]} for each in one])
    write_records(folder / "described.jsonl", [{**each, "description": "a place of land1"} for each in named])
    choices = {"choices": ["land1", "land2", "land3"], "label": 1}
    write_records(folder / "chosen.jsonl", [{**each, **choices} for each in named])
    blank = [{**question(i), "choices": choices["choices"], "label": "land1"} for i in range(12)]
    write_records(folder / "several.jsonl", blank)
    write_records(folder / "asked.jsonl", [{**each, "answers": ["land1"]} for each in named])
    return folder


def test_stages_of_a_config_lead_to_shapes(world):
    """A plugin on a host that another stage makes, by LoRA, with a knowledge base that a third one would embed."""
    made = {"kind": "host", "task": "relation_classification", "task_options": RELATION, "base": "roberta-base"}
    host = {**made, "tuning": {"name": "lora"}, "data": ("no.jsonl",), "fit": {"batch_size": 8, "steps": 1}}
    graph = {"kind": "triples", "triples": "no.tsv", "graph": {"dim": 24}}
    stages = {"graph": graph, "host": host}
    plugin = plugin_config(task="relation_classification", host="@host", knowledge="@graph/knowledge", max_length=32)
    stages = read_stages({"stages": {**stages, "plugin": plugin}})
    one = abstract_model("plugin", stages)
    assert one.params["host/head/output/bias"].shape == (2,)
    assert any("/lora/" in path for path in one.params)
    assert one.params["plugin/mapper/kernel"].shape == (24, 768)
    assert one.batch["entity_vectors"].shape == (16, 2, 24) and one.batch["token_ids"].shape == (16, 32)
    tuned = abstract_model("host", stages)
    assert "entity_vectors" not in tuned.batch and not any(path.startswith("plugin/") for path in tuned.params)


def test_what_cannot_be_known_is_told(capsys, tmp_path):
    def refused(stage, *arguments):
        file = tmp_path / "config.py"
        file.write_text(f"def get_config():\n    return {{'stages': {{'p': {stage!r}}}}}\n")
        assert main(["--config", str(file), "--aot", *arguments]) == 2
        return capsys.readouterr().err

    assert "--config.stages.p.knowledge=shape:100" in refused(plugin_config(knowledge="@other/knowledge"), "v5e:4x4")
    assert "v5e:4x4" in refused(plugin_config(), "v5e")
    assert "v5e" in refused(plugin_config(), "v9:4x4")
    assert "did you mean h100?" in refused(plugin_config(), "h10:8")
    for wrong in ("h100", "h100:0", "h100:2x2x2"):
        assert "h100:8" in refused(plugin_config(), wrong)
    if not CUDA:
        assert "plugin is not installed; pip install 'kinject[cuda]'" in refused(plugin_config(), "h100:8")
    assert "2 axes" in refused(plugin_config(), "v5e:2x2x2")
    unknown = plugin_config(vectors="device")
    assert "--config.stages.p.knowledge=shape:5000000x100" in refused(unknown, "v5e:2x2")
    assert "no stage that trains" in refused(plugin_config(), "v5e:2x2", "--stage", "q")
    missing = plugin_config(task="relation_classification")
    assert "labels" in refused(missing, "v5e:2x2")
    assert main(["--config", str(tmp_path / "config.py")]) == 2
    assert "--workdir" in capsys.readouterr().err


FOUR_DEVICES = """
import sys
from kinject.config import read_config
from kinject.stages.experiment import read_stages
from kinject.stages.abstract import abstract_model
from kinject.training.aot import compile_step
from kinject.training.hlo import check_only_gradients
from kinject.inference.mesh import Placement

stages = read_stages(read_config(sys.argv[1]))
for name, stage in stages.items():
    one = abstract_model(name, stages)
    table = one.table if one.vectors == "device" else None
    cost = compile_step(one.program, one.params, list(one.rules), one.fit, one.batch, Placement.over(4), table=table)
    assert cost.flops > 0 and cost.peak > 0
    try:
        found = check_only_gradients(cost.text, 4 * (8 * 16 + 16))
        print(name, "gradient", sum(each.size for each in found))
        print(name, "table", cost.table)
    except AssertionError as error:
        print(name, "refused", error)
"""


def start(code, *arguments, devices=1):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"  # the last one counts
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=1800,
    )


def test_data_parallel_map_tuning_communicates_only_the_gradient(world, tmp_path):
    """On four devices, with dropout; and the control: a host that is trained is found to move more.

    With a million entity vectors on the devices, the batch's ids and vectors are all that comes to it.
    """
    fit = {"dropout": "all", "optimizer": {"clip": 1.0}}
    tuned = {"kind": "host", "task": "cloze", "base": str(world / "host"), "data": ("x.jsonl",)}
    tuned |= {"train": (("host/.*", "train"),), "fit": {"batch_size": 8, "steps": 1}}
    plugin = plugin_stage(world, max_length=16, fit=fit)
    many = plugin | {"knowledge": "shape:1000000x8", "vectors": "device"}
    config = {"stages": {"plugin": plugin, "many": many, "host": {**tuned, "max_length": 16}}}
    (tmp_path / "config.py").write_text(f"def get_config():\n    return {config!r}\n")
    done = start(FOUR_DEVICES, tmp_path / "config.py", devices=4)
    assert done.returncode == 0, done.stderr
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    (*plugin, moved), none, (*many, with_vectors), table, (*host, _) = lines
    assert (plugin, many, host) == (["plugin", "gradient"], ["many", "gradient"], ["host", "refused"])
    ids, vectors = 8 * 2 * 4, 8 * 2 * 8 * 4  # 8 rows of 2 entities
    assert int(with_vectors) == int(moved) + ids + vectors
    assert none[1:] == ["table", "0"] and table[1:] == ["table", str(250_000 * 8 * 4)]
    assert 4 * (8 * 16 + 16) <= int(moved) <= 4 * (8 * 16 + 16) + 64, "a gradient and a few scalars"


CUDA = [plugin for plugin in PLUGINS if find_spec(plugin)]


@pytest.mark.parametrize(
    "where",
    [
        pytest.param("v5e:2x2", marks=pytest.mark.skipif(not find_spec("libtpu"), reason="needs libtpu")),
        pytest.param("h100:4", marks=pytest.mark.skipif(not CUDA, reason="needs JAX's CUDA plugin")),
    ],
)
def test_a_step_compiles_for_devices_that_are_not_here(world, tmp_path, where):
    config = {"stages": {"mapper": plugin_stage(world, max_length=16)}}
    (tmp_path / "config.py").write_text(f"def get_config():\n    return {config!r}\n")
    command = [sys.executable, "-m", "kinject.train", "--config", tmp_path / "config.py", "--aot", where]
    done = subprocess.run([*command, "--json", tmp_path / "found.json"], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    assert "GFLOP" in done.stdout and "all-reduce" in done.stdout and "at best" in done.stdout
    (row,) = json.loads((tmp_path / "found.json").read_text())
    assert row["devices"] == 4 and row["rows"] == 8 and row["stage"] == "mapper"
    here = compile_abstract(
        abstract_model("mapper", read_stages(config)),
        Target("cpu", Chip(1e12, 1 << 30, 1e9, 1e9), 1, jax.devices()[:1]),
    )
    assert 0.7 < 4 * row["flops"] / here.flops < 2 and row["accessed"] > row["trained"]
    assert row["arithmetic_ms"] > 0 and row["traffic_ms"] > 0 and row["trained"] < row["traffic"] <= row["accessed"]
    assert row["trained"] == 4 * (8 * 16 + 16)
    moved = sum(each["bytes"] for each in row["collectives"].values())
    assert row["trained"] <= moved <= 2 * row["trained"] + 4096
    assert 0 < row["arguments"] < row["peak"] < row["device_memory"]
    assert not list(Path(tmp_path).glob("*partial*"))


GIGABYTES = {
    "v5e:1x1": (64, 64, 3.0, 17.0),
    "h100:1": (32, 256, 11.0, 11.0),
    "h100:4": (32, 256, 3.3, 3.3),
}  # L, B; device memory, all that is counted


@pytest.mark.slow
@pytest.mark.parametrize(
    "where",
    [
        pytest.param("v5e:1x1", marks=pytest.mark.skipif(not find_spec("libtpu"), reason="needs libtpu")),
        pytest.param("h100:1", marks=pytest.mark.skipif(not CUDA, reason="needs JAX's CUDA plugin")),
        pytest.param("h100:4", marks=pytest.mark.skipif(not CUDA, reason="needs JAX's CUDA plugin")),
    ],
)
def test_what_a_step_of_bert_base_moves(where):
    """Measured: 2.3 and 16.3 GB on a TPU v5e; 10.6 on an H100, where no text says what stays in its cache.

    Of four, each moves 3.1: its kernels compute its own rows.
    """
    length, rows, in_memory, counted = GIGABYTES[where]
    fit = {"batch_size": rows, "steps": 1000, "compute_dtype": "bfloat16", "prefix_cache_mb": 0, "dropout": "none"}
    stage = {"kind": "plugin", "task": "mention_masked_lm", "host": "shape:bert-base", "knowledge": "shape:100"}
    stage |= {"data": ("absent.jsonl",), "max_length": length, "fit": fit}
    cost = compile_abstract(abstract_model("m", read_stages({"stages": {"m": stage}})), open_target(where))
    assert cost.traffic < 1e9 * in_memory and cost.accessed < 1e9 * counted
    assert len(check_only_gradients(cost.text, cost.trained)) == (where == "h100:4")


def test_vectors_on_the_devices_are_told_with_their_share(world):
    """The chip is one of those at hand, with a memory of 128 KiB a device; the knowledge base is on the disk."""
    chip = Chip(1e12, 128 << 10, 1e9, 1e9)
    where = Target("cpu:2", chip, 2, jax.devices())

    def told(**changes):
        one = abstract_model("p", read_stages({"stages": {"p": plugin_stage(world, max_length=16, **changes)}}))
        cost = compile_abstract(one, where)
        assert row_of(one, where, cost)["table"] == cost.table
        return cost.table, described(one, where, cost)

    table, text = told()
    assert table == 60 * 8 * 4 // 2, "auto, which knows the chip's memory"
    assert "on the devices: 60 x 8 float32, 960 B of the arguments, 0.7 % of memory" in text
    assert told(vectors="host")[0] == told(knowledge="shape:4096x8")[0] == 0, "asked for; half of the memory"

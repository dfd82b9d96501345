"""What a training stage would compile, from its config alone: no weights, no data, no stage run before it.

A host may be a stage of the same config, a folder, a hub id or `shape:bert-base`; a knowledge base may be a stage, a
folder, `shape:K`, K numbers a vector, or `shape:NxK`, N of them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from kinject.config import build_dataclass
from kinject.data.sources.package_data import package_file
from kinject.errors import InputError
from kinject.inference.program import Program, split_program
from kinject.inference.vectors import TableShape, Where
from kinject.knowledge.base import KnowledgeBase
from kinject.knowledge.graph import GraphConfig
from kinject.models.config import EncoderConfig
from kinject.models.encoder import Encoder
from kinject.models.heads import HostModel, build_head, head_kind
from kinject.models.hub import SHAPE_MARK, encoder_shape
from kinject.models.manifest import read_host_manifest
from kinject.models.precision import activations
from kinject.models.seams import Plugin
from kinject.models.tuning import make_tuning, saved_tuning
from kinject.models.tuning_base import Tuning, attach, rules_for
from kinject.plugins.base import make_plugin, read_method
from kinject.plugins.store import read_plugin_manifest
from kinject.stages.base import OUTPUT_MARK, PACKAGE_MARK, StageConfig
from kinject.stages.host import HostConfig
from kinject.stages.joint import TogetherConfig
from kinject.stages.plugin import PluginConfig
from kinject.stages.training import Rules, TrainingConfig
from kinject.tasks.base import Task, make_task
from kinject.tasks.batches import Extent, Shapes
from kinject.training.config import FitConfig
from kinject.tree import Flat

Stages = Mapping[str, StageConfig]


@dataclasses.dataclass(frozen=True)
class Outline:
    """A training stage without arrays: what `compile_step` takes.

    Attributes:
      table: of entity vectors that the plugin reads; None where it reads none, or how many there are is not known.
      vectors: where they are to be, as the config says.
    """

    name: str
    program: Program
    params: Flat
    rules: Rules
    fit: FitConfig
    batch: Shapes
    host: EncoderConfig
    table: TableShape | None = None
    vectors: Where = "host"


@dataclasses.dataclass(frozen=True)
class _HostShape:
    config: EncoderConfig
    labels: int | None = None
    tuning: Tuning | None = None


def outline(name: str, stages: Stages) -> Outline:
    """The outline of a stage of kind `host` or `plugin`, its batch padded to `max_length`.

    Raises:
      InputError: a shape that cannot be known, or settings that do not fit each other.
    """
    stage, where = stages[name], f"stages.{name}"
    assert isinstance(stage, TrainingConfig)
    task = make_task(stage.task, f"{where}.task", **stage.task_options)
    own = _host_stage(stage, task, where, stages) if isinstance(stage, HostConfig) else None
    shape = own or _host_shape(stage.host, f"{where}.host", stages)
    knowledge = _knowledge(stage.knowledge, f"{where}.knowledge", stages) if stage.knowledge else None
    if stage.dropout is not None:
        rate = stage.dropout
        config = dataclasses.replace(shape.config, hidden_dropout_prob=rate, attention_probs_dropout_prob=rate)
        shape = dataclasses.replace(shape, config=config)
    outputs = _outputs(task, shape)

    def build() -> tuple[HostModel, Plugin | None]:
        return _host(shape, task, outputs, activations(stage.fit.compute_dtype)), _plugin(
            stage, shape, knowledge.dim if knowledge else None, where, stages
        )

    host, plugin = nnx.eval_shape(build)
    if plugin is not None and type(plugin).prepare is not Plugin.prepare:
        problem = f"what {plugin.name} reads of each example is only known with the data"
        raise InputError(f"{where}.method", problem, "its step cannot be compiled ahead of time")
    program, params = split_program(host, plugin, task)
    length = min(stage.max_length or shape.config.max_length, shape.config.max_length)
    table = knowledge if plugin is not None and plugin.reads_slots else None
    extent = Extent(
        stage.fit.batch_size,
        length,
        knowledge_dim=table.dim if table else None,
        hidden_size=shape.config.hidden_size,
        outputs=outputs or 0,
    )
    batch = task.batch_shapes(extent)
    made = Outline(name, program, params, _rules(stage, task), stage.fit, batch, shape.config)
    if table is None or not isinstance(stage, PluginConfig):
        return made
    if not table.rows and stage.vectors == "device":
        problem, given = f"how many entities {stage.knowledge} has is not known", f"{SHAPE_MARK}5000000x{table.dim}"
        raise InputError(f"{where}.knowledge", problem, f"say it: --config.{where}.knowledge={given}")
    return dataclasses.replace(made, table=table if table.rows else None, vectors=stage.vectors)


def _rules(stage: TrainingConfig, task: Task) -> Rules:
    if stage.train is not None:
        return stage.train
    return rules_for(make_tuning(stage.tuning), task.head)


def _outputs(task: Task, shape: _HostShape) -> int | None:
    """How many outputs the head has; None where its kind decides."""
    if task.head is None or not head_kind(task.head).own_output or head_kind(task.head).num_labels is not None:
        return None
    return task.num_labels if shape.labels is None else shape.labels


def _host(shape: _HostShape, task: Task, outputs: int | None, dtype: Any) -> HostModel:
    options = {"dtype": dtype, "rngs": nnx.Rngs(0)}
    head = None if task.head is None else build_head(task.head, shape.config, outputs, **options)
    host = HostModel(Encoder(shape.config, **options), head)
    if shape.tuning is not None:
        attach(host, shape.tuning, options["rngs"])
    return host


def _plugin(
    stage: TrainingConfig, shape: _HostShape, knowledge_dim: int | None, where: str, stages: Stages
) -> Plugin | None:
    if isinstance(stage, HostConfig) and stage.plugin is None:
        return None
    sizes = {"hidden_size": shape.config.hidden_size, "knowledge_dim": knowledge_dim or 0}
    method = _stored_method(stage.plugin, where, stages) if isinstance(stage, HostConfig) else stage.method
    parts = {} if isinstance(stage, HostConfig) else stage.parts
    if not parts:
        return make_plugin(method, **sizes, where=f"{where}.method")
    cls, settings = read_method(method, f"{where}.method")
    made = {name: make_plugin(_stored_method(one, where, stages), **sizes) for name, one in parts.items()}
    return cls.from_parts(settings, made, **sizes, rngs=nnx.Rngs(0))


def _stored_method(reference: str, where: str, stages: Stages) -> dict[str, Any]:
    """The method of a plugin that another stage makes, or that is in a folder."""
    made = _stage_of(reference, stages)
    if isinstance(made, TogetherConfig):
        made = made.members.get(reference.partition("/")[2])
    if isinstance(made, PluginConfig):
        return made.method
    manifest = read_plugin_manifest(Path(reference).expanduser())
    return {"name": manifest["method"], **manifest["method_config"]}


def _host_stage(stage: HostConfig, task: Task, where: str, stages: Stages) -> _HostShape:
    """The shape of the host that a host stage makes."""
    base = _host_shape(stage.base, f"{where}.base", stages)
    return _HostShape(base.config, task.num_labels, base.tuning or make_tuning(stage.tuning, f"{where}.tuning"))


def _host_shape(reference: str, where: str, stages: Stages) -> _HostShape:
    made = _stage_of(reference, stages)
    if isinstance(made, HostConfig):
        origin = f"stages.{reference.removeprefix(OUTPUT_MARK)}"
        task = make_task(made.task, f"{origin}.task", **made.task_options)
        shape = _host_stage(made, task, origin, stages)
        return dataclasses.replace(shape, tuning=None) if made.merge else shape
    if made is not None or reference.startswith(OUTPUT_MARK):
        raise InputError(where, f"{reference} is no stage that makes a host")
    if reference.startswith(PACKAGE_MARK):
        name, _, rest = reference.removeprefix(PACKAGE_MARK).partition("/")
        reference = str(package_file(name, f"{rest}/config.json").parent)
    config, folder = encoder_shape(reference, where), Path(reference).expanduser()
    if reference.startswith(SHAPE_MARK) or not folder.is_dir():
        return _HostShape(config)
    manifest = read_host_manifest(folder)
    labels = manifest.get("labels")
    return _HostShape(config, None if labels is None else len(labels), saved_tuning(manifest, folder))


def _knowledge(reference: str, where: str, stages: Stages) -> TableShape:
    """The table of a knowledge base, with 0 rows where their number is not known."""
    if sized := re.fullmatch(rf"{SHAPE_MARK}(?:(\d+)x)?(\d+)", reference):
        return TableShape(int(sized[1] or 0), int(sized[2]), "float32")
    made = _stage_of(reference, stages)
    if made is not None and hasattr(made, "graph"):
        return TableShape(0, build_dataclass(GraphConfig, made.graph, f"{where} ({reference}).graph").dim, "float32")
    if made is None and not reference.startswith((OUTPUT_MARK, SHAPE_MARK)):
        return TableShape.of(KnowledgeBase.open(Path(reference).expanduser()))
    problem = f"how many numbers a vector of {reference} has is only known once it is there"
    raise InputError(where, problem, f"say it: --config.{where}={SHAPE_MARK}100")


def _stage_of(reference: str, stages: Stages) -> StageConfig | None:
    """The settings of the stage that `@stage/…` names; None where it names none."""
    return stages.get(reference.removeprefix(OUTPUT_MARK).partition("/")[0]) if reference[:1] == OUTPUT_MARK else None

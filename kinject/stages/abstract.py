"""The model that a training stage would build, without arrays: what `--aot` compiles, from the config alone.

The stage's own builders run under `nnx.eval_shape`: no weights, no data, no stage run before it. A host may be a stage
of the same config, a folder, a hub id or `shape:bert-base`; a knowledge base may be a stage, a folder, `shape:K`, K
numbers a vector, or `shape:NxK`, N of them.
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
from kinject.inference.mesh import Placement
from kinject.inference.program import Program, split_program
from kinject.inference.vectors import TableShape, Where
from kinject.knowledge.base import KnowledgeBase
from kinject.knowledge.graph import GraphConfig
from kinject.models.config import EncoderConfig
from kinject.models.heads import HostModel, head_kind
from kinject.models.manifest import read_host_manifest
from kinject.models.precision import activations
from kinject.models.pretrained import abstract_host
from kinject.models.seams import Plugin
from kinject.models.shapes import SHAPE_MARK, encoder_shape
from kinject.models.tuning import make_tuning, saved_tuning
from kinject.models.tuning_base import Tuning
from kinject.plugins.base import make_plugin
from kinject.plugins.store import read_plugin_manifest
from kinject.reports.console import Reporter
from kinject.stages.base import OUTPUT_MARK, PACKAGE_MARK, Rules, Run, StageConfig
from kinject.stages.host import HostConfig, HostStage
from kinject.stages.joint import JointConfig
from kinject.stages.plugin import PluginConfig, PluginStage
from kinject.tasks.base import Extent, Shapes, Task, make_task
from kinject.training.config import FitConfig
from kinject.training.partition import label_parameters
from kinject.tree import Flat

Stages = Mapping[str, StageConfig]


@dataclasses.dataclass(frozen=True)
class AbstractModel:
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
    """What can be known of a host before its weights are there."""

    config: EncoderConfig
    labels: int | None = None
    tuning: Tuning | None = None

    def build(self, task: Task, dropout: float | None, dtype: Any) -> HostModel:
        """The host as it would be loaded for a task, shapes in the place of arrays."""
        config = self.config
        if dropout is not None:
            config = dataclasses.replace(config, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
        return abstract_host(config, task.head, self.outputs(task), self.tuning, dtype=dtype)

    def outputs(self, task: Task) -> int | None:
        """How many outputs the head has; None where its kind decides."""
        if task.head is None or not head_kind(task.head).own_output or head_kind(task.head).num_labels is not None:
            return None
        return task.num_labels if self.labels is None else self.labels


def abstract_model(name: str, stages: Stages) -> AbstractModel:
    """The model of a stage of kind `host` or `plugin`, its batch padded to `max_length`.

    Raises:
      InputError: a stage of another kind, a shape that cannot be known, or settings that do not fit each other.
    """
    settings, where = stages[name], f"stages.{name}"
    run = Run(Path(), 0, Reporter(quiet=True), Placement.single(), stages)
    if isinstance(settings, HostConfig):
        return _tuned_host(HostStage(name, settings, run))
    if isinstance(settings, PluginConfig):
        return _trained_plugin(PluginStage(name, settings, run))
    problem = f"what a stage of kind {settings.kind} computes is only known with its data"
    raise InputError(where, problem, "its step cannot be compiled ahead of time")


def check_rules(name: str, stages: Stages) -> None:
    """Holds a stage's training rules to the parameters of its model, as far as both are known before anything has run.

    Raises:
      InputError: a rule that is none, or that goes by no parameter, parameters that no rule covers, none to train.
    """
    settings = stages[name]
    if str(getattr(settings, "knowledge", None)).startswith(OUTPUT_MARK):  # no path depends on how long vectors are
        settings = settings.model_copy(update={"knowledge": f"{SHAPE_MARK}8"})
    try:
        abstract_model(name, {**stages, name: settings})
    except InputError as error:
        if error.where == f"stages.{name}.train":
            raise
        # a model that is known with its files or data only; what is wrong there is told when it is loaded


def _tuned_host(stage: HostStage) -> AbstractModel:
    config, stages = stage.config, stage.run.stages
    task = make_task(config.task, f"{stage.where}.task", **config.task_options)
    knowledge = _knowledge(config.knowledge, f"{stage.where}.knowledge", stages)
    base = _host_shape(config.base, f"{stage.where}.base", stages)
    base = dataclasses.replace(base, labels=task.num_labels)
    loaded = base.build(task, config.dropout, activations(config.fit.compute_dtype))

    def build(host: HostModel) -> tuple[HostModel, Plugin | None]:
        stage.tune(host)
        if config.plugin is None:
            return host, None
        method = config.plugin
        if isinstance(method, str):
            method = _stored_method(method, stages)
        return host, make_plugin(method, **_sizes(base.config, knowledge), where=f"{stage.where}.plugin")

    host, plugin = nnx.eval_shape(build, loaded)
    rules = stage.rules(make_tuning(config.tuning, f"{stage.where}.tuning"), task)
    return _model(stage, task, base, host, plugin, rules, knowledge)


def _trained_plugin(stage: PluginStage) -> AbstractModel:
    config, stages = stage.config, stage.run.stages
    task = make_task(config.task, f"{stage.where}.task", **config.task_options)
    base = _host_shape(config.host, stage.host_where, stages)
    knowledge = _knowledge(config.knowledge, f"{stage.where}.knowledge", stages)
    sizes = _sizes(base.config, knowledge)

    def build() -> Plugin:
        parts = {name: make_plugin(_stored_method(one, stages), **sizes) for name, one in config.parts.items()}
        return stage.build_plugin(parts, **sizes)

    host = base.build(task, config.dropout, activations(config.fit.compute_dtype))
    plugin = nnx.eval_shape(build)
    made = _model(stage, task, base, host, plugin, config.train, knowledge)
    if knowledge is None or not plugin.reads_slots:
        return made
    if not knowledge.rows and config.vectors == "device":
        problem = f"how many entities {config.knowledge} has is not known"
        given = f"{SHAPE_MARK}5000000x{knowledge.dim}"
        place = f"{stage.where}.knowledge"
        raise InputError(place, problem, f"say it: --config.{place}={given}")
    return dataclasses.replace(made, table=knowledge if knowledge.rows else None, vectors=config.vectors)


def _model(
    stage: HostStage | PluginStage,
    task: Task,
    shape: _HostShape,
    host: HostModel,
    plugin: Plugin | None,
    rules: Rules,
    knowledge: TableShape | None,
) -> AbstractModel:
    config = stage.config
    program, params = split_program(host, plugin, task)
    label_parameters(params, rules, f"{stage.where}.train", program.tables)
    if plugin is not None and type(plugin).prepare is not Plugin.prepare:
        problem = f"what {plugin.name} reads of each example is only known with the data"
        raise InputError(f"{stage.where}.method", problem, "its step cannot be compiled ahead of time")
    table = knowledge if plugin is not None and plugin.reads_slots else None
    extent = Extent(
        config.fit.batch_size,
        min(config.max_length or shape.config.max_length, shape.config.max_length),
        knowledge_dim=table.dim if table else None,
        hidden_size=shape.config.hidden_size,
        outputs=shape.outputs(task) or 0,
    )
    batch = task.batch_shapes(extent)
    return AbstractModel(stage.name, program, params, rules, config.fit, batch, host.encoder.config)


def _sizes(config: EncoderConfig, knowledge: TableShape | None) -> dict[str, Any]:
    return {**config.plugin_sizes, "knowledge_dim": 0 if knowledge is None else knowledge.dim}


def _stored_method(reference: str, stages: Stages) -> dict[str, Any]:
    """The method of a plugin that another stage makes, or that is in a folder."""
    made = _stage_of(reference, stages)
    if isinstance(made, JointConfig):
        made = made.plugin_configs(f"stages.{reference}").get(reference.partition("/")[2])
    if isinstance(made, PluginConfig):
        return made.method
    manifest = read_plugin_manifest(Path(reference).expanduser())
    return {"name": manifest["method"], **manifest["method_config"]}


def _host_shape(reference: str, where: str, stages: Stages) -> _HostShape:
    """Of a host that a stage makes, of a folder, a hub id or a named shape."""
    made = _stage_of(reference, stages)
    if isinstance(made, HostConfig):
        origin = f"stages.{reference.removeprefix(OUTPUT_MARK)}"
        task = make_task(made.task, f"{origin}.task", **made.task_options)
        base = _host_shape(made.base, f"{origin}.base", stages)
        tuning = None if made.merge else base.tuning or make_tuning(made.tuning, f"{origin}.tuning")
        return _HostShape(base.config, task.num_labels, tuning)
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


def _knowledge(reference: str | None, where: str, stages: Stages) -> TableShape | None:
    """The table of a knowledge base, with 0 rows where their number is not known."""
    if not reference:
        return None
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

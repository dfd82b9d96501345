"""A host ready for use: the loaded model with its tokenizer, its head, the identity that plugins are pinned to, and the
examples that it makes of records: with slots where a method reads them, and what the method prepares beyond them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from kinject.data.encode import EntityEncoder
from kinject.data.passage import SlotForm
from kinject.data.pipeline import Examples
from kinject.data.records import Record
from kinject.data.tokenizer import HostTokenizer, changed_reading, load_tokenizer
from kinject.errors import InputError
from kinject.hf_folder import stated_config
from kinject.knowledge.base import KnowledgeBase
from kinject.models.config import EncoderConfig
from kinject.models.heads import HostModel, build_head
from kinject.models.host_files import HostFiles, host_files
from kinject.models.manifest import NO_HEAD, array_digest, read_host_manifest
from kinject.models.pooling import pools
from kinject.models.pretrained import LoadedHost, host_folder, load_host, with_pooling
from kinject.models.seams import Plugin
from kinject.plugins.store import NO_KNOWLEDGE, HostIdentity, StoredPlugin, TrainedHead, check_fits
from kinject.tasks.base import Task
from kinject.tree import flatten, unflatten

ARCHITECTURES = {
    "ForSequenceClassification": "sequence_classification",
    "ForTokenClassification": "token_classification",
    "ForMultipleChoice": "multiple_choice",
    "ForQuestionAnswering": "span_extraction",
    "ForMaskedLM": "cloze",
    "ForPreTraining": "cloze",
}
"""Which task answers as the pipelines of transformers do for a class of theirs."""
DEFAULTS = {"span_extraction": {"window": 384, "overlap": 128, "longest": 15, "question_length": 384}}
"""Options of these tasks that are the pipelines' own where they are not ours."""


@dataclass(frozen=True)
class HostBundle:
    """A loaded host with its tokenizer and its identity."""

    loaded: LoadedHost
    tokenizer: HostTokenizer

    @property
    def lineage(self) -> tuple[str, ...]:
        """Fingerprints of the encoder's weights, then of those that it was made from, newest first."""
        return (self.loaded.encoder_fingerprint, *self.loaded.manifest.get("extra", {}).get("lineage", []))

    @property
    def identity(self) -> HostIdentity:
        """What plugins are pinned to: the weights, and the reading where texts are other pieces than they once were."""
        size = self.loaded.config.hidden_size
        reading = self._changed_reading
        if reading is None:
            return HostIdentity(self.loaded.fingerprint, self.lineage, size)
        lineage = tuple(_mixed(one, reading) for one in self.lineage)
        return HostIdentity(_mixed(self.loaded.fingerprint, reading), lineage, size, former=self.lineage)

    @cached_property
    def _changed_reading(self) -> str | None:
        return changed_reading(self.tokenizer, self.loaded.folder)

    def encoder(self, max_length: int | None, form: SlotForm = "before") -> EntityEncoder:
        """Encodes texts for this host, of at most so many tokens; None = as many as it has positions."""
        return EntityEncoder(self.tokenizer, max_length, form=form)


def knowledge_identity(base: KnowledgeBase | None) -> dict[str, Any]:
    """What a plugin is pinned to, and what its card says of the knowledge base; None for one that reads none."""
    if base is None:
        return dict(NO_KNOWLEDGE)
    base.check_claim()
    return {
        "name": base.name,
        "fingerprint": base.fingerprint,
        "revision": base.revision,
        "space": {"id": base.space["id"], "origins": base.space["origins"]},
        "dim": base.dim,
        "count": base.size,
        "source": base.manifest["source"],
        "license": base.manifest["license"],
    }


def _mixed(fingerprint: str, reading: str) -> str:
    return "sha256:" + hashlib.sha256(f"{fingerprint} {reading}".encode()).hexdigest()


def open_host(folder: str | os.PathLike[str], **options: Any) -> HostBundle:
    """Loads weights (see `load_host` for the options) and, beside them, the tokenizer of one folder."""
    with ThreadPoolExecutor(1) as beside:
        tokenizers: list[Future[HostTokenizer]] = []

        def opened(files: HostFiles, config: EncoderConfig) -> None:
            tokenizers.append(beside.submit(load_tokenizer, files.tokenizer, _positions(config)))

        loaded = load_host(folder, **options, opened=opened)
        return HostBundle(loaded, tokenizers[0].result())


def _positions(config: EncoderConfig) -> int:
    """How many tokens a text may have."""
    pooling = config.pooling
    if pooling is None or pooling.max_length is None:
        return config.max_length
    return min(config.max_length, pooling.max_length)  # as sentence-transformers cuts texts


def host_task(manifest: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """The task that a host's `host.json` names, None where it names none, and that task's options."""
    return manifest.get("task"), manifest.get("extra", {}).get("task_options", {})


def told_task(folder: str | os.PathLike[str]) -> tuple[str, dict[str, Any]]:
    """The task that a host answers, and that task's options: by its host.json, else by `architectures` of config.json.

    The modules of sentence-transformers count where `architectures` names a bare encoder, or no more than it began as.

    Raises:
      InputError: no such host, or none of these tells of a task.
    """
    files = host_files(host_folder(folder))
    task, options = host_task(read_host_manifest(files.model))
    if task is not None:
        return task, options
    named = stated_config(files.model).get("architectures") or []
    classes = [files.architecture] if files.architecture else named
    tasks = (task for name in map(str, classes) for end, task in ARCHITECTURES.items() if name.endswith(end))
    told = next(tasks, None)
    if told in (None, "cloze") and pools(files.named):
        told = "sentence_embedding"
    if told is not None:
        return told, dict(DEFAULTS.get(told, {}))
    said = f"host.json names none, and architectures of config.json {', '.join(map(str, classes)) or 'nothing'}"
    raise InputError(folder, f"its task is not known: {said}", "say which one (task=…, --task), such as cloze")


def open_under_head(
    folder: str | os.PathLike[str], stored: StoredPlugin, head: TrainedHead, task: str, **options: Any
) -> HostBundle:
    """Loads a host under the head that was trained together with a plugin.

    Args:
      folder: the host's.
      stored: the plugin.
      head: the plugin's, see `read_head`.
      task: what it must have been trained for.
      options: see `load_host`.

    Raises:
      InputError: no such host, a plugin of another host, or a head for another task.
    """
    ready = open_host(folder, head=NO_HEAD, **options)
    check_fits(stored.folder, stored.manifest, ready.identity, None)
    return with_head(ready, task_of(head, task, stored.folder), stored.folder)


def with_head(ready: HostBundle, head: TrainedHead, where: object) -> HostBundle:
    """The same encoder under another head; the host that is given stays as it is.

    Raises:
      InputError: parameters that a head of that kind does not have on this host.
    """
    loaded, facts = ready.loaded, head.facts
    dtype = loaded.host.encoder.dtype
    config = with_pooling(loaded.config, facts["kind"], loaded.files)
    made = build_head(facts["kind"], config, facts.get("num_labels"), dtype=dtype, rngs=nnx.Rngs(0))
    expected = {path: leaf.shape for path, leaf in flatten(nnx.to_pure_dict(nnx.state(made, nnx.Param))).items()}
    found = {path: tuple(leaf.shape) for path, leaf in head.params.items()}
    for path in sorted(expected.keys() | found.keys()):
        if expected.get(path) != found.get(path):
            problem = f"its head has {path} {found.get(path, 'missing')}, one of this host {expected.get(path)}"
            raise InputError(where, problem, "use it with the host that it was trained with")
    nnx.update(made, unflatten({path: jnp.asarray(leaf) for path, leaf in head.params.items()}))
    host = HostModel(loaded.host.encoder, made)
    host.tuning = loaded.host.tuning
    described = {"head": facts["kind"], "num_labels": facts.get("num_labels"), "labels": facts.get("labels")}
    return as_it_is(replace(ready, loaded=replace(loaded, host=host, manifest={**loaded.manifest, **described})))


def as_it_is(ready: HostBundle) -> HostBundle:
    """The host with the identity of the parameters that it now has; an encoder that changed descends from the old."""
    loaded = ready.loaded
    arrays = flatten(nnx.to_pure_dict(nnx.state(loaded.host, nnx.Param)))
    now = replace(loaded, digests={path: array_digest(leaf) for path, leaf in arrays.items()})
    if now.encoder_fingerprint != loaded.encoder_fingerprint:
        extra = {**loaded.manifest.get("extra", {}), "lineage": list(ready.lineage)}
        now = replace(now, manifest={**loaded.manifest, "extra": extra})
    return replace(ready, loaded=now)


def trained_head(host: HostModel, **facts: object) -> TrainedHead:
    """The head of a host as it is now, to go along with a plugin; `facts` are what it was trained for."""
    if host.head is None:
        raise ValueError("this host has no head to go along")
    params = flatten(nnx.to_pure_dict(nnx.state(host.head, nnx.Param)))
    described = {"kind": host.head.kind, "num_labels": getattr(host.head, "num_labels", None), **facts}
    return TrainedHead(described, {path: np.asarray(leaf) for path, leaf in params.items()})


def task_of(head: TrainedHead, task: str, where: Path) -> TrainedHead:
    """The head, if it was trained for this task; raises InputError if it was for another."""
    if head.facts.get("task") != task:
        raise InputError(where, f"its head was trained for {head.facts.get('task')}, not for {task}")
    return head


def task_examples(
    task: Task,
    plugin: Plugin | None,
    records: Sequence[Record],
    host: HostBundle,
    knowledge: KnowledgeBase | None,
    *,
    max_length: int | None,
    buckets: int = 3,
    encoder: EntityEncoder | None = None,
) -> Examples:
    """What the task makes of records for a plugin: with slots for one that reads them, bare for any other or none.

    `encoder` is the host's for texts of `max_length`, given by whoever wants to know afterwards which it shortened.
    """
    encoder = encoder or host.encoder(max_length, "before" if plugin is None else plugin.slot_form)
    make = task.examples if plugin is not None and plugin.reads_slots else task.bare_examples
    return task.prepare(make(records, encoder, knowledge, buckets=buckets), records, host, max_length)


def attach_knowledge(
    examples: Examples,
    plugin: Plugin | None,
    records: Sequence[Record],
    host: HostBundle,
    knowledge: KnowledgeBase | None,
    donors: np.ndarray | None = None,
) -> Examples:
    """The examples with what the plugin prepares for each.

    Args:
      examples: made of the records.
      plugin: None and a plugin that prepares nothing leave the examples as they are.
      records: as the examples were made of.
      host: the frozen host.
      knowledge: the knowledge base, None where there is none.
      donors: int [n]: the example whose knowledge each one gets; None = its own.

    Raises:
      InputError: the plugin reads records, and an example of this task is made of several.
    """
    if plugin is None or type(plugin).prepare is Plugin.prepare:
        return examples
    owners = record_of(examples, records)
    if donors is not None:
        owners = owners[donors]
    return plugin.prepare(examples, [records[i] for i in owners], host, knowledge)


def record_of(examples: Examples, records: Sized) -> np.ndarray:
    """Of which record each example was made, int [n].

    Raises:
      InputError: it was made of several.
    """
    if examples.record_index is not None:
        return examples.record_index
    if examples.size != len(records):
        problem = f"it makes {examples.size} examples of {len(records)} records, several of which share one"
        raise InputError("task", problem, "use a method that reads slots, or a task with one record an example")
    return np.arange(len(records))


def derangement(groups: np.ndarray, seed: int) -> np.ndarray:
    """A permutation in which every item gets one of another group, as far as no group holds more than half of them.

    Args:
      groups: int [n]: of which group each item is; for n different ones it is a derangement.
      seed: which permutation.

    Returns:
      int [n]: whose place each item takes.
    """
    draw = np.random.default_rng(seed)
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    rank = draw.permutation(len(sizes))[group]
    order = np.lexsort((draw.permutation(len(groups)), rank))  # group by group, both in random order
    shuffled = np.empty(len(groups), np.int64)
    shuffled[order] = np.roll(order, -np.max(sizes, initial=0))  # the group at a distance of the largest is another
    return shuffled

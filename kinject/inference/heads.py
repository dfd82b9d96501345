"""Heads that travel with plugins: put on a host, on request."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from kinject.errors import InputError
from kinject.inference.host import HostBundle
from kinject.models.fingerprint import array_digest
from kinject.models.heads import HostModel, build_head
from kinject.models.manifest import fingerprints
from kinject.plugins.store import TrainedHead
from kinject.tree import flatten, unflatten


def with_head(ready: HostBundle, head: TrainedHead, where: object) -> HostBundle:
    """The same encoder under another head; the host that is given stays as it is.

    Raises:
      InputError: parameters that a head of that kind does not have on this host.
    """
    loaded, facts = ready.loaded, head.facts
    dtype = loaded.host.encoder.dtype
    made = build_head(facts["kind"], loaded.config, facts.get("num_labels"), dtype=dtype, rngs=nnx.Rngs(0))
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
    prints = fingerprints({path: array_digest(leaf) for path, leaf in arrays.items()})
    manifest = loaded.manifest
    if prints["encoder_fingerprint"] != loaded.encoder_fingerprint:
        extra = {**manifest.get("extra", {}), "lineage": list(ready.identity.lineage)}
        manifest = {**manifest, "extra": extra}
    return replace(ready, loaded=replace(loaded, manifest=manifest, **prints))


def trained_head(host: HostModel, **facts: object) -> TrainedHead:
    """The head of a host as it is now, to go along with a plugin; `facts` are what it was trained for."""
    params = flatten(nnx.to_pure_dict(nnx.state(host.head, nnx.Param)))
    described = {"kind": host.head.kind, "num_labels": getattr(host.head, "num_labels", None), **facts}
    return TrainedHead(described, {path: np.asarray(leaf) for path, leaf in params.items()})


def task_of(head: TrainedHead, task: str, where: Path) -> TrainedHead:
    """The head, if it was trained for this task; raises InputError if it was for another."""
    if head.facts.get("task") != task:
        raise InputError(where, f"its head was trained for {head.facts.get('task')}, not for {task}")
    return head

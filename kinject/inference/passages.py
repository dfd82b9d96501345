"""Encodes passages by a host and a memory plugin, attaches memories to the plugin, and tells what it reads of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kinject.data.pipeline import Feed
from kinject.data.tokenizer import HostTokenizer
from kinject.errors import InputError
from kinject.inference.host import HostBundle, derangement
from kinject.memory.store import BATCH, PassageMemory
from kinject.models.heads import HostModel
from kinject.models.seams import DelegatingPlugin
from kinject.plugins.pluglm import PlugLM, found_rows
from kinject.plugins.store import HostIdentity, load_plugin
from kinject.tree import digest, flatten


def tagged(tokenizer: HostTokenizer, tag: str) -> HostTokenizer:
    """Knowledge prompting: a tokenizer that puts a tag behind the first special token, of texts and passages alike.

    Raises:
      InputError: the host's vocabulary cannot spell the tag.
    """
    if not tag:
        return tokenizer
    try:
        return dataclasses.replace(tokenizer, before=(*tokenizer.before, *tokenizer.word(tag)))
    except InputError:
        raise InputError("tag", f"the host's vocabulary has no piece for {tag!r}", "choose another tag") from None


def passage_ids(tokenizer: HostTokenizer, texts: Sequence[str], length: int) -> np.ndarray:
    """int32 [n, length], special tokens included, -1 beyond the end; a longer text loses its end."""
    room = length - len(tokenizer.before) - len(tokenizer.after)
    ids = np.full((len(texts), length), -1, np.int32)
    for row, pieces in enumerate(tokenizer.pieces(texts)):
        one = [*tokenizer.before, *pieces.ids[:room], *tokenizer.after]
        ids[row, : len(one)] = one
    return ids


def passage_fingerprint(plugin: PlugLM) -> str:
    """Of the parameters that make keys and values: what a memory is pinned to."""
    params = flatten(nnx.to_pure_dict(nnx.state(plugin, nnx.Param)))
    own = ("pool/", "to_key/", "to_value/")
    return "sha256:" + digest({path: leaf for path, leaf in params.items() if path.startswith(own)})


class PassageEncoder:
    """What `build_memory` and edits of a memory call: texts -> tokens, keys, values.

    Args:
      host: whose tokenizer and embedding layer read the texts.
      plugin: whose passage encoder does.
      length: T, tokens a passage, special ones included.
      tag: before every passage, "" = nothing.

    Raises:
      InputError: a length that leaves no room for a text or that the host does not have; a tag it cannot spell.
    """

    def __init__(self, host: HostBundle, plugin: PlugLM, length: int, tag: str = ""):
        self.tokenizer, self.length, self.tag = tagged(host.tokenizer, tag), length, tag
        least = len(self.tokenizer.before) + len(self.tokenizer.after) + 1
        if not least <= length <= self.tokenizer.max_length:
            mend = f"choose from {least} to {self.tokenizer.max_length}"
            raise InputError("length", f"{length} is no length of a passage", mend)
        self.host, self.fingerprint = host.identity, passage_fingerprint(plugin)
        self.sizes = {"hidden_size": plugin.hidden_size, "key_size": plugin.config.key_size, "length": length}
        graph, self.state = nnx.split((plugin, host.loaded.host.encoder.embeddings))

        def run(state: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
            plugin, embeddings = nnx.merge(graph, state)
            return plugin.encode(embeddings, tokens)

        self._run = jax.jit(run)

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        tokens = passage_ids(self.tokenizer, texts, self.length)
        full = np.pad(tokens, ((0, -len(tokens) % BATCH), (0, 0)), constant_values=-1)  # one program for any number
        keys, values = jax.device_get(self._run(self.state, full))
        return tokens, keys[: len(tokens)], values[: len(tokens)]

    def about(self) -> dict[str, Any]:
        """What `build_memory` writes of the encoder."""
        identity = {"encoder_fingerprint": self.host.encoder_fingerprint, "plugin_fingerprint": self.fingerprint}
        return {**identity, "sizes": self.sizes, "tag": self.tag}


def check_memory(memory: PassageMemory, plugin: PlugLM, host: HostIdentity) -> None:
    """Raises InputError unless this plugin, on this host (or one that it was made from), encoded the memory."""
    where, about = memory.folder / "memory.json", memory.manifest
    host.check_reading(about["encoder_fingerprint"], where)
    if about["encoder_fingerprint"] not in host.lineage:
        problem = f"it was read by the encoder {about['encoder_fingerprint'][:19]}…, which is not this host's"
        raise InputError(where, problem, "build the memory with this host")
    if about["plugin_fingerprint"] != passage_fingerprint(plugin):
        problem = f"its passages were encoded by another plugin ({about['plugin_fingerprint'][:19]}…)"
        raise InputError(where, problem, "build the memory with this plugin")


def open_memory_plugin(folder: Path, host: HostBundle, where: str) -> PlugLM:
    """The plugin of a folder, without a memory.

    Raises:
      InputError: see `load_plugin`; a method that reads no memory.
    """
    stored = load_plugin(folder, host=host.identity)
    if not isinstance(stored.plugin, PlugLM):
        raise InputError(where, f"{stored.manifest['method']} reads no memory", "name a pluglm")
    return stored.plugin


def attach(
    plugin: PlugLM,
    memories: Sequence[PassageMemory],
    host: HostIdentity,
    *,
    live: bool = False,
    mesh: tuple[Mesh, str] | None = None,
) -> None:
    """Puts memories into a plugin, one behind the other; spare rows travel along, so that edits keep the shapes.

    Args:
      plugin: what reads them.
      memories: encoded by it; none = an empty memory.
      host: the host that the plugin is plugged into.
      live: passages found are encoded anew from their tokens, for training.
      mesh: (mesh, axis) to split the rows over; their number is rounded up to a multiple of the axis.

    Raises:
      InputError: a memory of another host or plugin, or memories of different passage lengths for a live plugin.
    """
    plugin.live = live
    if not memories:
        plugin.set_tables()
        return
    for memory in memories:
        check_memory(memory, plugin, host)
    names = ("keys", "values", "alive", *(("tokens",) if live else ()))
    if live and len({memory.tokens.shape[1] for memory in memories}) > 1:
        raise InputError(memories[1].folder, "its passages have another length than the first memory's")
    joined = {name: np.concatenate([getattr(memory, name) for memory in memories]) for name in names}
    if mesh is not None:
        count = mesh[0].shape[mesh[1]]
        sharding = NamedSharding(mesh[0], PartitionSpec(mesh[1]))
        for name, rows in joined.items():
            padded = np.pad(rows, [(0, -len(rows) % count), *[(0, 0)] * (rows.ndim - 1)])
            joined[name] = jax.device_put(padded, sharding)
    plugin.set_tables(**{name: jnp.asarray(rows) for name, rows in joined.items()}, mesh=mesh)


@jax.jit
def _scattered(table: jax.Array, rows: jax.Array, new: jax.Array) -> jax.Array:
    return table.at[rows].set(new, mode="drop")


def sync(plugin: PlugLM, memories: Sequence[PassageMemory]) -> int:
    """Takes over what was edited in the memories since the last call; returns how many rows.

    Only those rows travel to the devices; the next call of any compiled step sees them.
    """
    offset = edited = 0
    for memory in memories:
        rows = memory.take_changes()
        if len(rows):
            size = 1 << (len(rows) - 1).bit_length()  # few different shapes, so few programs
            at = np.pad(rows + offset, (0, size - len(rows)), constant_values=np.iinfo(np.int32).max).astype(np.int32)
            for name in ("keys", "values", "alive", *(("tokens",) if plugin.live else ())):
                table, new = getattr(plugin, name), np.asarray(getattr(memory, name)[rows])
                new = np.pad(new, [(0, size - len(rows)), *[(0, 0)] * (new.ndim - 1)])
                table[...] = _scattered(table[...], at, new)
        offset, edited = offset + memory.capacity, edited + len(rows)
    return edited


class _Watched(DelegatingPlugin):
    """A plugin whose memory layers leave behind what they read: `seen`, by layer."""

    plugin: PlugLM

    def __init__(self, plugin: PlugLM):
        super().__init__(plugin)
        self.seen: dict[int, tuple[jax.Array, jax.Array]] = {}

    def feed_forward(
        self, layer: int, hidden: jax.Array, output: jax.Array, batch: Mapping[str, Any], key: jax.Array | None = None
    ) -> jax.Array:
        if layer in self.plugin.config.layers:
            _, found, weights = self.plugin.read(layer, hidden, batch)
            self.seen[layer] = (found.rows, weights.mean(1).reshape(*weights.shape[:1], -1, *found.rows.shape[1:]))
        return self.plugin.feed_forward(layer, hidden, output, batch, key)


Reading = tuple[np.ndarray, np.ndarray]


def make_readings(host: HostModel, plugin: PlugLM) -> Callable[[Mapping[str, Any]], dict[int, Reading]]:
    """The compiled (batch) -> {layer: (rows int32 [B, G, k], weights float32 [B, L, G, k], mean over heads)}.

    It says what each memory layer reads, of the memory that the plugin holds now.
    """
    graph, state = nnx.split((host, plugin))

    def run(state: Any, batch: Mapping[str, jax.Array]) -> dict[int, tuple[jax.Array, jax.Array]]:
        host, plugin = nnx.merge(graph, state)
        watched = _Watched(plugin)
        host.encoder(batch, watched)
        return watched.seen

    run = jax.jit(run)
    return lambda batch: jax.device_get(run(state, dict(batch)))


def passages_used(
    reading: Reading, memories: Sequence[PassageMemory], row: int, position: int
) -> list[tuple[str, str, float]]:
    """(text, entity, weight) of the passages that one position of one row of a batch read, heaviest first."""
    rows, weights = reading[0][row].reshape(-1), reading[1][row, position].reshape(-1)
    order = [int(i) for i in np.argsort(-weights, kind="stable") if rows[i] >= 0 and weights[i] > 0]
    places = found_rows(rows[order].tolist(), [memory.capacity for memory in memories])
    found = [memories[number].passage(at) for number, at in places]
    return [(one.text, one.entity, float(weights[i])) for one, i in zip(found, order, strict=True)]


def exchange_values(plugin: PlugLM, seed: int) -> None:
    """The control of a memory: what is found stays, and every passage that counts says what another says."""
    places = np.flatnonzero(np.asarray(plugin.alive[...]))
    others = places[derangement(np.arange(len(places)), seed)]
    plugin.values[...] = plugin.values[...].at[places].set(plugin.values[...][others])


def retrieved(
    host: HostModel, plugin: PlugLM, feed: Feed, batch_size: int, own: Sequence[Collection[int]]
) -> dict[str, float]:
    """How often the first, and any, of the passages that the last memory layer found is one of an example's own.

    Args:
      host: what the plugin is plugged into.
      plugin: with its memory.
      feed: the examples.
      batch_size: examples at a time.
      own: for each example the rows of the memory that are about what it is about.
    """
    read, first, anywhere = make_readings(host, plugin), 0, 0
    for batch in feed.evaluation(batch_size):
        rows = read(batch)[plugin.config.layers[-1]][0]
        real = batch["weights"].reshape(len(rows), -1).max(1) > 0
        for index, found in zip(
            batch["index"][real].tolist(), rows[real].reshape(real.sum(), -1).tolist(), strict=True
        ):
            first += found[0] in own[index]
            anywhere += any(row in own[index] for row in found)
    return {"retrieved_first": first / len(own), "retrieved": anywhere / len(own)}

"""PlugLM: a differentiable plug-in memory at the feed-forward.

Cheng et al., "Language Model with Plug-in Knowledge Memory" (github.com/Hannibal046/PlugLM). A passage becomes, through
the host's own embedding layer and an attentive pool, one key [128] and one value [D]. In a memory layer a query, pooled
from the sequence, finds the k keys with the largest inner product, and every token attends to the k values:

    softmax(Q K^T / sqrt(dh) + beta_h cos(q, key_j)) V,   Q of the token, K and V of the values, beta_h from 1.

Seam: feed-forward of the layers named. `mode="replace"` is the paper's layer, LN(x + smallFFN(x) + memory), for
pretraining. `mode="gated"` is a port to a frozen host: the host's feed-forward stays and gate * memory is added, the
gate zero at first, so that a fresh plugin is the host bit for bit; so is one with an empty memory.

The memory is a table, not a parameter: facts are edited without training. While the plugin is trained, `live`, the keys
that are searched are as old as the last refresh, and the passages found are encoded again with gradient.

Where it differs from the release: the softmax of the pool is stabilised and masked; the query's BatchNorm, which makes
an answer depend on what else is in the batch, is a LayerNorm; a packed row has one query a segment. `query="mention"`
pools over the mention asked about, and `query_from="embeddings"` reads the embedding layer, where names are spelt out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from kinject.errors import InputError
from kinject.memory.search import sharded_top_k, top_k
from kinject.models.kernels.elementwise import ACTIVATIONS
from kinject.models.seams import Plugin, Table, check_rows
from kinject.plugins.base import register

if TYPE_CHECKING:
    from kinject.models.seams import HostEmbeddings, HostEncoder

HOST = "host_embeddings"  # where `before` puts the host's embedding layer
REFRESHED_AT_A_TIME = 1024  # passages
LOWEST = jnp.finfo(jnp.float32).min


class Found(NamedTuple):
    """What one query a group found: G groups a row, k passages each.

    Attributes:
      rows: int32 [B, G, k], rows of the memory; -1 where there is none.
      keys: [B, G, k, d].
      values: [B, G, k, D].
    """

    rows: jax.Array
    keys: jax.Array
    values: jax.Array


class AttentivePool(nnx.Module):
    """p = sum_i alpha_i x_i with alpha ~ exp(w . tanh(U x_i)) over the positions that a mask names."""

    def __init__(self, size: int, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(size, size, rngs=rngs)
        self.score = nnx.Linear(size, 1, use_bias=False, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, states: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, L, D] and bool [B, G, L] -> [B, G, D]; zeros for a group without any position."""
        scores = self.score(jnp.tanh(self.hidden(states)))[..., 0].astype(jnp.float32)
        weights = masked_softmax(scores[:, None], mask)
        return jnp.einsum("bgl,bld->bgd", weights.astype(states.dtype), states)


def masked_softmax(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax over the last axis of what the mask keeps, in float32; zeros where it keeps nothing."""
    weights = jax.nn.softmax(jnp.where(mask, scores, LOWEST), axis=-1)
    return jnp.where(mask, weights, 0.0)


class Reader(nnx.Module):
    """One memory layer: makes the query, and fuses what it found into the tokens."""

    def __init__(self, config: Any, size: int, rngs: nnx.Rngs):
        heads = (config.heads, size // config.heads)
        self.pool = AttentivePool(size, rngs) if config.query != "token" else None
        self.query = nnx.Linear(size, config.key_size, rngs=rngs)
        self.query_norm = nnx.LayerNorm(config.key_size, rngs=rngs)
        self.attend = nnx.LinearGeneral(size, heads, rngs=rngs)
        self.key = nnx.LinearGeneral(size, heads, rngs=rngs)
        self.value = nnx.LinearGeneral(size, heads, rngs=rngs)
        self.output = nnx.LinearGeneral(heads, size, axis=(-2, -1), rngs=rngs)
        self.beta = nnx.Param(jnp.full((config.heads,), config.beta))
        if config.mode == "gated":
            self.gate = nnx.Param(jnp.zeros((size,)))
        else:
            self.up = nnx.Linear(size, size, rngs=rngs)
            self.down = nnx.Linear(size, size, rngs=rngs)

    def queries(self, states: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, L, D] and the groups' positions bool [B, G, L] -> queries [B, G, d]."""
        pooled = states if self.pool is None else self.pool(states, mask)
        return self.query_norm(self.query(pooled))

    def fuse(
        self, hidden: jax.Array, queries: jax.Array, found: Found, group: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Lets every token attend to what its group found.

        Args:
          hidden: [B, L, D] after the attention's LayerNorm.
          queries: [B, G, d].
          found: what they found.
          group: int32 [B, L]: whose passages a token reads, -1 = none.

        Returns:
          (memory [B, L, D], zeros where nothing was found; weights float32 [B, H, L, G * k]).
        """
        rows, size = hidden.shape[0], hidden.shape[-1]
        values = found.values.reshape(rows, -1, size)  # [B, G * k, D]
        scale = self.attend.out_features[-1] ** -0.5
        scores = jnp.einsum(
            "blhd,bjhd->bhlj", self.attend(hidden), self.key(values), preferred_element_type=jnp.float32
        )
        near = cosine(queries[:, :, None], found.keys).reshape(rows, 1, 1, -1)
        scores = scores * scale + self.beta[...][:, None, None] * near
        own = group[:, :, None, None] == jnp.arange(found.rows.shape[1])[:, None]  # [B, L, G, 1]
        mask = (own & (found.rows >= 0)[:, None]).reshape(rows, 1, hidden.shape[1], -1)
        weights = masked_softmax(scores, mask)
        context = jnp.einsum("bhlj,bjhd->blhd", weights.astype(hidden.dtype), self.value(values))
        return self.output(context) * mask.any(-1)[:, 0, :, None], weights

    def close(self, hidden: jax.Array, output: jax.Array, memory: jax.Array) -> jax.Array:
        """What the layer's feed-forward yields with the memory, [B, L, D]."""
        if hasattr(self, "gate"):
            return output + self.gate[...] * memory
        return self.down(ACTIVATIONS["gelu"](self.up(hidden))) + memory


def cosine(one: jax.Array, other: jax.Array) -> jax.Array:
    """Cosine over the last axis, float32; 0 where either is a zero vector."""
    one, other = one.astype(jnp.float32), other.astype(jnp.float32)
    lengths = jnp.sum(one * one, -1) * jnp.sum(other * other, -1)
    return jnp.sum(one * other, -1) * jax.lax.rsqrt(jnp.maximum(lengths, 1e-12))


@register("pluglm")
class PlugLM(Plugin):
    """PlugLM: a memory of passages; the passage encoder, and a reader for each memory layer.

    Attributes:
      live: whether the passages found are encoded anew, with gradient, from their tokens; else stored ones are read.
      refresh_every: steps from one refresh of the tables to the next while it is trained; 0 = never.
    """

    @dataclass(frozen=True)
    class Config:
        """Shape of the memory and of its layers.

        Attributes:
          layers: which of the host's layers (from 0) read the memory.
          mode: "gated" adds to the host's feed-forward, "replace" stands in for it.
          heads: of the fusion; must divide D.
          key_size: d.
          top_k: passages a query.
          query: "sequence" pools over a segment (the paper), "mention" over `mention_spans` of the batch (over the
            segment where a row has none), "token" has one query a position.
          query_from: "hidden" is the layer's attention output (the paper), "embeddings" the host's embedding layer.
          beta: what beta_h starts from: 1 in the paper, whose training is long.
          segments: the most segments that a row of a batch packs; tokens beyond read nothing. Queries over segments
            cost one search each.
        """

        layers: tuple[int, ...] = (11,)
        mode: Literal["gated", "replace"] = "gated"
        heads: int = 12
        key_size: int = 128
        top_k: int = 5
        query: Literal["sequence", "mention", "token"] = "sequence"
        query_from: Literal["hidden", "embeddings"] = "hidden"
        beta: float = 1.0
        segments: int = 1

    config: Config

    def __init__(self, config: Any = None, *, hidden_size: int, knowledge_dim: int = 0, rngs: nnx.Rngs | None = None):
        super().__init__(config, hidden_size=hidden_size, knowledge_dim=knowledge_dim)
        check_config(self.config, hidden_size)
        rngs, size = rngs or nnx.Rngs(0), self.config.key_size
        self.pool = AttentivePool(hidden_size, rngs)
        self.to_key = nnx.Linear(hidden_size, size, rngs=rngs)
        self.to_value = nnx.Linear(hidden_size, hidden_size, rngs=rngs)
        self.readers = nnx.List([Reader(self.config, hidden_size, rngs) for _ in self.config.layers])
        if self.config.query_from == "embeddings":
            for reader in self.readers:  # query and key see the same space: names that are alike find each other
                reader.query.kernel[...] = self.to_key.kernel[...]
        self.live, self.refresh_every = False, 0
        self.mesh: tuple[Mesh, str] | None = None
        self.lookup: Any = None
        self.set_tables()

    def set_tables(
        self,
        keys: Any = None,
        values: Any = None,
        alive: Any = None,
        tokens: Any = None,
        *,
        mesh: tuple[Mesh, str] | None = None,
    ) -> None:
        """Puts a memory in: arrays of N rows, on the devices as they are.

        Args:
          keys: [N, d]; None = an empty memory.
          values: [N, D].
          alive: bool [N]: rows that count.
          tokens: int32 [N, T], the passages' ids, -1 beyond their end; only a live plugin needs them.
          mesh: (mesh, axis) over which the rows of keys and alive are split; values may be split or not.
        """
        if keys is None:
            keys, values = jnp.zeros((1, self.config.key_size)), jnp.zeros((1, self.hidden_size))
            alive = jnp.zeros((1,), bool)
        check_rows({"keys": keys, "alive": alive}, f"the memory of plugin {self.name}")
        self.keys, self.values, self.alive = Table(keys), Table(values), Table(alive)
        self.tokens = Table(jnp.zeros((0, 0), jnp.int32) if tokens is None else tokens)
        self.mesh = mesh

    def first_seam(self) -> int:
        return min(self.config.layers) + 1

    def before(self, encoder: HostEncoder, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Gives the seams the host's embedding layer: passages are read with it, and queries may be.

        Raises:
          InputError: the host has fewer layers than the method names.
        """
        if max(self.config.layers) >= len(encoder.layers):
            problem = f"layer {max(self.config.layers)} of a host with {len(encoder.layers)}"
            raise InputError("method.layers", problem, "layers count from 0")
        return {**batch, HOST: encoder.embeddings}

    def feed_forward(
        self, layer: int, hidden: jax.Array, output: jax.Array, batch: Mapping[str, Any], key: jax.Array | None = None
    ) -> jax.Array:
        del key
        if layer not in self.config.layers:
            return output
        reader = self.readers[self.config.layers.index(layer)]
        memory, _, _ = self.read(layer, hidden, batch)
        return reader.close(hidden, output, memory)

    def read(self, layer: int, hidden: jax.Array, batch: Mapping[str, Any]) -> tuple[jax.Array, Found, jax.Array]:
        """(memory [B, L, D], what was found, weights float32 [B, H, L, G * k]) of a memory layer."""
        reader = self.readers[self.config.layers.index(layer)]
        states = hidden
        if self.config.query_from == "embeddings":
            host = batch[HOST]
            states = host(host.words(batch["token_ids"]), batch["position_ids"], batch["type_ids"], None)
        mask, group = self.groups(batch)
        queries = reader.queries(states, mask)
        found = self.find(queries, batch)
        memory, weights = reader.fuse(hidden, queries, found, group)
        return memory, found, weights

    def groups(self, batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
        """(bool [B, G, L]: which positions a query is pooled from, int32 [B, L]: whose passages a token reads)."""
        segments = batch["segment_ids"]
        if self.config.query == "token":
            places = jnp.arange(segments.shape[1])
            own = jnp.broadcast_to(jnp.eye(len(places), dtype=bool), (len(segments), len(places), len(places)))
            return own, jnp.where(segments > 0, places, -1)
        group = jnp.where(segments > self.config.segments, 0, segments) - 1
        mask = group[:, None, :] == jnp.arange(self.config.segments)[:, None]
        if self.config.query == "mention" and "mention_spans" in batch:
            places, spans = jnp.arange(segments.shape[1]), batch["mention_spans"]
            inside = (places >= spans[:, :1]) & (places < spans[:, 1:])
            mask = jnp.where(inside.any(-1)[:, None, None], inside[:, None], mask)
        return mask, group

    def find(self, queries: jax.Array, batch: Mapping[str, Any]) -> Found:
        """Searches the memory: queries [B, G, d] -> `Found`."""
        k, shape = self.config.top_k, queries.shape[:2]
        flat = jax.lax.stop_gradient(queries.astype(jnp.float32)).reshape(-1, queries.shape[-1])
        if self.lookup is not None:
            rows, keys, values = self.lookup(flat, k)
            rows, keys, values = (part.reshape(*shape, *part.shape[1:]) for part in (rows, keys, values))
            return Found(rows, keys.astype(queries.dtype), values.astype(queries.dtype))
        if self.mesh is None:
            _, rows = top_k(flat, self.keys[...], self.alive[...], k)
        else:
            _, rows = sharded_top_k(flat, self.keys[...], self.alive[...], k, *self.mesh)
        rows = rows.reshape(*shape, k)
        at = jnp.maximum(rows, 0)
        if self.live:
            keys, values = self.encode(batch[HOST], self.tokens[...][at].reshape(-1, self.tokens.shape[-1]))
            return Found(rows, keys.reshape(*at.shape, -1), values.reshape(*at.shape, -1))
        keys, values = self.keys[...][at], self.values[...][at]
        return Found(rows, keys.astype(queries.dtype), values.astype(queries.dtype))

    def encode(self, host: HostEmbeddings, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Passages' ids int32 [n, T], -1 beyond their end -> (keys [n, d], values [n, D])."""
        real = tokens >= 0
        places = jnp.where(real, jnp.arange(tokens.shape[1]), 0)
        states = host(host.words(jnp.where(real, tokens, 0)), places, jnp.zeros_like(tokens), None)
        pooled = self.pool(states, real[:, None])[:, 0]
        return self.to_key(pooled), self.to_value(pooled)

    def refresh(self, encoder: HostEncoder) -> dict[str, jax.Array]:
        """Keys [N, d] and values [N, D] of all passages by the parameters as they are now."""
        count, block = self.tokens.shape[0], REFRESHED_AT_A_TIME
        padded = jnp.pad(self.tokens[...], ((0, -count % block), (0, 0)), constant_values=-1)
        blocks = padded.reshape(-1, block, padded.shape[1])
        keys, values = jax.lax.map(lambda tokens: self.encode(encoder.embeddings, tokens), blocks)
        fresh = {"keys": keys, "values": values}
        return {
            name: new.reshape(-1, new.shape[-1])[:count].astype(getattr(self, name).dtype)
            for name, new in fresh.items()
        }


def check_config(config: Any, hidden_size: int) -> None:
    """Raises InputError for a configuration that cannot be built."""
    if not config.layers or min(config.layers) < 0 or list(config.layers) != sorted(set(config.layers)):
        raise InputError("method.layers", f"{config.layers} are no layers", "name each once, in rising order, from 0")
    if config.heads < 1 or hidden_size % config.heads:
        raise InputError("method.heads", f"{config.heads} does not divide the host's size {hidden_size}")
    for name in ("key_size", "top_k", "segments"):
        if getattr(config, name) < 1:
            raise InputError(f"method.{name}", f"it is {getattr(config, name)}", "give 1 or more")
    if config.query == "mention" and config.segments > 1:
        raise InputError("method.segments", "a row has one mention_spans, so one segment", "use query='sequence'")


def found_rows(found: Sequence[int], sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Rows of concatenated memories -> (which memory, its row); -1 are left out."""
    pairs = []
    for row in found:
        for number, size in enumerate(sizes):
            if 0 <= row < size:
                pairs.append((number, int(row)))
                break
            row -= size
    return pairs

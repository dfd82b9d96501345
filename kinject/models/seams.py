"""The three seams of the encoder that a knowledge plugin may touch, each the identity, and what arrays must be there.

What a seam returns and what a batch holds is asserted with chex while a program is traced, at no cost to a step. A
failed assertion is a fault of a method's or a task's code, not of a user's input: it names the seam, the method, and
both shapes.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Required, TypedDict

import jax
from flax import nnx

from kinject.errors import InputError
from kinject.models.config import EncoderConfig

if TYPE_CHECKING:
    from kinject.data.passage import SlotForm
    from kinject.data.pipeline import Examples
    from kinject.data.records import Record
    from kinject.data.tokenizer import HostTokenizer
    from kinject.knowledge.base import KnowledgeBase


class PluginSizes(TypedDict, total=False):
    """What a plugin is built for, see `Plugin`."""

    hidden_size: Required[int]
    knowledge_dim: int
    embedding_size: int | None


SEAMS = ("before", "embed", "feed_forward", "outputs", "prepare")  # where a method may read or change something
BEYOND_THE_LAST_LAYER = sys.maxsize  # first_seam() of a plugin that changes no hidden state of the encoder


class HostEmbeddings(Protocol):
    """What a plugin may read of a host's embedding layer."""

    def words(self, token_ids: jax.Array) -> jax.Array:
        """Word embeddings [B, L, E] of token ids [B, L]."""

    def __call__(
        self, words: jax.Array, position_ids: jax.Array, type_ids: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        """Makes hidden state 0, [B, L, D], of word embeddings [B, L, E]: adds positions and types, norms, and drops."""


class HostEncoder(Protocol):
    """What a plugin may read of a host's encoder: `kinject.models.Encoder` is one."""

    @property
    def embeddings(self) -> HostEmbeddings:
        """Its embedding layer."""

    @property
    def layers(self) -> Sized:
        """Its layers."""


class FrozenModel(Protocol):
    """What a plugin may read of a loaded host: `kinject.models.LoadedHost` is one."""

    @property
    def config(self) -> EncoderConfig:
        """The encoder's shape."""


class FrozenHost(Protocol):
    """What `Plugin.prepare` may read of the host: `kinject.inference.HostBundle` is one."""

    @property
    def loaded(self) -> FrozenModel:
        """The model as it was loaded, with its configuration."""

    @property
    def tokenizer(self) -> HostTokenizer:
        """How the host cuts texts."""


class Table(nnx.Variable):
    """An array that a plugin reads and that is none of its parameters: a memory, a table of vectors.

    It travels as an argument of the compiled step, so that swapping it for one of the same shape compiles nothing. It
    is frozen whatever the rules of a training say, keeps its dtype, and is never saved in the plugin's folder.
    """


class Plugin(nnx.Module):
    """The identity at all three seams of the encoder; a method overrides those it uses.

    A subclass states its hyperparameters as a frozen dataclass `Config` and is constructed as
    `cls(config, hidden_size=…, knowledge_dim=…, rngs=…)`. Its seams are pure functions of their arguments and of its
    parameters, so that a swapped domain is a swap of arrays. `batch` is the flat dict of docs/architecture.md; `key`
    is a dropout key, or None when nothing is dropped.

    Attributes:
      name: what it is registered as.
      reads_sequence: whether a seam of the last layer needs every position of a row. The encoder then computes the
        last layer everywhere, and gathers afterwards. Where a subclass does not say, it is True exactly when it
        overrides `feed_forward` or `outputs`.
      reads_slots: whether entities with a vector get a slot in its examples. Where a subclass does not say, it is True
        exactly when it overrides `embed`.
      maps_entities: whether all that it does is to put at each slot what depends on that entity's vector alone, so that
        it may be asked once an entity. A subclass that overrides a seam says so itself.
      slot_form: where the slots of its examples stand, see `kinject.data.passage.SlotForm`.
      refresh_every: training steps from one `refresh` to the next; 0 = its tables depend on nothing that is trained.
    """

    @dataclasses.dataclass(frozen=True)
    class Config:
        """Hyperparameters; JSON-like values only, as they are written beside the weights."""

    name: ClassVar[str] = "identity"
    reads_sequence: ClassVar[bool] = False
    reads_slots: ClassVar[bool] = False
    maps_entities: bool = False
    slot_form: SlotForm = "before"
    refresh_every: int = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "reads_sequence" not in vars(cls):
            cls.reads_sequence = _overrides(cls, "feed_forward") or _overrides(cls, "outputs")
        if "reads_slots" not in vars(cls):
            cls.reads_slots = _overrides(cls, "embed")
        if "maps_entities" not in vars(cls) and not {*SEAMS}.isdisjoint(vars(cls)):
            cls.maps_entities = False

    def __init__(
        self,
        config: Any = None,
        *,
        hidden_size: int,
        knowledge_dim: int = 0,
        rngs: nnx.Rngs | None = None,
        embedding_size: int | None = None,
    ):
        """Remembers what every plugin is built from.

        Args:
          config: an instance of `cls.Config`; None takes its defaults.
          hidden_size: D of the host.
          knowledge_dim: k, size of an entity vector; 0 where the method reads none.
          rngs: where fresh parameters come from.
          embedding_size: E of the host's word embeddings, which `embed` gets; None = D, as in all families
            but ELECTRA and DeBERTa v2, where these are narrower at times.
            A method that overrides `embed` and does not take it is refused for hosts where E is not D.
        """
        del rngs
        self.config: Any = type(self).Config() if config is None else config
        self.hidden_size = hidden_size
        self.knowledge_dim = knowledge_dim
        self.embedding_size = hidden_size if embedding_size is None else embedding_size

    @classmethod
    def reads_examples(cls) -> bool:
        """Whether what it reads differs by example, so that giving an example another's knowledge is a control."""
        return cls.reads_slots or _overrides(cls, "prepare")

    def prepare(
        self, examples: Examples, records: Sequence[Record], host: FrozenHost, knowledge: KnowledgeBase | None
    ) -> Examples:
        """Gives each example what the method reads of it beyond slots: arrays that then are in every batch.

        Called once a data set, before training and before evaluation; large arrays belong into `Examples.complete`.

        Args:
          examples: as the task made them.
          records: for each example the record whose knowledge it gets: its own, or a donor's in the shuffled control.
          host: the frozen host, with its tokenizer.
          knowledge: the knowledge base; None where the stage names none.

        Raises:
          InputError: a record or a host that the method cannot serve.
        """
        del records, host, knowledge
        return examples

    def before(self, encoder: HostEncoder, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the seams read as `batch`: called once a forward pass, ahead of all of them, with the host's encoder.

        A method that reads the host's own embedding layer puts it, or what it computes with it, into the batch here.
        """
        del encoder
        return batch

    @classmethod
    def from_parts(
        cls, config: Any, parts: Mapping[str, Plugin], *, hidden_size: int, knowledge_dim: int = 0, rngs: nnx.Rngs
    ) -> Plugin:
        """Makes one out of other plugins, by name, whose arrays it takes over.

        Args:
          config: an instance of `cls.Config`, as far as it is known without the parts.
          parts: what it is made of.
          hidden_size: D of the host.
          knowledge_dim: k.
          rngs: for the parameters beyond the parts'.

        Raises:
          InputError: the method is not made of others, as most are not, or not of these.
        """
        del config, hidden_size, knowledge_dim, rngs
        raise InputError("parts", f"{cls.name} is not made of other plugins: {', '.join(parts)}", "leave parts out")

    def refresh(self, encoder: HostEncoder) -> dict[str, jax.Array]:
        """Tables that follow what is trained, made anew: {path: [N, …]}. Called every `refresh_every` steps."""
        del encoder
        return {}

    def embed(self, embeddings: jax.Array, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """Changes the word embeddings [B, L, E], before the rest of the embedding layer: position, type, LayerNorm.

        E is `embedding_size`, which is the hidden size D in all families but ELECTRA and DeBERTa v2. A family without
        positions or types there, such as ModernBERT, only norms what comes out.
        """
        del batch, key
        return embeddings

    def feed_forward(
        self, layer: int, hidden: jax.Array, output: jax.Array, batch: Mapping[str, Any], key: jax.Array | None = None
    ) -> jax.Array:
        """Changes what the feed-forward of `layer` (from 0) yields, before dropout and what is added to the stream.

        Args:
          layer: which one; the same Python integer in every trace.
          hidden: [B, L, D] what the feed-forward read: after the attention's LayerNorm; in a family that norms what a
            sublayer reads (ModernBERT), after the feed-forward's own.
          output: [B, L, D] what it yields. With `reads_sequence = False` the last layer may have [B, P, D] in both.
          batch: the batch.
          key: dropout key or None.
        """
        del layer, hidden, batch, key
        return output

    def outputs(
        self, hidden_states: Sequence[jax.Array], batch: Mapping[str, jax.Array], key: jax.Array | None = None
    ) -> jax.Array:
        """Yields what the head reads, [B, L, D], from all hidden states (0 = embeddings, i + 1 = layer i).

        Where a LayerNorm follows the last layer (ModernBERT), the last hidden state is what that yields.
        """
        del batch, key
        return hidden_states[-1]

    def reads_states(self, layers: int) -> tuple[int, ...]:
        """Which hidden states below the last `outputs` reads, ascending, in a host of so many layers.

        Where the host is frozen they are computed once an example and kept; in the place of others `outputs` then finds
        None. The default is all of them for a method that overrides `outputs`, and none for any other.
        """
        return tuple(range(layers)) if _overrides(type(self), "outputs") else ()

    def first_seam(self) -> int:
        """Lowest hidden state index that the plugin can change: those below may be computed once and kept.

        0 = embeddings, i + 1 = feed-forward of layer i, `BEYOND_THE_LAST_LAYER` = none of them. A subclass whose
        configuration names the layers it serves overrides this; the default is what its overridden seams allow.
        """
        if _overrides(type(self), "embed"):
            return 0
        return 1 if _overrides(type(self), "feed_forward") else BEYOND_THE_LAST_LAYER


class DelegatingPlugin(Plugin if TYPE_CHECKING else object):  # type: ignore[misc]  # checked as the plugin it wraps
    """Stands in for a plugin in a forward pass: every seam and attribute is the plugin's, but for what is overridden.

    It is no `Plugin` itself, whose own seams would be found first, as the identity.
    """

    def __init__(self, plugin: Plugin):
        self.plugin = plugin

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plugin, name)


def table_paths(state: nnx.State) -> frozenset[str]:
    """The paths of the tables in a plugin's state, as `kinject.tree.flatten` writes them: no parameters."""
    return frozenset("/".join(map(str, path)) for path, leaf in nnx.to_flat_state(state) if isinstance(leaf, Table))


def _overrides(cls: type[Plugin], seam: str) -> bool:
    return getattr(cls, seam) is not getattr(Plugin, seam)


TOKENS = ("token_ids", "segment_ids", "position_ids", "type_ids", "entity_slot")


def check_seam(new: Any, old: jax.Array, plugin: Plugin, seam: str) -> jax.Array:
    """What a plugin's seam returned for `old` [B, L, D], brought to its dtype.

    Raises:
      AssertionError: it is no array of floating point numbers in the shape of `old`.
    """
    import chex  # not with the module: it looks for a folder of temporary files as it is imported

    told = f"plugin {plugin.name}: {seam} must return floating point numbers in the shape that it got, {old.shape}"
    chex.assert_shape(new, old.shape, custom_message=told)
    chex.assert_type(new, float, custom_message=told)
    return new.astype(old.dtype)


def check_batch(batch: Mapping[str, Any], hidden_size: int, plugin: Plugin | None) -> None:
    """Holds a batch to docs/architecture.md: whole numbers [B, L], entities [B, M], kept hidden states [B, L, D].

    Args:
      batch: as the encoder is about to read it, after the plugin's `before`.
      hidden_size: D.
      plugin: who may have changed it, for the message and for the size of its vectors.

    Raises:
      AssertionError: an array has another shape or kind of numbers.
    """
    import chex

    whose = "the batch" if plugin is None else f"the batch that plugin {plugin.name} got, or that its `before` returned"
    tokens = {name: batch[name] for name in TOKENS if name in batch}
    told = f"{whose}: {', '.join(tokens)} must be whole numbers [B, L]"
    chex.assert_type(list(tokens.values()), int, custom_message=told)
    chex.assert_equal_shape(list(tokens.values()), custom_message=told)
    rows, length = batch["segment_ids"].shape
    if "entity_ids" in batch:
        chex.assert_shape(batch["entity_ids"], (rows, None), custom_message=f"{whose}: entity_ids must be [B, M]")
    if "entity_vectors" in batch:
        size = plugin.knowledge_dim if plugin is not None and plugin.reads_slots and plugin.knowledge_dim else None
        told = f"{whose}: entity_vectors must be floating point numbers [B, M, k], k {size or 'any'}"
        chex.assert_shape(batch["entity_vectors"], (rows, None, size), custom_message=told)
        chex.assert_type(batch["entity_vectors"], float, custom_message=told)
    kept = [name for name in batch if name in ("prefix", "prefix_inner") or name.startswith("state_")]
    for name in kept:
        told = f"{whose}: {name} must be a hidden state [B, L, D]"
        chex.assert_shape(batch[name], (rows, length, hidden_size), custom_message=told)


def check_rows(tables: Mapping[str, Any], owner: str) -> None:
    """Holds tables to each other: each [N, …] with the same N.

    Args:
      tables: by name.
      owner: whose they are, for the message.

    Raises:
      AssertionError: one has another number of rows.
    """
    import chex

    told = f"{owner}: tables {', '.join(tables)} must have a row each for the same things"
    chex.assert_equal_shape_prefix(list(tables.values()), 1, custom_message=told)

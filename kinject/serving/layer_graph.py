"""The layers of a host as a graph of ONNX Runtime: BERT's, as most families have them.

Nodes are ONNX Runtime's own fused ones (`com.microsoft`), which its optimizer would look for in a graph of single
operations: attention with its projection, a LayerNorm with what is added before it, GELU with its bias. The last layer
is computed only where the head reads, and the head itself where it is a classifier's. Weights are constants, so that
the runtime packs them once; what a plugin changes comes in as hidden state 0, or a single text as ids and slots. In
int8 a matrix has a scale an output channel, and activations get one a product (dynamic).
"""

from __future__ import annotations

from inspect import getattr_static
from typing import Any

import jax
import numpy as np
from flax import nnx

from kinject.errors import InputError
from kinject.models.encoder import Encoder
from kinject.models.heads import Head, PooledHead
from kinject.models.layers import Attention, Dense, Embeddings, FeedForward

FUSED = "com.microsoft"
OPSETS, IR = {"": 18, FUSED: 1}, 10  # what the nodes below are of; a runtime reads all older ones
GELU = {"gelu": "BiasGelu", "gelu_new": "FastGelu", "gelu_fast": "FastGelu", "gelu_pytorch_tanh": "FastGelu"}
SCORES = ("logits", "probabilities")
IDS = ("token_ids", "type_ids", "position_ids")
EMBEDS = ("__call__", "words", "_placed", "_rows")  # what makes hidden state 0
HEAD = {"tanh": ("Tanh", ""), "relu": ("Relu", ""), "gelu": ("Gelu", FUSED)}
UNSEEN = -1e9  # added to scores between segments: their probability is 0 in float32, as the lowest number's is


def check_layers(encoder: Encoder, where: object) -> None:
    """Raises InputError for layers that the graph does not compute: a family's own, or what tuning added to them."""
    mend = 'take engine "jax"'
    for layer in encoder.layers:
        attention, feed_forward = layer.attention, layer.feed_forward
        plain = _computes_as(attention, Attention) and _computes_as(feed_forward, FeedForward)
        if not plain or encoder.relative is not None or encoder.norm is not None:
            raise InputError(
                where, f"ONNX Runtime runs layers as BERT has them, not {encoder.config.model_type}'s", mend
            )
        dense: tuple[Any, ...] = (attention.qkv, attention.output, feed_forward.up, feed_forward.down)
        added = attention.adapter is not None or feed_forward.adapter is not None
        if added or any(one.lora is not None for one in dense):
            raise InputError(where, "its layers have adapters beside their kernels", mend)
        if feed_forward.activation not in (*GELU, "relu"):
            raise InputError(where, f"there is no {feed_forward.activation} in the exported graph", mend)


def scores_classes(head: Head | None) -> bool:
    """Whether the graph computes this head: a classifier's, of what stands at the positions."""
    return (
        type(head) is PooledHead
        and head.pooling != "mean"
        and head.norm is None
        and (head.pooler is None or head.activation in HEAD)
    )


def embeds_words(encoder: Encoder) -> bool:
    """Whether the graph computes an encoder's embeddings: BERT's, as wide as its layers."""
    made = encoder.embeddings
    plain = all(getattr_static(type(made), one, None) is getattr_static(Embeddings, one) for one in EMBEDS)
    return plain and made.word.features == encoder.config.hidden_size


def _computes_as(half: Any, plain: type) -> bool:
    """Whether half a layer computes what BERT's does: a family may give it another dropout, and nothing else."""
    names = ("__call__", "scores", "narrowed", "inner", "close", "enter", "leave", "widening")
    return all(getattr_static(type(half), one, None) is getattr_static(plain, one, None) for one in names)


class LayerGraph:
    """Writes the graph.

    Inputs `hidden` float32 [B, L, D], `segments` int32 [B, L], `positions` int64 [B, P]; output `last` float32
    [B, P, D], what the last layer yields there, and where a head is given `logits` and `probabilities` float32
    [B, P, C]. With `embeds` also `words` float32 [V, D] and `token_ids`, `type_ids`, `position_ids` int32 [B, L], which
    hidden state 0 is made of unless they are empty; otherwise `hidden` is. `slots` float32 [n, D] then stand in the
    place of words at `slot_cells` int64 [n, 2], row and position. The table of words comes in so that memory holds it
    once.

    Args:
      encoder: whose layers `check_layers` lets pass.
      head: one that `scores_classes`, in float32 whatever the layers are in; None = the graph ends before it.
      embeds: whether it can begin at the ids; `embeds_words` says of which encoders.
      int8: whether matrices are int8, and products with them int8 x int8.
    """

    def __init__(self, encoder: Encoder, head: PooledHead | None = None, *, embeds: bool = False, int8: bool = False):
        from onnx import TensorProto, helper, numpy_helper

        self._onnx, self._types, self._store = helper, TensorProto, numpy_helper.from_array
        self.encoder, self.head, self.embeds, self.int8 = encoder, head, embeds, int8
        self.size, self.heads = encoder.config.hidden_size, encoder.config.num_attention_heads
        self.epsilon = encoder.config.layer_norm_eps
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def model(self) -> bytes:
        """The graph with its weights, as a file of ONNX holds it."""
        self._masks()
        hidden, last = self._begin() if self.embeds else "hidden", len(self.encoder.layers) - 1
        for i, layer in enumerate(self.encoder.layers):
            hidden = self._layer(f"{i}/", layer, hidden, i == last)
        self._node("Identity", [hidden], ["last"])
        value, types = self._onnx.make_tensor_value_info, self._types
        inputs = [
            value("hidden", types.FLOAT, ["given", "states", self.size]),
            value("segments", types.INT32, ["B", "L"]),
            value("positions", types.INT64, ["B", "P"]),
        ]
        if self.embeds:
            inputs += [value(name, types.INT32, ["bare", "ids"]) for name in IDS]
            inputs.append(value("words", types.FLOAT, ["V", self.size]))
            inputs.append(value("slots", types.FLOAT, ["n", self.size]))
            inputs.append(value("slot_cells", types.INT64, ["n", 2]))
        outputs = [value("last", types.FLOAT, ["B", "P", self.size])]
        if self.head is not None:
            self._scores(self.head)
            outputs += [value(name, types.FLOAT, ["B", "P", self.head.num_labels]) for name in SCORES]
        graph = self._onnx.make_graph(self._nodes, "layers", inputs, outputs, self._constants)
        opsets = [self._onnx.make_opsetid(domain, version) for domain, version in OPSETS.items()]
        return self._onnx.make_model(graph, opset_imports=opsets, ir_version=IR).SerializeToString()

    def _begin(self) -> str:
        """Hidden state 0: of the ids where there are any, else as it is given."""
        value, types = self._onnx.make_tensor_value_info, self._types
        self._node("Size", ["token_ids"], ["count"])
        self._node("Greater", ["count", self._constant("nothing", np.array(0, np.int64))], ["bare"])
        whole, self._nodes = self._nodes, []
        self._embeddings()
        ends = [[value(name, types.FLOAT, None)] for name in ("embedded", "given")]
        branches = [
            self._onnx.make_graph(self._nodes, "of_ids", [], ends[0]),
            self._onnx.make_graph([self._onnx.make_node("Identity", ["hidden"], ["given"])], "as_given", [], ends[1]),
        ]
        self._nodes = whole
        self._node("If", ["bare"], ["state0"], then_branch=branches[0], else_branch=branches[1])
        return "state0"

    def _embeddings(self) -> None:
        made = self.encoder.embeddings
        self._node("Gather", ["words", "token_ids"], ["words_of"])
        self._node("ScatterND", ["words_of", "slot_cells", "slots"], ["filled"])
        total = "filled"
        for name, part, start in (("type", made.type, 0), ("position", made.position, made.offset)):
            if part is None:
                continue
            table = self._constant(f"{name}_table", np.asarray(part.embedding[...], np.float32)[start:])
            if name == "type" and len(part.embedding[...]) == 1:  # RoBERTa's, whatever the text half counts
                self._node("Add", [total, table], [f"{name}_added"])
            else:
                self._node("Gather", [table, f"{name}_ids"], [f"{name}_of"])
                self._node("Add", [total, f"{name}_of"], [f"{name}_added"])
            total = f"{name}_added"
        scale = np.ones(self.size, np.float32) if made.norm.scale is None else _vector(made.norm.scale, self.size)
        names = [self._constant("norm_scale", scale), self._constant("norm_bias", _vector(made.norm.bias, self.size))]
        self._node("LayerNormalization", [total, *names], ["embedded"], epsilon=self.epsilon)

    def _scores(self, head: PooledHead) -> None:
        """The head, of what the last layer yields."""
        read = "last"
        if head.pooler is not None:
            self._linear("pooled", head.pooler, read)
            kind, domain = HEAD[head.activation]
            self._node(kind, ["pooled"], ["pooled_active"], domain)
            read = "pooled_active"
        self._linear("logits", head.output, read)
        self._node("Softmax", ["logits"], ["probabilities"], axis=-1)

    def _linear(self, made: str, linear: nnx.Linear, read: str) -> None:
        kernel = np.asarray(linear.kernel[...], np.float32)
        bias = self._constant(f"{made}_bias", _vector(linear.bias, kernel.shape[1]))
        self._node("MatMul", [read, self._constant(f"{made}_kernel", kernel)], [f"{made}_product"])
        self._node("Add", [f"{made}_product", bias], [made])

    def _masks(self) -> None:
        """Who may attend to whom: of all positions as 0 and 1, of those that are read as what is added to scores."""
        axis = self._constant("axis", np.array([1], np.int64))
        self._node("Unsqueeze", ["segments", axis], ["keys"])
        self._node("Unsqueeze", ["segments", self._constant("end", np.array([-1], np.int64))], ["queries"])
        self._node("Unsqueeze", ["positions", "end"], ["at"])
        self._node("Equal", ["queries", "keys"], ["same"])
        self._node("Greater", ["keys", self._constant("none", np.array(0, np.int32))], ["real"])
        self._node("And", ["same", "real"], ["seen"])
        self._node("Cast", ["seen"], ["mask"], to=self._types.INT32)
        zero, low = self._constant("zero", np.float32(0)), self._constant("low", np.float32(UNSEEN))
        self._node("Where", ["seen", zero, low], ["added"])
        self._node("GatherND", ["added", "at"], ["added_at"], batch_dims=1)
        self._node("Unsqueeze", ["added_at", axis], ["bias"])

    def _layer(self, name: str, layer: Any, hidden: str, read_only: bool) -> str:
        attention, feed_forward = layer.attention, layer.feed_forward
        kernel = np.asarray(attention.qkv.kernel[...], np.float32).reshape(self.size, -1)
        bias = self._constant(f"{name}qkv_bias", _vector(attention.qkv.bias, kernel.shape[1]))
        if read_only:
            self._product(hidden, kernel[:, self.size :], f"{name}kv")
            self._node("Split", [f"{name}kv"], [f"{name}k", f"{name}v"], axis=-1, num_outputs=2)
            self._node("GatherND", [hidden, "at"], [f"{name}here"], batch_dims=1)
            hidden = f"{name}here"
            self._product(hidden, kernel[:, : self.size], f"{name}q")
            given = [f"{name}q", f"{name}k", f"{name}v", bias, "", "bias"]
            self._node("MultiHeadAttention", given, [f"{name}context"], FUSED, num_heads=self.heads)
        else:
            self._attention(name, hidden, kernel, bias)
        self._dense(name, "out", attention.output, f"{name}context")
        middle = self._norm(f"{name}middle", attention, attention.output, hidden, f"{name}out")
        self._dense(name, "up", feed_forward.up, middle)
        self._activation(name, feed_forward)
        self._dense(name, "down", feed_forward.down, f"{name}active")
        return self._norm(f"{name}state", feed_forward, feed_forward.down, middle, f"{name}down")

    def _attention(self, name: str, hidden: str, kernel: np.ndarray, bias: str) -> None:
        made, heads = [f"{name}context"], {"num_heads": self.heads}
        if not self.int8:
            self._node("Attention", [hidden, self._constant(f"{name}qkv", kernel), bias, "mask"], made, FUSED, **heads)
            return
        values, scales = eighth(kernel)
        small, scale = self._constant(f"{name}qkv", values), self._constant(f"{name}qkv_scale", scales)
        parts = [f"{name}small", f"{name}small_scale", f"{name}small_zero"]
        self._node("DynamicQuantizeLinear", [hidden], parts)
        zero = self._constant(f"{name}qkv_zero", np.zeros(kernel.shape[1], np.int8))
        given = [parts[0], small, bias, parts[1], scale, "mask", parts[2], zero]
        self._node("QAttention", given, made, FUSED, **heads)

    def _dense(self, name: str, part: str, dense: Dense | Any, read: str) -> None:
        """The product of a dense layer; its bias comes with what follows."""
        kernel = np.asarray(dense.kernel[...], np.float32)
        self._product(read, kernel.reshape(-1, kernel.shape[-1]), f"{name}{part}")

    def _product(self, read: str, kernel: np.ndarray, made: str) -> None:
        if not self.int8:
            self._node("MatMul", [read, self._constant(f"{made}_kernel", kernel)], [made])
            return
        small, scale = eighth(kernel)
        given = [read, self._constant(f"{made}_kernel", small), self._constant(f"{made}_scale", scale)]
        self._node("DynamicQuantizeMatMul", given, [made], FUSED)

    def _activation(self, name: str, feed_forward: FeedForward) -> None:
        up, made = f"{name}up", [f"{name}active"]
        bias = self._constant(f"{up}_bias", _vector(feed_forward.up.bias, feed_forward.up.out_features))
        if feed_forward.activation in GELU:
            self._node(GELU[feed_forward.activation], [up, bias], made, FUSED)
            return
        self._node("Add", [up, bias], [f"{name}biased"])
        self._node("Relu", [f"{name}biased"], made)

    def _norm(self, made: str, half: Any, dense: Any, stream: str, read: str) -> str:
        """The LayerNorm of (what was read + the dense layer's bias + the stream)."""
        vectors = (half.norm.scale, half.norm.bias, dense.bias)
        names = (f"{made}_scale", f"{made}_shift", f"{made}_bias")
        given = [self._constant(name, _vector(one, self.size)) for name, one in zip(names, vectors, strict=True)]
        self._node("SkipLayerNormalization", [read, stream, *given], [made], FUSED, epsilon=self.epsilon)
        return made

    def _node(self, kind: str, inputs: list[str], outputs: list[str], domain: str = "", **options: Any) -> None:
        self._nodes.append(self._onnx.make_node(kind, inputs, outputs, domain=domain, **options))

    def _constant(self, name: str, values: Any) -> str:
        self._constants.append(self._store(np.ascontiguousarray(values).reshape(np.shape(values)), name))
        return name


def eighth(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A matrix [k, n] as (int8 [k, n], scales float32 [n]), symmetric, one scale an output channel."""
    scale = np.maximum(np.abs(kernel).max(0), np.finfo(np.float32).tiny) / 127
    return np.rint(kernel / scale).astype(np.int8), scale.astype(np.float32)


def _vector(param: Any, size: int) -> np.ndarray:
    """A bias or scale, flat, float32; zeros where a family has none."""
    if param is None:
        return np.zeros(size, np.float32)
    return np.asarray(jax.device_get(param[...]), np.float32).reshape(-1)

"""ONNX Runtime as somebody would serve a classifier with it: exported by torch, optimised for BERT, its best batch.

The graph is torch's export of transformers' model, fused by `onnxruntime.transformers` (attention, LayerNorm, GELU and
embeddings are nodes of its own); in int8 the same by `quantize_dynamic`, a scale an output channel. Texts are cut by
the `tokenizers` pipeline itself, sorted by length and answered in batches of the size that is fastest here.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

BATCHES = (8, 16, 32, 64)


def exported(folder: Path, hidden: int, heads: int) -> tuple[Path, Path]:
    """(the optimised float32 graph, the same in int8) of the host in `folder / "host"`."""
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers.optimizer import optimize_model
    from transformers import AutoModelForSequenceClassification

    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.ERROR)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "host", attn_implementation="eager").eval()
    ids = torch.ones((2, 9), dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    plain, fused, small = (folder / f"{name}.onnx" for name in ("plain", "fused", "small"))
    names = ["input_ids", "attention_mask"]
    axes = {**{name: {0: "B", 1: "L"} for name in names}, "logits": {0: "B"}}
    options = {"input_names": names, "output_names": ["logits"], "dynamic_axes": axes, "opset_version": 17}
    torch.onnx.export(model, (ids, mask), plain, dynamo=False, **options)
    made = optimize_model(str(plain), model_type="bert", num_heads=heads, hidden_size=hidden, opt_level=0)
    if made.get_fused_operator_statistics()["Attention"] != model.config.num_hidden_layers:
        raise SystemExit("ONNX Runtime's optimizer did not fuse this export: the comparison would flatter us")
    made.save_model_to_file(str(fused))
    quantize_dynamic(
        str(fused), str(small), weight_type=QuantType.QInt8, per_channel=True, extra_options={"DefaultTensorType": 1}
    )
    return fused, small


def arms(
    folder: Path, texts: list[str], window: int, hidden: int, heads: int
) -> tuple[dict[str, Callable[[], list[float]]], dict[str, Callable[[str], float]]]:
    """Each yields the score of "yes" of every text, in order; and what scores one text."""
    import onnxruntime
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "host").backend_tokenizer
    tokenizer.enable_truncation(128)
    pad = tokenizer.token_to_id("[PAD]")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = len(os.sched_getaffinity(0)), 3

    def scorer(path: Path) -> Callable[[list[str]], list[float]]:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        kinds = {one.name: np.int32 if "int32" in one.type else np.int64 for one in session.get_inputs()}

        def scores(some: list[str]) -> list[float]:
            cut = (
                [one.ids for one in tokenizer.encode_batch(some)] if len(some) > 1 else [tokenizer.encode(some[0]).ids]
            )
            ids = np.full((len(cut), max(map(len, cut))), pad)
            for row, one in zip(ids, cut, strict=True):
                row[: len(one)] = one
            given: dict[str, Any] = {"input_ids": ids, "attention_mask": ids != pad}
            logits = session.run(None, {name: given[name].astype(kind) for name, kind in kinds.items()})[0]
            shifted = np.exp(logits - logits.max(-1, keepdims=True))
            return (shifted / shifted.sum(-1, keepdims=True))[:, 1].tolist()

        return scores

    def by_length(scores: Callable[[list[str]], list[float]], size: int) -> list[float]:
        made = [0.0] * len(texts)
        for low in range(0, len(texts), window):
            order = sorted(range(low, min(low + window, len(texts))), key=lambda i: len(texts[i]))
            for start in range(0, len(order), size):
                chosen = order[start : start + size]
                for number, score in zip(chosen, scores([texts[i] for i in chosen]), strict=True):
                    made[number] = score
        return made

    found: dict[str, Callable[[], list[float]]] = {}
    alone: dict[str, Callable[[str], float]] = {}
    for name, path in zip(("ort", "ort_int8"), exported(folder, hidden, heads), strict=True):
        scores = scorer(path)
        size = _fastest(partial(by_length, scores))
        found[name] = Batched(partial(by_length, scores, size), size)
        alone[f"{name}_one"] = lambda text, scores=scores: scores([text])[0]
    return found, alone


class Batched(NamedTuple):
    """An arm, and the size of its batches."""

    run: Callable[[], list[float]]
    size: int

    def __call__(self) -> list[float]:
        return self.run()


def _fastest(run: Callable[[int], Any]) -> int:
    """The size of batch at which a pass is fastest, of two passes each."""
    taken = {}
    for size in BATCHES * 2:
        started = time.perf_counter()
        run(size)
        taken[size] = min(time.perf_counter() - started, taken.get(size, float("inf")))
    return min(taken, key=lambda size: taken[size])

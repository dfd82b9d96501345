"""The torch arms of host_tuning.py: transformers, and peft."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from kinject.inference.xla import cores

Row = dict[str, np.ndarray]


class TorchArms:
    """Passes of training over the same sentences.

    Args:
      folder: the host's.
      rows: every sentence by itself, without padding.
      rate: of learning.
      rank: of LoRA's matrices.
    """

    def __init__(self, folder: Path, rows: list[Row], rate: float, rank: int):
        self.folder, self.rows, self.rate, self.rank = folder, rows, rate, rank
        torch.set_num_threads(cores())

    def tuned(self, name: str, size: int, order: str, half: bool) -> Callable[[], tuple[int, float]]:
        """A pass in batches of `size`, "sorted" by length or in random order; `half`: under bfloat16 autocast."""
        model, rows = self.model(name), list(self.rows)
        if order == "sorted":
            rows = sorted(rows, key=lambda one: len(one["token_ids"]))
        else:
            np.random.default_rng(1).shuffle(rows)
        trained = [leaf for leaf in model.parameters() if leaf.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.rate, weight_decay=0.01)

        def run() -> tuple[int, float]:
            total = 0.0
            for start in range(0, len(rows), size):
                batch = padded(rows[start : start + size])
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    loss = model(**batch).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += float(loss.detach()) * len(batch["labels"])
            return len(rows), total / len(rows)

        return run

    def model(self, name: str) -> Any:
        """The host by transformers with our weights, without dropout, and what trains of it."""
        model = AutoModelForSequenceClassification.from_pretrained(self.folder, attn_implementation="sdpa")
        if name == "LoRA":
            from peft import LoraConfig, get_peft_model

            sites = ["query", "key"]
            settings = {"r": self.rank, "lora_alpha": self.rank, "target_modules": sites, "task_type": "SEQ_CLS"}
            model = get_peft_model(model, LoraConfig(**settings))  # B is zero: the same loss, whatever A was drawn
        return model.eval()  # nothing is dropped: peft's and the head's dropout have rates of their own


def padded(rows: list[Row]) -> dict[str, torch.Tensor]:
    """Sentences side by side, padded to the longest."""
    length = max(len(one["token_ids"]) for one in rows)
    ids, mask = np.zeros((2, len(rows), length), np.int64)
    for number, one in enumerate(rows):
        ids[number, : len(one["token_ids"])], mask[number, : len(one["token_ids"])] = one["token_ids"], 1
    labels = np.array([one["label"] for one in rows], np.int64)
    arrays = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {key: torch.from_numpy(values) for key, values in arrays.items()}

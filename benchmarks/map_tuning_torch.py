"""The torch arms of map_tuning.py, on the device that JAX takes too: a CPU with all cores, or a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForMaskedLM

from kinject.inference.xla import cores

AUTHORS_MAX_LEN = 64  # their inputs are padded to it, whatever the batch holds
Row = dict[str, np.ndarray]
Run = Callable[[], tuple[int, float]]


class TorchArms:
    """Makes the passes.

    Args:
      folder: of the host, in Hugging Face's form.
      mapper: kernel [k, D] and bias [D] of the map that all arms start from.
      rows: sentences without padding, in an order that has nothing to do with their lengths.
      rate: Adam's.
      gpu: compute there.
    """

    def __init__(self, folder: Path, mapper: tuple[np.ndarray, np.ndarray], rows: list[Row], rate: float, gpu: bool):
        self.folder, self.mapper, self.rows, self.rate = folder, mapper, rows, rate
        self.device = "cuda" if gpu else "cpu"
        self.shared: dict[bool, Any] = {}
        torch.set_num_threads(cores())

    def authors(self, batch_size: int, limit: int) -> Run:
        """Inputs composed token by token, a mapper call each, padded to `max_len`; every parameter has its gradient."""
        model, mapper = self._model(), self._mapper()
        table = model.get_input_embeddings().weight.detach().clone()

        def embed(row: Row, vector: torch.Tensor, length: int) -> torch.Tensor:
            made = []
            for token, slot in zip(row["token_ids"], row["entity_slot"], strict=True):
                made.append(mapper(vector) if slot >= 0 else table[int(token)])
            return torch.stack(made + [table[0]] * (length - len(made)))

        def loss_of(batch: dict[str, Any]) -> torch.Tensor:
            length, pairs = batch["token_ids"].shape[1], zip(batch["rows"], batch["vectors"], strict=True)
            embeds = torch.stack([embed(row, vector, length) for row, vector in pairs])
            logits = model(inputs_embeds=embeds, attention_mask=batch["mask"]).logits
            return torch.nn.functional.cross_entropy(logits[batch["at"]], batch["labels"])

        return self._pass(self.rows[:limit], batch_size, loss_of, mapper, least=AUTHORS_MAX_LEN)

    def product(self, half: bool, seconds: float = 2.0) -> Callable[[], float]:
        """FLOP/s of a large matrix product, the best of some; `half` in bfloat16."""

        def run() -> float:
            size, best = 8192 if self.device == "cuda" else 2048, float("inf")
            left = torch.ones((size, size), device=self.device, dtype=torch.bfloat16 if half else torch.float32)
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                started = time.perf_counter()
                (left @ left)[0, 0].item()  # waits for it
                best = min(best, time.perf_counter() - started)
            return 2 * size**3 / best

        return run

    def vectorised(self, batch_size: int, *, order: str, gathered: bool, half: bool, compiled: bool = False) -> Run:
        """One gather and one mapper call a batch, SDPA, no gradients of frozen parameters.

        Args:
          batch_size: sentences.
          order: "sorted" by length, or "random".
          gathered: whether the vocabulary is projected at masked positions only.
          half: bfloat16, by autocast on a CPU; on a GPU the frozen model is held in it, which is faster.
          compiled: by `torch.compile`, for any length.
        """
        model, mapper = self._frozen(half and self.device == "cuda"), self._mapper()
        rows = sorted(self.rows, key=lambda row: len(row["token_ids"])) if order == "sorted" else self.rows

        def logits_of(embeds: torch.Tensor, mask: torch.Tensor, at: tuple[torch.Tensor, ...]) -> torch.Tensor:
            inputs = {"inputs_embeds": embeds, "attention_mask": mask}
            if not gathered:
                return model(**inputs).logits[at]
            hidden = model.base_model(**inputs).last_hidden_state[at]
            return model.cls(hidden) if hasattr(model, "cls") else model.decoder(model.head(hidden))

        compute = torch.compile(logits_of, dynamic=True) if compiled else logits_of

        def loss_of(batch: dict[str, Any]) -> torch.Tensor:
            words = model.get_input_embeddings()(batch["token_ids"])
            embeds = words.clone()
            embeds[batch["slot_rows"], batch["slot_places"]] = mapper(batch["vectors"]).to(words.dtype)
            logits = compute(embeds, batch["mask"], batch["at"])
            return torch.nn.functional.cross_entropy(logits.float(), batch["labels"])

        return self._pass(rows, batch_size, loss_of, mapper, half=half and self.device == "cpu")

    def _pass(
        self,
        rows: list[Row],
        batch_size: int,
        loss_of: Callable[[dict[str, Any]], torch.Tensor],
        mapper: torch.nn.Linear,
        *,
        half: bool = False,
        least: int = 0,
    ) -> Run:
        """One pass over sentences that trains the map by Adam; batches are made before, as workers would."""
        optimizer = torch.optim.Adam(mapper.parameters(), lr=self.rate)
        batches = [padded(rows[start : start + batch_size], least) for start in range(0, len(rows), batch_size)]

        def run() -> tuple[int, float]:
            total, pieces = torch.zeros((), device=self.device), 0
            for batch in batches:
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    loss = loss_of(self._here(batch))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total, pieces = total + loss.detach() * len(batch["labels"]), pieces + len(batch["labels"])
            return len(rows), float(total) / pieces

        return run

    def _here(self, batch: dict[str, Any]) -> dict[str, Any]:
        def moved(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(moved(one) for one in value)
            return value.to(self.device, non_blocking=True) if isinstance(value, torch.Tensor) else value

        return {name: moved(value) for name, value in batch.items()}

    def _frozen(self, half: bool) -> Any:
        """One of each for all arms: it is never changed, and a dozen would not fit."""
        if half not in self.shared:
            model = self._model().requires_grad_(False)
            self.shared[half] = model.to(torch.bfloat16) if half else model
        return self.shared[half]

    def _model(self) -> Any:
        """The host by transformers, without dropout."""
        return AutoModelForMaskedLM.from_pretrained(self.folder, attn_implementation="sdpa").eval().to(self.device)

    def _mapper(self) -> torch.nn.Linear:
        kernel, bias = map(np.array, self.mapper)
        mapper = torch.nn.Linear(*kernel.shape)
        with torch.no_grad():
            mapper.weight.copy_(torch.from_numpy(kernel.T))
            mapper.bias.copy_(torch.from_numpy(bias))
        return mapper.to(self.device)


def padded(rows: list[Row], least: int = 0) -> dict[str, Any]:
    """Sentences side by side, padded to the longest, or to `least` where that is more."""
    length = max(least, *(len(row["token_ids"]) for row in rows))
    ids, mask = np.zeros((2, len(rows), length), np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row["token_ids"])], mask[number, : len(row["token_ids"])] = row["token_ids"], 1
    slots = [(number, int(np.flatnonzero(row["entity_slot"] >= 0)[0])) for number, row in enumerate(rows)]
    at = [(number, place) for number, row in enumerate(rows) for place in row["positions"]]
    slot_rows, slot_places = torch.tensor(slots).T
    return {
        "rows": rows,
        "token_ids": torch.from_numpy(ids),
        "mask": torch.from_numpy(mask),
        "vectors": torch.from_numpy(np.stack([row["vectors"][0] for row in rows])),
        "slot_rows": slot_rows,
        "slot_places": slot_places,
        "at": tuple(torch.tensor(at).T),
        "labels": torch.from_numpy(np.concatenate([row["labels"] for row in rows]).astype(np.int64)),
    }

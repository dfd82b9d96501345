"""LAMA: what a masked language model knows of facts, asked by templates (Petroni et al. 2019).

A question is a template with the subject for [X] and the mask for [Y]; the answer is one piece of the vocabulary.
Precision at 1 and 10 are means over relations of the means within (`weighted_…`: over all questions). With a
vocabulary file the candidates are its words alone, so that hosts of different vocabularies can be compared. A subject
with a vector has a slot before it, `[ENTITY] / subject`, which is E-BERT's "concat" (Poerner et al. 2020).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from kinject.data.encode import Encoded, EntityEncoder
from kinject.data.tokenizer import HostTokenizer, load_tokenizer
from kinject.errors import InputError
from kinject.tasks.base import Extent, Shapes, Task, plain_passages, register_task
from kinject.tasks.cloze import Cloze
from kinject.tasks.fields import single_pieces, some_word
from kinject.text_files import read_whole

if TYPE_CHECKING:
    from kinject.data.pipeline import Examples
    from kinject.data.records import Record
    from kinject.knowledge.base import KnowledgeBase
    from kinject.models.heads import HostModel
    from kinject.models.pretrained import LoadedHost
    from kinject.models.seams import Plugin

AT = (1, 10)
PLAIN = "plain_"  # what the arrays of an ensemble's plain arm are called before their name


@register_task("lama")
class Lama(Cloze):
    """Records need `label`, the answer, and `relation`; the text has one `[MASK]`.

    A question whose answer is not one piece of the vocabulary, or none of the candidates, is dropped and counted.

    Args:
      candidates: a file of words, one a line, that alone are answers (LAMA's common_vocab_cased.txt); None = all pieces
        of the host's vocabulary.
      ensemble: E-BERT's, of the text with slots and the plain text, both read by the host: "mean" of their
        log-probabilities, or "max", the arm whose best answer is the more probable. None = the text with slots alone.
    """

    required = ("label", "relation")
    metric = "p_at_1"

    def __init__(self, candidates: str | Path | None = None, ensemble: Literal["mean", "max"] | None = None):
        if ensemble not in (None, "mean", "max"):
            raise InputError("task_options.ensemble", f"it is {ensemble!r}", "choose mean or max, or leave it out")
        self.ensemble = ensemble
        self.file = None if candidates is None else Path(candidates).expanduser()
        if self.file is not None and not self.file.is_file():
            raise InputError("task_options.candidates", f"there is no file {self.file}", "name a file of words")
        self.candidates: np.ndarray | None = None  # bool [V]; known once there is a host

    def for_host(self, loaded: LoadedHost, where: object) -> Task:
        del where
        if self.file is None:
            return self
        task = copy.copy(self)
        task.candidates = np.zeros(loaded.config.vocab_size, bool)
        task.candidates[read_candidates(self.file, load_tokenizer(loaded.folder))] = True
        return task

    def examples(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        if self.file is not None and self.candidates is None:
            raise ValueError("candidates are pieces of a vocabulary: make the task with for_host")
        records = list(records)
        allowed = self._find(encoder.tokenizer, [_answer(record) for record in records])
        used = [number for number, record in enumerate(records) if record.fields["label"] in allowed]
        kept = [records[number] for number in used]
        if records and not kept:
            problem = "field label: no answer is one piece of the host's vocabulary and a candidate"
            raise InputError(records[0].where, problem, "use another host or vocabulary file")
        made = super().examples(kept, encoder, knowledge, buckets=buckets)
        names = sorted({record.fields["relation"] for record in kept})
        numbers = np.array([names.index(record.fields["relation"]) for record in kept], np.int32)
        made = made.with_arrays(lambda bucket: {"relation": numbers[bucket["index"]]})
        if self.ensemble is not None:
            plain = encoder.encode_batch(plain_passages(kept))
            made = made.with_arrays(lambda bucket: _plain([plain[i] for i in bucket["index"]], encoder))
        if len(kept) == len(records):
            return made
        dropped = {"dropped: the answer is no candidate of one piece": len(records) - len(kept)}
        return replace(made, record_index=np.array(used), notes=dropped)

    def _find(self, tokenizer: HostTokenizer, words: list[str]) -> dict[str, int]:
        """The words that are one piece, and a candidate, with that piece's id."""
        answers = single_pieces(tokenizer, words)
        return {word: piece for word, piece in answers.items() if self.candidates is None or self.candidates[piece]}

    def batch_shapes(self, extent: Extent) -> Shapes:
        return {**super().batch_shapes(extent), "relation": extent.whole()}

    def outputs(
        self,
        host: HostModel,
        plugin: Plugin | None,
        batch: Mapping[str, jax.Array],
        key: jax.Array | None = None,
        start: int = 0,
    ) -> jax.Array:
        scores = super().outputs(host, plugin, batch, key, start)
        if self.ensemble is None:
            return scores
        plain = {name.removeprefix(PLAIN): values for name, values in batch.items() if name.startswith(PLAIN)}
        return together(scores, super().outputs(host, None, plain, key), self.candidates, self.ensemble)

    def predict(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The best candidate, and how many candidates are better than the right one."""
        scores = self.choices(outputs, batch)
        right = jnp.take_along_axis(scores, batch["labels"], axis=1)
        found = {"better": (scores > right).sum(-1), "relation": batch["relation"]}
        return {"chosen": scores.argmax(-1), "right": batch["labels"][:, 0], **found}

    def unanswered(self, record: Record, tokenizer: HostTokenizer) -> Mapping[str, Any]:
        return {"label": some_word(tokenizer, self._find), "relation": "unknown"}

    def choices(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        if self.candidates is None:
            return outputs[:, 0]
        return jnp.where(jnp.asarray(self.candidates), outputs[:, 0], -jnp.inf)

    def score(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        metrics = {}
        for most in AT:
            hits = predictions["better"] < most
            relations = predictions["relation"]
            metrics[f"p_at_{most}"] = float(np.mean([hits[relations == one].mean() for one in np.unique(relations)]))
            metrics[f"weighted_p_at_{most}"] = float(hits.mean())
        return metrics


def together(one: jax.Array, other: jax.Array, candidates: np.ndarray | None, how: str) -> jax.Array:
    """E-BERT's ensembles (Poerner et al. 2020, section 4.1): log-probabilities [..., V] of two arms as one.

    Args:
      one: scores [..., V].
      other: the same of the other arm.
      candidates: bool [V] of the words between which is chosen; None = all.
      how: "mean" of the log-probabilities, or "max", those of the arm whose best word is the more probable.
    """
    if candidates is not None:
        one, other = (jnp.where(jnp.asarray(candidates), scores, -1e9) for scores in (one, other))
    one, other = jax.nn.log_softmax(one), jax.nn.log_softmax(other)
    if how == "mean":
        return (one + other) / 2
    return jnp.where(one.max(-1, keepdims=True) >= other.max(-1, keepdims=True), one, other)


def _plain(rows: Sequence[Encoded], encoder: EntityEncoder) -> dict[str, np.ndarray]:
    """The arrays of plain texts, under names of their own."""
    batch = encoder.pad(rows, max(map(len, rows)), 0)
    batch["positions"] = np.stack([one.blanks for one in rows])
    return {f"{PLAIN}{name}": values for name, values in batch.items() if name not in ("entity_ids",)}


def read_candidates(file: Path, tokenizer: HostTokenizer) -> np.ndarray:
    """The pieces of those words of a file, one a line, that the tokenizer makes one piece of: int [n].

    Raises:
      InputError: not UTF-8, or no word that is a piece.
    """
    try:
        words = read_whole(Path(file)).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(file, f"byte {error.start + 1} is not UTF-8", "convert the file: iconv -t UTF-8") from None
    pieces = single_pieces(tokenizer, [word.strip() for word in words if word.strip()])
    if not pieces:
        raise InputError(file, "holds no word that is one piece of the host's vocabulary", "one word a line")
    return np.unique(list(pieces.values()))


def _answer(record: Record) -> str:
    for field in ("label", "relation"):
        if not isinstance(record.fields[field], str) or not record.fields[field].strip():
            raise InputError(record.where, f"field {field} is {record.fields[field]!r}", "it must be a text")
    return record.fields["label"]

"""The host's own tokenizer, read from its folder by the `tokenizers` library alone (transformers would import torch).

Truncation and padding that a tokenizer.json brings along are switched off: encode.py cuts and pads, because only it
knows which pieces may go. The literal `[MASK]` means the host's mask token whatever the host calls it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from kinject.errors import InputError
from kinject.json_file import read_object

MASK_LITERAL = "[MASK]"
DEFAULT_LENGTH = 512

_NAMES = {
    "wordpiece": {"cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]", "unk": "[UNK]"},
    "bpe": {"cls": "<s>", "sep": "</s>", "pad": "<pad>", "mask": "<mask>", "unk": "<unk>"},
}
_FAMILIES = {"WordPiece": "wordpiece", "BPE": "bpe"}


class Pieces(NamedTuple):
    """A text in pieces, without special tokens: ids, and the characters [start, end) that each piece stands for."""

    ids: list[int]
    offsets: list[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class HostTokenizer:
    """A fast tokenizer with what the encoder must know of it. It pickles, so data workers can hold it.

    Args:
      backend: the `tokenizers` pipeline, truncation and padding off.
      family: "wordpiece" (BERT) or "bpe" (byte-level, RoBERTa).
      cls_id, sep_id, pad_id, mask_id, unk_id: special ids.
      vocab_size: ids below it are the host's.
      max_length: positions the host has, special tokens included.
      before, between, after: special ids before A, between A and B, and after the last text.
      pair_type: token type of B and of `after` in a pair (A's is 0).
      mask_alias: id under which the backend finds the literal `[MASK]` where the host's mask is another token.
    """

    backend: Tokenizer
    family: str
    cls_id: int
    sep_id: int
    pad_id: int
    mask_id: int
    unk_id: int
    vocab_size: int
    max_length: int
    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    pair_type: int
    mask_alias: int | None = None

    def pieces(self, texts: Sequence[str]) -> list[Pieces]:
        """Returns the pieces of every text, in one call into Rust (which uses all cores unless told otherwise).

        Raises:
          InputError: a text that is no valid Unicode (half of a surrogate pair).
        """
        try:
            encodings = self.backend.encode_batch(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeError) as error:
            bad = next((text for text in texts if not _is_unicode(text)), None)
            if bad is None:
                raise
            raise InputError("text", f"{bad[:40]!r} is no valid Unicode text", "give whole characters") from error
        found = [Pieces(encoding.ids, encoding.offsets) for encoding in encodings]
        alias = self.mask_alias
        if alias is None:
            return found
        return [
            Pieces([self.mask_id if i == alias else i for i in ids], offsets) if alias in ids else Pieces(ids, offsets)
            for ids, offsets in found
        ]

    def word(self, word: str) -> tuple[int, ...]:
        """Returns the ids of a word as it stands inside a text, after a space.

        Raises:
          InputError: the host's vocabulary cannot spell it.
        """
        ids = tuple(self.pieces([" " + word.strip()])[0].ids)
        if not ids or self.unk_id in ids:
            raise InputError(f"marker {word!r}", "the host's vocabulary has no piece for it", "choose another marker")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids, special tokens shown."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)


def load_tokenizer(folder: str | Path) -> HostTokenizer:
    """Reads the tokenizer of a host folder: tokenizer.json, or vocab.txt, or vocab.json with merges.txt.

    Raises:
      InputError: no or corrupt files, a model other than WordPiece and BPE, special tokens that are not in the
        vocabulary, a vocabulary larger than the host's embedding table.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(folder, "no such folder", "name a folder with tokenizer.json")
    settings = _settings(folder)
    backend = _backend(folder, settings)
    backend.no_truncation()
    backend.no_padding()
    family = _FAMILIES.get(type(backend.model).__name__)
    if family is None:
        problem = f"tokenizer model {type(backend.model).__name__} is not supported"
        raise InputError(folder / "tokenizer.json", problem, "BERT (WordPiece) and RoBERTa (byte-level BPE) hosts are")
    names = _special_names(settings, family)
    ids = {role: _special_id(backend, name, role, folder) for role, name in names.items()}
    vocab_size = backend.get_vocab_size(with_added_tokens=True)
    config = _read_json(folder / "config.json")
    _check_size(folder, vocab_size, config)
    alias = _teach_mask(backend, names, ids)
    before, between, after, pair_type = _frame(backend, ids, family)
    return HostTokenizer(
        backend=backend,
        family=family,
        **{f"{role}_id": number for role, number in ids.items()},
        vocab_size=vocab_size,
        max_length=_max_length(settings, config, ids["pad"]),
        before=before,
        between=between,
        after=after,
        pair_type=pair_type,
        mask_alias=alias,
    )


def _settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json over special_tokens_map.json."""
    return _read_json(folder / "special_tokens_map.json") | _read_json(folder / "tokenizer_config.json")


def _read_json(file: Path) -> dict[str, Any]:
    return read_object(file, "copy the host folder again") if file.is_file() else {}


def _backend(folder: Path, settings: dict[str, Any]) -> Tokenizer:
    whole, words = folder / "tokenizer.json", folder / "vocab.txt"
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if whole.is_file():
        file, build = whole, lambda: Tokenizer.from_file(str(whole))
    elif words.is_file():
        file, build = words, lambda: _wordpiece(words, settings)
    elif vocab.is_file() and merges.is_file():
        file, build = vocab, lambda: _byte_level(vocab, merges, settings)
    else:
        files = "tokenizer.json, vocab.txt, or vocab.json and merges.txt"
        raise InputError(folder, "there is no tokenizer in it", f"it needs {files}")
    try:
        return build()
    except Exception as error:  # the Rust library raises bare Exception for whatever is wrong with a file
        raise InputError(file, f"cannot be read as a tokenizer ({error})", "copy the host folder again") from error


def _wordpiece(vocab: Path, settings: dict[str, Any]) -> Tokenizer:
    names = _special_names(settings, "wordpiece")
    backend = Tokenizer(models.WordPiece.from_file(str(vocab), unk_token=names["unk"]))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    _declare(backend, names, lstrip_mask=False)
    return backend


def _byte_level(vocab: Path, merges: Path, settings: dict[str, Any]) -> Tokenizer:
    names = _special_names(settings, "bpe")
    backend = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=settings.get("add_prefix_space", False))
    _declare(backend, names, lstrip_mask=True)  # as RoBERTa does: the mask swallows the space before it
    return backend


def _declare(backend: Tokenizer, names: dict[str, str], *, lstrip_mask: bool) -> None:
    known = [name for name in names.values() if backend.token_to_id(name) is not None]
    lstrip = {names["mask"]} if lstrip_mask else set()
    backend.add_special_tokens([AddedToken(name, lstrip=name in lstrip, normalized=False) for name in known])


def _special_names(settings: dict[str, Any], family: str) -> dict[str, str]:
    def name(role: str, default: str) -> str:
        value = settings.get(f"{role}_token")
        value = value.get("content") if isinstance(value, dict) else value
        return value if isinstance(value, str) and value else default

    return {role: name(role, default) for role, default in _NAMES[family].items()}


def _special_id(backend: Tokenizer, name: str, role: str, folder: Path) -> int:
    number = backend.token_to_id(name)
    if number is None:
        problem = f"{role}_token {name!r} is not in the vocabulary"
        raise InputError(folder, problem, "name the right one in tokenizer_config.json")
    return number


def _check_size(folder: Path, vocab_size: int, config: dict[str, Any]) -> None:
    """An id beyond the embedding table would read its last row without a word."""
    rows = config.get("vocab_size")
    if isinstance(rows, int) and vocab_size > rows:
        problem = f"the tokenizer has {vocab_size} ids, config.json says vocab_size {rows}"
        raise InputError(folder, problem, "use the tokenizer that the host was trained with")


def _teach_mask(backend: Tokenizer, names: dict[str, str], ids: dict[str, int]) -> int | None:
    """Makes the backend see the mask literals in raw text; returns the alias id of `[MASK]`, if it needs one."""
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    mask = names["mask"]
    lstrip = known[mask].lstrip if mask in known else False
    wanted = [literal for literal in dict.fromkeys((mask, MASK_LITERAL)) if literal not in known]
    if wanted:
        backend.add_special_tokens([AddedToken(literal, lstrip=lstrip, normalized=False) for literal in wanted])
    alias = backend.token_to_id(MASK_LITERAL)
    return None if alias == ids["mask"] else alias


def _frame(backend: Tokenizer, ids: dict[str, int], family: str) -> tuple[tuple, tuple, tuple, int]:
    """Finds which special ids stand around and between texts, from what the tokenizer itself does with a pair."""
    pair = backend.encode("a", "a")
    first = [i for i, sequence in enumerate(pair.sequence_ids) if sequence == 0]
    second = [i for i, sequence in enumerate(pair.sequence_ids) if sequence == 1]
    if not first or not second or first[0] == 0:  # no post-processor: the family's usual frame
        separators = (ids["sep"],) * (2 if family == "bpe" else 1)
        return (ids["cls"],), separators, (ids["sep"],), int(family == "wordpiece")
    between = tuple(pair.ids[first[-1] + 1 : second[0]])
    return tuple(pair.ids[: first[0]]), between, tuple(pair.ids[second[-1] + 1 :]), pair.type_ids[second[0]]


def _max_length(settings: dict[str, Any], config: dict[str, Any], pad_id: int) -> int:
    limits = [settings.get("model_max_length")]
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int):
        # RoBERTa's position table starts behind the padding id
        limits.append(positions - (pad_id + 1 if config.get("model_type") == "roberta" else 0))
    known = [int(limit) for limit in limits if isinstance(limit, (int, float)) and 0 < limit < 1e6]
    return min(known, default=DEFAULT_LENGTH)


def _is_unicode(text: object) -> bool:
    try:
        return isinstance(text, str) and bool(text.encode("utf-8") or True)
    except UnicodeEncodeError:
        return False

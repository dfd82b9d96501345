"""The host's own tokenizer, as transformers reads it, with what kinject must know beyond it.

Truncation and padding that a tokenizer.json brings along are switched off: encode.py cuts and pads, because only it
knows which pieces may go. The literal `[MASK]` means the host's mask token whatever the host calls it.

Before it left reading to transformers, kinject read tokenizers itself. Plugins are pinned to weights; those that were
trained on a folder whose files contradict each other, say in tokenizer_config.json and tokenizer.json about case, saw
other pieces than the same folder gives now. `changed_reading` tells such a folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Encoding, Tokenizer, models, normalizers, pre_tokenizers

from kinject.errors import InputError
from kinject.hf_folder import TOKENIZER, TOKENIZER_CONFIG, open_tokenizer
from kinject.json_file import read_object

MASK_LITERAL = "[MASK]"
DEFAULT_LENGTH = 512
LONGEST = 1e6  # a model_max_length beyond it is transformers' word for "nobody said"
ROLES = ("cls", "sep", "pad", "mask", "unk")


class Pieces(NamedTuple):
    """A text in pieces, without special tokens: ids, and the characters [start, end) that each piece stands for."""

    ids: list[int]
    offsets: list[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class HostTokenizer:
    """A fast tokenizer with what the encoder must know of it. It pickles, so data workers can hold it.

    Args:
      backend: the `tokenizers` pipeline, truncation and padding off.
      family: its kind of model: "wordpiece", "bpe", "unigram".
      cls_id, sep_id, pad_id, mask_id, unk_id: special ids.
      vocab_size: ids below it are the tokenizer's.
      max_length: positions the host has, special tokens included.
      before, between, after: special ids before A, between A and B, and after the last text.
      pair_type: token type of B and of `after` in a pair (A's is 0); 0 where the model is given no token types.
      mask_alias: id under which the backend finds the literal `[MASK]` where the host's mask is another token.
      cut_left: a text that is too long loses its beginning, as its tokenizer_config.json says (`truncation_side`).
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
    cut_left: bool = False

    def pieces(self, texts: Sequence[str]) -> list[Pieces]:
        """Returns the pieces of every text, in one call into Rust (which uses all cores unless told otherwise).

        Raises:
          InputError: a text that is no valid Unicode (half of a surrogate pair).
        """
        return [Pieces(self._ids(one), one.offsets) for one in self._encoded(texts)]

    def passage(self, texts: Sequence[str]) -> tuple[list[int], int]:
        """Returns the ids of one passage of texts, special tokens included, and where its second text begins.

        Raises:
          InputError: text that is no valid Unicode.
        """
        ids, second = list(self.before), 0
        for number, found in enumerate(self._encoded(texts)):
            if number:
                ids += self.between
                second = second or len(ids)
            ids += self._ids(found)
        ids += self.after
        return ids, second or len(ids)

    def _encoded(self, texts: Sequence[str]) -> list[Encoding]:
        try:
            if len(texts) == 1:  # a batch is shared out to threads, which costs more than a short text
                return [self.backend.encode(texts[0], add_special_tokens=False)]
            return self.backend.encode_batch(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeError) as error:
            bad = next((text for text in texts if not _is_unicode(text)), None)
            if bad is None:
                raise
            raise InputError("text", f"{bad[:40]!r} is no valid Unicode text", "give whole characters") from error

    def _ids(self, encoding: Encoding) -> list[int]:
        ids, alias = encoding.ids, self.mask_alias
        return [self.mask_id if i == alias else i for i in ids] if alias is not None and alias in ids else ids

    def word(self, word: str, lone: bool = False) -> tuple[int, ...]:
        """Returns the ids of a word as it stands inside a text, after a space, or (`lone`) with nothing before it.

        Raises:
          InputError: the host's vocabulary cannot spell it.
        """
        ids = tuple(self.pieces([word.strip() if lone else " " + word.strip()])[0].ids)
        if not ids or self.unk_id in ids:
            raise InputError(f"marker {word!r}", "the host's vocabulary has no piece for it", "choose another marker")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids, special tokens shown."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)


def load_tokenizer(folder: str | Path, positions: int | None = None) -> HostTokenizer:
    """Reads the tokenizer of a host folder by transformers' AutoTokenizer.

    Args:
      folder: with the tokenizer's files, in any form that transformers reads.
      positions: how many tokens the host has positions for; None = what the folder says of the tokenizer alone.

    Raises:
      InputError: see `hf_folder.open_tokenizer`; no piece of any word; special tokens that are missing, a text's frame
        that is not the same for every text, ids beyond the host's embedding table.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(folder, "no such folder", "name a folder with tokenizer.json")
    found = open_tokenizer(folder)
    names = sorted({TOKENIZER, *found.vocab_files_names.values()})
    if not any((folder / name).is_file() for name in names):  # transformers makes one of special tokens alone
        raise InputError(folder, "there is no tokenizer in it", f"it needs {' or '.join(names)}")
    if len(found) <= len(found.all_special_ids):
        raise InputError(folder, "its tokenizer has no piece of any word", "get its files again")
    backend = found.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    if backend.encode_special_tokens:
        problem = "split_special_tokens is true, so that not even [MASK] in a text is one"
        raise InputError(folder / TOKENIZER_CONFIG, problem, "take the entry out")
    ids = {role: _special_id(found, role, folder) for role in ROLES}
    vocab_size = 1 + max(number for token, number in backend.get_vocab(with_added_tokens=True).items() if token)
    _check_size(folder, vocab_size)
    before, between, after, pair_type = _frame(backend, folder)
    alias = _teach_mask(backend, found.mask_token, ids["mask"])
    limits = [positions, found.model_max_length]
    return HostTokenizer(
        backend=backend,
        family=type(backend.model).__name__.lower(),
        **{f"{role}_id": number for role, number in ids.items()},
        vocab_size=vocab_size,
        max_length=min((int(limit) for limit in limits if limit and 0 < limit < LONGEST), default=DEFAULT_LENGTH),
        before=before,
        between=between,
        after=after,
        pair_type=pair_type if "token_type_ids" in found.model_input_names else 0,
        mask_alias=alias,
        cut_left=found.truncation_side == "left",
    )


def _special_id(found: Any, role: str, folder: Path) -> int:
    name = getattr(found, f"{role}_token")
    if name is None:
        raise InputError(folder, f"its tokenizer has no {role}_token", f"name it in {TOKENIZER_CONFIG}")
    return found.convert_tokens_to_ids(name)


def _check_size(folder: Path, vocab_size: int) -> None:
    """An id beyond the embedding table would read its last row without a word."""
    path = folder / "config.json"
    rows = read_object(path, "copy the host folder again").get("vocab_size") if path.is_file() else None
    if isinstance(rows, int) and vocab_size > rows:
        problem = f"the tokenizer has the id {vocab_size - 1}, and by config.json the embedding table has {rows} rows"
        raise InputError(folder, problem, "use the tokenizer that the host was trained with")


def _teach_mask(backend: Tokenizer, mask: str, mask_id: int) -> int | None:
    """Makes the backend see the literal `[MASK]` in raw text; returns its id, if it is not the mask's own."""
    if mask == MASK_LITERAL:
        return None
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    if MASK_LITERAL not in known:
        lstrip = mask in known and known[mask].lstrip
        backend.add_special_tokens([AddedToken(MASK_LITERAL, lstrip=lstrip, normalized=False)])
    return backend.token_to_id(MASK_LITERAL)


def _frame(backend: Tokenizer, folder: Path) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
    """Finds which special ids stand around and between texts, from what the tokenizer itself does with a pair."""
    pair = backend.encode("a", "a")
    first = [i for i, sequence in enumerate(pair.sequence_ids) if sequence == 0]
    second = [i for i, sequence in enumerate(pair.sequence_ids) if sequence == 1]
    if not first or not second:
        raise InputError(folder, "its tokenizer makes nothing of the letter a", "copy the host folder again")
    between = tuple(pair.ids[first[-1] + 1 : second[0]])
    return tuple(pair.ids[: first[0]]), between, tuple(pair.ids[second[-1] + 1 :]), pair.type_ids[second[0]]


def _is_unicode(text: object) -> bool:
    try:
        return isinstance(text, str) and bool(text.encode("utf-8") or True)
    except UnicodeEncodeError:
        return False


_NAMES = {
    "wordpiece": dict(zip(ROLES, ("[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]"), strict=True)),
    "bpe": dict(zip(ROLES, ("<s>", "</s>", "<pad>", "<mask>", "<unk>"), strict=True)),
}
PROBES = (
    "Paris, the CITY of É\u0301lan; naïve Straße \u0130stanbul.",
    "北京市 は 東京 and 한국어 ٣ कि",
    "  two  spaces\tand\na line\u00a0and \u200b\u200d\ufeff\x07 more ",
    "don't U.S. (a/b) #1 @x 3.14 ½ ﬁ Ⅷ ａｂｃ 🙂",
    "a [MASK] b[MASK]c [UNK] <unk> [SEP] </s> <mask> d",
)


def changed_reading(tokenizer: HostTokenizer, folder: Path) -> str | None:
    """A digest of what a host's tokenizer makes of texts, where it is not what kinject's own reader made of them.

    None also where that reader refused the folder: no plugin was trained on it then.
    """
    try:
        former, names = _read(folder)
        both = (former.get_added_tokens_decoder(), tokenizer.backend.get_added_tokens_decoder())
        added = {token.content for tokens in both for token in tokens.values()} - {MASK_LITERAL}
        texts = [*PROBES, *(f"a {content} b{content}c" for content in sorted(added))]
        before = _former_ids(former, names, tokenizer.family, texts)
    except Exception:  # whatever it was, the folder could not be used
        return None
    now = [[*tokenizer.before, *pieces.ids, *tokenizer.after] for pieces in tokenizer.pieces(texts)]
    now += [[*tokenizer.between, tokenizer.pair_type]]
    return None if before == now else hashlib.sha256(json.dumps(now).encode()).hexdigest()


def _former_ids(former: Tokenizer, names: dict[str, str], family: str, texts: Sequence[str]) -> list[list[int]]:
    former.no_truncation()
    former.no_padding()
    known = {token.content: token for token in former.get_added_tokens_decoder().values()}
    lstrip = names["mask"] in known and known[names["mask"]].lstrip
    wanted = [literal for literal in (names["mask"], MASK_LITERAL) if literal not in known]
    former.add_special_tokens([AddedToken(literal, lstrip=lstrip, normalized=False) for literal in wanted])
    vocabulary = former.get_vocab(with_added_tokens=True)
    ids = {role: vocabulary[name] for role, name in names.items()}
    masks = {vocabulary[MASK_LITERAL]: ids["mask"]}
    pair = former.encode("a", "a")
    places = [i for i, sequence in enumerate(pair.sequence_ids) if sequence is not None]
    if places and places[0] > 0:
        second = pair.sequence_ids.index(1)
        first = second - 1 - pair.sequence_ids[:second][::-1].index(0)
        before, after, between = pair.ids[: places[0]], pair.ids[places[-1] + 1 :], pair.ids[first + 1 : second]
        kind = pair.type_ids[second]
    else:  # no post-processor: the family's usual frame
        before, after, between = [ids["cls"]], [ids["sep"]], [ids["sep"]] * (2 if family == "bpe" else 1)
        kind = int(family == "wordpiece")
    encoded = former.encode_batch(list(texts), add_special_tokens=False)
    return [[*before, *(masks.get(i, i) for i in one.ids), *after] for one in encoded] + [[*between, kind]]


def _read(folder: Path) -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer as it stood in tokenizer.json, or of vocabulary files alone, and the names of special tokens."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        settings |= read_object(folder / name) if (folder / name).is_file() else {}
    whole, words = folder / "tokenizer.json", folder / "vocab.txt"
    if whole.is_file():
        backend = Tokenizer.from_file(str(whole))
        return backend, _special_names(settings, type(backend.model).__name__.lower())
    if words.is_file():
        names = _special_names(settings, "wordpiece")
        backend = Tokenizer(models.WordPiece.from_file(str(words), unk_token=names["unk"]))
        backend.normalizer = normalizers.BertNormalizer(
            lowercase=settings.get("do_lower_case", True),
            strip_accents=settings.get("strip_accents"),
            handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        )
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    else:
        names = _special_names(settings, "bpe")
        backend = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=settings.get("add_prefix_space", False))
    swallows = {names["mask"]} if not words.is_file() else set()  # as RoBERTa's mask does the space before it
    known = [name for name in names.values() if backend.token_to_id(name) is not None]
    backend.add_special_tokens([AddedToken(name, lstrip=name in swallows, normalized=False) for name in known])
    return backend, names


def _special_names(settings: dict[str, Any], family: str) -> dict[str, str]:
    def name(role: str, default: str) -> str:
        value = settings.get(f"{role}_token")
        value = value.get("content") if isinstance(value, dict) else value
        return value if isinstance(value, str) and value else default

    return {role: name(role, default) for role, default in _NAMES[family].items()}

"""How kinject read a tokenizer before transformers did, and whether what is read now is the same.

Plugins are pinned to weights. Those that were trained on a folder whose files contradict each other, say in
tokenizer_config.json and tokenizer.json about case, saw other pieces than the same folder gives now.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from kinject.data.tokenizer import MASK_LITERAL, ROLES, HostTokenizer
from kinject.json_file import read_object

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

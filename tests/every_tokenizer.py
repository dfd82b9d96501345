"""A tiny tokenizer of each kind that hosts have, written by transformers itself, and texts that are hard on them."""

import json
import random
from pathlib import Path

from tiny_tokenizers import BERT, sentences
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertTokenizer,
    CamembertTokenizer,
    DebertaV2Tokenizer,
    MPNetTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

CORPUS = [*sentences(300), "北京 東京 Straße naïve é è ü 🙂 [ ] < > / # ' \" 0 1 2 3 4 5 6 7 8 9"] * 2
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def _wordpiece(specials):
    model = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    model.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=specials, show_progress=False)
    )
    return model.get_vocab()


def _bpe(specials):
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(CORPUS, trainer)
    return json.loads(model.to_str())["model"]


def _unigram(specials):
    model = Tokenizer(models.Unigram())
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=specials, unk_token=specials[-1], show_progress=False
    )
    model.train_from_iterator(CORPUS, trainer)
    return [tuple(one) for one in json.loads(model.to_str())["model"]["vocab"]]


def _bert(lower, model_type):
    return BertTokenizer(vocab=_wordpiece(BERT), do_lower_case=lower), model_type


def _roberta():
    found = _bpe(ROBERTA[:4])
    vocab = found["vocab"] | {"<mask>": len(found["vocab"])}
    mask = AddedToken("<mask>", lstrip=True, special=True, normalized=False)
    return RobertaTokenizer(vocab=vocab, merges=[tuple(one) for one in found["merges"]], mask_token=mask), "roberta"


def _xlm_roberta():
    vocab = _unigram(["<s>", "<pad>", "</s>", "<unk>"])
    return XLMRobertaTokenizer(vocab=[*vocab, ("<mask>", 0.0)]), "xlm-roberta"


def _camembert():
    vocab = _unigram(["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"])
    known = {piece for piece, _ in vocab}
    assert {"<s>", "</s>", "<unk>"} <= known
    return CamembertTokenizer(vocab=[*vocab, ("<mask>", 0.0)]), "camembert"


def _mpnet():
    vocab = _wordpiece(["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"])
    return MPNetTokenizer(vocab=vocab), "mpnet"


def _modernbert():
    found = _bpe(BERT)
    backend = Tokenizer(models.BPE(found["vocab"], [tuple(one) for one in found["merges"]]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    mask = AddedToken("[MASK]", lstrip=True, special=True, normalized=False)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, mask_token=mask, **names)
    made.model_input_names = ["input_ids", "attention_mask"]
    return made, "modernbert"


def _deberta():
    vocab = _unigram(["[PAD]", "[CLS]", "[SEP]", "[UNK]"])
    return DebertaV2Tokenizer(vocab=[*vocab, ("[MASK]", 0.0)], do_lower_case=False), "deberta-v2"


KINDS = {
    "bert-cased": lambda: _bert(False, "bert"),
    "bert-uncased": lambda: _bert(True, "bert"),
    "distilbert": lambda: _bert(True, "distilbert"),
    "electra": lambda: _bert(True, "electra"),
    "roberta": _roberta,
    "xlm-roberta": _xlm_roberta,
    "camembert": _camembert,
    "mpnet": _mpnet,
    "modernbert": _modernbert,
    "deberta-v2": _deberta,
}


def tokenizer_folder(folder: Path, kind: str) -> Path:
    """Writes the tokenizer as transformers does, with a config.json that says of what model it is."""
    made, model_type = KINDS[kind]()
    made.model_max_length = 512
    made.save_pretrained(folder)
    config = {"model_type": model_type, "vocab_size": len(made)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


PARTS = [
    *["Berlan", "mo", "U.S.", "don't", "Straße", "İstanbul", "ﬁne", "Ⅷ", "½", "ａｂｃ", "x" * 120, "ka" * 60],
    *["北京市", "東京は", "한국어", "ทดสอบ", "हिन्दी", "עברית", "العربية", "\u202eRTL\u202c", "e\u0301\u0323", "Z̷̛͙a"],
    *[
        "🙂",
        "👩‍👩‍👧",
        "🏳️‍🌈",
        "\u200b",
        "\u200d",
        "\ufeff",
        "\u00ad",
        "\x00",
        "\x07",
        "\x7f",
        "\u0085",
        "\ufffd",
        "\U0010fffd",
    ],
    *["[CLS]", "[SEP]", "[PAD]", "[UNK]", "<s>", "</s>", "<pad>", "<unk>", "<mask>", "##mo", "▁", "▁ka", "Ġ", "[", "<"],
    *[
        " ",
        "  ",
        "\t",
        "\n",
        "\r\n",
        "\u00a0",
        "\u3000",
        "\u2028",
        "",
        "/",
        "#",
        "...",
        "-",
        "'",
        '"',
        "3.14",
        "$1,000",
    ],
]


def nasty(count: int, seed: int = 0) -> list[str]:
    """Texts of such parts, and of characters from anywhere."""
    draw = random.Random(seed)

    def anywhere() -> str:
        code = draw.choice([draw.randrange(0x20, 0x300), draw.randrange(0xD800), draw.randrange(0xE000, 0x11000)])
        return chr(code)

    def part() -> str:
        return draw.choice(PARTS) if draw.random() < 0.8 else "".join(anywhere() for _ in range(draw.randint(1, 4)))

    return ["".join(part() + draw.choice(["", " "]) for _ in range(draw.randint(0, 9))) for _ in range(count)]

"""Host tokenizers trained at once: a cased WordPiece and a byte-level BPE, written as Hugging Face folders have them.

The corpus is generated, so words share stems and endings and get several pieces, as names do with a real host.
"""

import json
import random
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

STEMS = ["ka", "mo", "ri", "te", "zu", "lan", "ber", "gen", "sto", "val", "nor", "wick", "ham", "dorf"]
STEMS += ["Ber", "Lon", "Par", "Rom", "Zür", "Kre", "élan", "ñan"]
PUNCTUATION = list(".,;:!?/#$%&()[]'\"-")
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>"]


def sentences(count=400, seed=0):
    random_ = random.Random(seed)
    words = ["".join(random_.choices(STEMS, k=random_.randint(1, 3))) for _ in range(300)]
    return [
        " ".join(random_.choices(words, k=8)) + " " + " ".join(random_.choices(PUNCTUATION, k=3)) for _ in range(count)
    ]


def wordpiece_folder(folder: Path, *, vocab_size=300, files=("tokenizer.json",)) -> Path:
    """A cased BERT tokenizer; its tokenizer.json asks for truncation and padding, as published ones do."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=BERT, show_progress=False)
    backend.train_from_iterator(sentences(), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    backend.enable_truncation(8)
    backend.enable_padding(length=8, pad_id=0, pad_token="[PAD]")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "model_max_length": 1024}
    return _write(folder, backend, settings, {"model_type": "bert", "max_position_embeddings": 1024}, files)


def byte_level_folder(folder: Path, *, vocab_size=420, files=("tokenizer.json",)) -> Path:
    """A RoBERTa tokenizer, with two rows of positions that the padding id takes away."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*ROBERTA, AddedToken("<mask>", lstrip=True, special=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(sentences(), trainer)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    settings = {"tokenizer_class": "RobertaTokenizer", "model_max_length": 1024}
    return _write(folder, backend, settings, {"model_type": "roberta", "max_position_embeddings": 1026}, files)


def _write(folder, backend, settings, config, files):
    folder.mkdir(parents=True, exist_ok=True)
    if "tokenizer.json" in files:
        backend.save(str(folder / "tokenizer.json"))
    else:
        backend.model.save(str(folder))  # vocab.txt, or vocab.json and merges.txt
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config["vocab_size"] = backend.get_vocab_size()
    (folder / "config.json").write_text(json.dumps(config))
    return folder

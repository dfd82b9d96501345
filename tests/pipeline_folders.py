"""Fine-tuned folders as transformers saves them, of random weights, and the 200 texts that are asked about."""

import random
import shutil

import torch
from tiny_tokenizers import STEMS, byte_level_folder, wordpiece_folder
from transformers import AutoTokenizer, BertConfig, RobertaConfig

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
SIZES |= {"initializer_range": 0.3}
CLOSE = 1e-5
torch.set_num_threads(1)  # models this small wait for their threads more than they compute
TAGS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}


def texts(count=200, seed=0, longest=3):
    """Of few lengths, so that few programs are compiled: empty, of a word, of some, and longer than the host reads."""
    draw = random.Random(seed)

    def text(i):
        words = 100 if i % 40 == 39 else draw.choice([1, longest])
        ends = ["", ",", "!"]
        return " ".join("".join(draw.choices(STEMS, k=draw.randint(1, 2))) + draw.choice(ends) for _ in range(words))

    return ["", *(text(i) for i in range(1, count))]


def folder_of(tmp_path, cls, **values):
    """A host of this class with random weights, and its tokenizer, as transformers saves both."""
    roberta = cls.__name__.startswith("Roberta")
    make, config = (byte_level_folder, RobertaConfig) if roberta else (wordpiece_folder, BertConfig)
    tokenizer = make(tmp_path / "tokenizer")
    size = AutoTokenizer.from_pretrained(tokenizer).vocab_size
    positions = {"max_position_embeddings": 66, "pad_token_id": 1} if roberta else {"max_position_embeddings": 64}
    torch.manual_seed(0)
    model = cls(config(vocab_size=size, **SIZES, **positions, **values))
    with torch.no_grad():
        for one in model.parameters():
            one.add_(0.1 * torch.randn_like(one))
    model.save_pretrained(tmp_path / "host")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, tmp_path / "host")
    return tmp_path / "host"

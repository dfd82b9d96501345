"""A tiny model of each family, made by transformers in torch with random weights."""

import json
from pathlib import Path

import numpy as np
import transformers
from tiny import random_host
from tiny_tokenizers import wordpiece_folder
from tokenizers import Tokenizer

from kinject.models.config import EncoderConfig
from kinject.models.saving import save_host

transformers.utils.logging.disable_progress_bar()

SMALL = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
ROBERTA = {"type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5, "max_position_embeddings": 66}
FAMILIES = {
    "bert": {},
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "distilbert": {},
    "electra": {"embedding_size": 12},
    "mpnet": {"pad_token_id": 1},
    "modernbert": {"num_hidden_layers": 4, "local_attention": 8, "bos_token_id": 2, "eos_token_id": 3}
    | {"cls_token_id": 2, "sep_token_id": 3},
    "deberta-v2": {
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
    }
    | {"share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
}
FORMS = {
    "masked_lm": ("MaskedLM", None),
    "classification": ("SequenceClassification", 5),
    "multiple_choice": ("MultipleChoice", 1),
    "token_classification": ("TokenClassification", 3),
    "span": ("QuestionAnswering", 2),
}


def torch_config(family, **values):
    """The family's transformers config of a tiny shape."""
    named = SMALL | FAMILIES[family] | values
    if family == "distilbert":
        named["hidden_dim"] = named.pop("intermediate_size")
    return transformers.AutoConfig.for_model(family, **named)


def family_config(family, **values):
    """The same as our encoders are built from."""
    return EncoderConfig.from_hf(torch_config(family, **values).to_dict())


def family_folder(folder: Path, family, head=None, num_labels=None, **values):
    """A host of random weights with a cased WordPiece tokenizer, as any of these families may have one."""
    source = wordpiece_folder(folder.parent / f"{folder.name}-tokenizer")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    named = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
    (source / "tokenizer_config.json").write_text(json.dumps(settings | named))
    size = Tokenizer.from_file(str(source / "tokenizer.json")).get_vocab_size()
    offset = family_config(family).position_offset
    values = {"vocab_size": size, "pad_token_id": 0, "max_position_embeddings": 512 + offset} | values
    host = random_host(family_config(family, **values), head, num_labels)
    return save_host(host, folder, tokenizer_files_from=source)


def torch_model(family, head=None, *, seed=0, **values):
    """A model in float32 whose weights leave attention far from uniform, with no zero or one among the vectors."""
    task, labels = ("", None) if head is None else FORMS[head]
    import torch

    config = torch_config(family, **values)
    if labels is not None and head != "multiple_choice":
        config.num_labels = labels
    torch.manual_seed(seed)
    auto = getattr(transformers, "AutoModel" if head is None else f"AutoModelFor{task}")
    model = auto.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.mul_(8.0)
    return model


def torch_inputs(batch, family):
    """Our batch as the model's forward takes it."""
    import torch

    names = {"token_ids": "input_ids", "segment_ids": "attention_mask"}
    if family in ("bert", "roberta", "xlm-roberta", "camembert", "electra"):
        names["type_ids"] = "token_type_ids"
    return {theirs: torch.from_numpy(np.array(batch[ours])).long() for ours, theirs in names.items()}


def torch_logits(outputs):
    """Logits as ours are: span heads' two in one array."""
    import torch

    if hasattr(outputs, "start_logits"):
        return torch.stack([outputs.start_logits, outputs.end_logits], -1)
    return outputs.logits

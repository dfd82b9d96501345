"""The column of PEFT in docs/python.md, run as it stands beside ours: the same jobs on a tiny BERT."""

import numpy as np
import pytest

pytestmark = pytest.mark.slow


def test_the_lines_of_the_table_that_are_pefts(tmp_path):
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import BertConfig, BertForSequenceClassification

    shape = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    base = BertForSequenceClassification(BertConfig(**shape, intermediate_size=32)).eval()
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        alone = base(tokens).logits.numpy()
    model = get_peft_model(base, LoraConfig(init_lora_weights=False), "a").eval()
    model.add_adapter("b", LoraConfig(init_lora_weights=False))
    model.save_pretrained(tmp_path / "saved")
    model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "c", "linear")
    model.set_adapter("c")
    trained, whole = model.get_nb_trainable_parameters()
    assert 0 < trained < whole
    with torch.no_grad():
        assert not np.array_equal(model(tokens).logits.numpy(), alone)
        with model.disable_adapter():
            np.testing.assert_allclose(model(tokens).logits.numpy(), alone, rtol=1e-5)
    model.delete_adapter("c")
    model.load_adapter(tmp_path / "saved" / "b", "again")
    model.set_adapter("again")
    assert "c" not in model.peft_config and "again" in model.peft_config
    other = BertForSequenceClassification(BertConfig(**shape, intermediate_size=32)).eval()
    assert not torch.equal(other.bert.embeddings.word_embeddings.weight, base.bert.embeddings.word_embeddings.weight)
    PeftModel.from_pretrained(other, tmp_path / "saved" / "b")  # of other weights: nothing is said
    wider = BertForSequenceClassification(BertConfig(**shape | {"hidden_size": 32}, intermediate_size=32))
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(wider, tmp_path / "saved" / "b")

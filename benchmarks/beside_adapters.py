"""The column of adapters in docs/python.md, run as it stands on a tiny BERT.

    python benchmarks/beside_adapters.py

It needs `adapters==1.3.*`, which pins transformers 4: an environment of its own, without kinject.
"""

import tempfile


def main() -> None:
    import adapters  # not among what kinject's environment has
    import torch
    from transformers import BertConfig, BertModel

    shape = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertModel(BertConfig(**shape, intermediate_size=32)).eval()
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        alone = model(tokens).last_hidden_state
    adapters.init(model)
    for name in ("a", "b"):
        model.add_adapter(name)
    model.average_adapter("c", ["a", "b"], weights=[0.5, 0.5])
    print(model.adapter_summary())
    model.set_active_adapters("c")
    with torch.no_grad():
        model(tokens)
        model.set_active_adapters(None)
        assert torch.equal(model(tokens).last_hidden_state, alone)
    with tempfile.TemporaryDirectory() as folder:
        model.save_adapter(folder, "a")
        model.delete_adapter("a")
        print("loaded:", model.load_adapter(folder))


if __name__ == "__main__":
    main()

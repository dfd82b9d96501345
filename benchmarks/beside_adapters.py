"""The column of adapters in docs/python.md, run as it stands on a tiny BERT; prints what each line gave.

    python benchmarks/beside_adapters.py

It needs `adapters==1.3.*`, which pins transformers 4: an environment of its own, without kinject.
"""

import tempfile


def main() -> None:
    import adapters  # not among what kinject's environment has
    import torch
    import transformers
    from transformers import BertConfig, BertModel

    def bert(hidden: int = 16) -> BertModel:
        shape = {"vocab_size": 50, "hidden_size": hidden, "num_hidden_layers": 1, "num_attention_heads": 2}
        return BertModel(BertConfig(**shape, intermediate_size=32)).eval()

    def first_of(name: str) -> torch.Tensor:
        return next(value for path, value in model.named_parameters() if f".{name}." in path)

    def output() -> torch.Tensor:
        with torch.no_grad():
            return model(tokens).last_hidden_state

    print("adapters", adapters.__version__, "transformers", transformers.__version__)
    model, tokens = bert(), torch.tensor([[1, 2, 3]])
    alone = output()
    adapters.init(model)
    model.add_adapter("a")
    model.add_adapter("b")
    print("put in: two adapters, inactive, output as before:", torch.equal(output(), alone))
    model.average_adapter("c", ["a", "b"])
    print("combine: the mean of both:", torch.allclose(first_of("c"), (first_of("a") + first_of("b")) / 2))
    print("count:", model.adapter_summary(as_dict=True)[0])
    with torch.no_grad():
        for path, value in model.named_parameters():
            if ".a." in path:
                value.normal_()  # as if it were trained: a fresh one changes nothing
    model.set_active_adapters("a")
    print("choose one: it is active:", model.active_adapters, "output changed:", not torch.equal(output(), alone))
    model.set_active_adapters(None)
    print("switch off: output as before, bit for bit:", torch.equal(output(), alone))
    with tempfile.TemporaryDirectory() as folder:
        model.save_adapter(folder, "a")
        model.delete_adapter("a")
        print("take out: left are", list(model.adapters_config))
        print("load: got", model.load_adapter(folder))
        for told, other in (("other weights", bert()), ("another width", bert(32))):
            adapters.init(other)
            try:
                print("does it fit: on a model of", told, "it is loaded as", other.load_adapter(folder))
            except RuntimeError as error:
                print("does it fit: on a model of", told, "it is refused:", str(error).splitlines()[0])


if __name__ == "__main__":
    main()

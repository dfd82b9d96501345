def get_config():
    fit = {"batch_size": 8, "steps": 24, "log_every": 2, "checkpoint_every": 4, "evaluate_every": 4}
    fit |= {"optimizer": {"learning_rate": 0.02}, "dropout": "all"}
    plugin = {"kind": "plugin", "task": "cloze", "host": "host", "knowledge": "knowledge", "fit": fit}
    plugin |= {"data": ("train.jsonl",), "dev_data": ("dev.jsonl",)}
    domain = {"knowledge": "knowledge", "data": ("test.jsonl",), "plugins": {"plugin": "@plugin"}}
    evaluate = {"kind": "evaluate", "task": "cloze", "host": "host", "domains": {"cities": domain}}
    return {"seed": 5, "stages": {"plugin": plugin, "evaluate": evaluate}}

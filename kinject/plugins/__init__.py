"""Knowledge plugins: the base class with its seams, the methods, one file each, and the folder on disk."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["Plugin", "Table", "make_plugin", "plugin_class", "plugin_names", "register"],
        "map_tuning": ["MapTuning"],
        "kformer": ["Kformer"],
        "k_adapter": ["KAdapter"],
        "k_adapter_combination": ["KAdapterCombination"],
        "pluglm": ["PlugLM"],
        "retrieved_text": ["RetrievedText"],
        "store": ["HostIdentity", "StoredPlugin", "load_plugin", "save_plugin"],
        "map_files": ["load_released_affine"],
    },
)

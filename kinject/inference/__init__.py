"""What serving and training both stand on: a host ready for use, its compiled programs, and where arrays live."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "host": ["HostBundle", "knowledge_identity", "open_host"],
        "program": ["Program", "evaluate", "plugged_in", "split_program"],
        "mesh": ["MeshConfig", "Placement"],
        "passages": ["PassageEncoder", "attach", "sync"],
    },
)

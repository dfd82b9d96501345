"""The loop and its parts: what trains, the optimizer, the step, checkpoints."""

from typing import Any

import lazy_loader

_own, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "partition": ["label_parameters"],
        "step": ["TrainState", "initial_state", "make_optimizer", "make_train_step"],
        "config": ["FitConfig", "OptimizerConfig"],
        "loop": ["Fit", "FitResult"],
        "checkpoint": ["Checkpoints"],
    },
)
FROM_INFERENCE = ("MeshConfig", "Placement", "Program", "evaluate", "plugged_in", "split_program")
__all__ += FROM_INFERENCE  # where they were public first


def __getattr__(name: str) -> Any:
    import kinject.inference

    return getattr(kinject.inference, name) if name in FROM_INFERENCE else _own(name)

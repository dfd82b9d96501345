"""The loop and its parts: what trains, the optimizer, the step, checkpoints, where arrays live."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "partition": ["label_parameters"],
        "optimizer": ["OptimizerConfig", "make_optimizer"],
        "step": ["Program", "TrainState", "initial_state", "make_train_step", "plugged_in", "split_program"],
        "loop": ["Fit", "FitConfig", "FitResult"],
        "checkpoint": ["Checkpoints"],
        "mesh": ["MeshConfig", "Placement"],
        "evaluation": ["evaluate"],
    },
)

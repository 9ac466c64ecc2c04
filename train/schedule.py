"""The learning rate over the run."""

from __future__ import annotations

from train.settings.sections import OptimizerSettings


def lr_factor(iteration: int, iterations: int, settings: OptimizerSettings) -> float:
    """Share of the full learning rate at `iteration` (from 0) of a run of `iterations`.

    Linear warm-up multiplied onto polynomial decay, as in the reference implementation: the decay runs
    from the first iteration on, so that the end of the warm-up makes no step.
    """
    factor = (1 - min(iteration, iterations) / iterations) ** settings.power
    if iteration < settings.warmup_iterations:
        factor *= 1 - (1 - iteration / settings.warmup_iterations) * (1 - settings.warmup_start_ratio)
    return factor

"""The recorded outputs of the reference implementation, and our networks with the weights they were made with."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.hrda import ModelSettings, SelfTraining, SelfTrainingSettings, build_segmentor
from common.hrda.network.reference_weights import convert_encoder_state_dict, convert_reference_state_dict
from common.hrda.network.segmentor import HRDASegmentor
from common.hrda.training.optimisation import optimizer_groups
from common.hrda.training.self_training import StepDraws, StepResult
from common.hrda.training.teacher import freeze_stochastic_layers, make_teacher
from common.hrda.windows import Box

STEPS = ("d_step_sly", "d_step_fd")
"""Fixtures of three complete iterations: as for cracks, and with feature distance."""


class Iteration(NamedTuple):
    """One complete iteration, before the optimiser's step."""

    number: int
    recorded: Mapping[str, np.ndarray]
    """What the reference had, by name."""
    logs: Mapping[str, float]
    """Its losses."""
    result: StepResult
    student: HRDASegmentor
    teacher: HRDASegmentor
    update: Callable[[], Any]
    """The optimiser's step, to be called before the next iteration."""


class Reference:
    """The fixtures in a folder; its README says what they hold.

    Args:
        folder: with `recipe.py`, which makes inputs and weights from names and seeds.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe = _module(folder / "recipe.py")

    def fixture(self, name: str) -> Mapping[str, np.ndarray]:
        """The arrays of a file."""
        return np.load(self.folder / f"{name}.npz")

    def keys(self, encoder: str) -> dict[str, list[int]]:
        """Shapes of the tensors of a complete self-training model with the encoder 'b0' or 'b5', by name."""
        return json.loads((self.folder / f"keys_{encoder}.json").read_text())

    def weights(self, encoder: str, prefix: str = "model.", named: str = "", gain: float = 1.0) -> dict[str, Tensor]:
        """Weights of the part `prefix` of the listed model, as the fixtures name them (`named` + bare name)."""
        weights = {}
        for key, shape in self.keys(encoder).items():
            if not key.startswith(prefix):
                continue
            bare = key.removeprefix(prefix)
            if bare.endswith("num_batches_tracked"):
                weights[bare] = torch.tensor(0)
            else:
                drawn = self.recipe.weight(bare, shape, prefix=named, conv_seg_gain=gain)
                weights[bare] = torch.tensor(drawn.astype("float32"))
        return weights

    def model(self, encoder: str, **options: Any) -> HRDASegmentor:
        """Our network with the weights `weights(encoder, **options)`, in eval mode."""
        settings = ModelSettings(
            encoder=f"mit_{encoder}", num_classes=3, crop_size=(256, 256), dropout=0.0, drop_path=0.0
        )
        model = build_segmentor(settings)
        model.load_state_dict(convert_reference_state_dict(self.weights(encoder, **options)))
        return model.eval()

    def image(self, data: Mapping[str, np.ndarray], seed: int, n: int, h: int, w: int) -> Tensor:
        """The input n×3×h×w of a fixture."""
        return checked(self.recipe.smooth_img(seed, n, h, w), data["input_sha256"])

    def iterations(self, name: str, device: torch.device) -> Iterator[Iteration]:
        """The three complete iterations of one of `STEPS`, with the recorded boxes and masks."""
        data = self.fixture(name)
        with_distance = name == "d_step_fd"
        student = self.model("b0", named="model.", gain=6.0).to(device).train()
        teacher = make_teacher(student)
        teacher.load_state_dict(
            convert_reference_state_dict(self.weights("b0", prefix="ema_model.", named="ema_model.", gain=6.0))
        )
        freeze_stochastic_layers(student)
        settings = SelfTrainingSettings(
            alpha=0.999 if with_distance else 0.99,
            pseudo_label_rule="published",
            feature_distance_weight=0.005 if with_distance else 0.0,
            feature_distance_classes=("crack", "spall") if with_distance else (),
        )
        training = SelfTraining(
            student,
            teacher,
            settings,
            generator=torch.Generator().manual_seed(0),
            class_names=("__bg__", "crack", "spall"),
            imagenet_encoder=self._imagenet_encoder().to(device) if with_distance else None,
        )
        optimizer = torch.optim.AdamW(optimizer_groups(student, 1e-4, 1e-4))
        for k in range(3):
            recorded = {key.removeprefix(f"s{k}:"): data[key] for key in data if key.startswith(f"s{k}:")}
            logs = dict(zip(recorded["log_names"].tolist(), recorded["log_values"].tolist(), strict=True))
            source, labels, target = (tensor.to(device) for tensor in self._batch(k, recorded))
            boxes = [Box(*box.tolist()) for box in recorded["boxes_src_mix"]]
            mask = torch.from_numpy(recorded["mask"]).squeeze(1).bool().to(device)
            optimizer.zero_grad()
            draws = StepDraws(*boxes, mask, jitter=None, sigma=None)
            result = training.step(source, labels, target, iteration=k, draws=draws)
            yield Iteration(k, recorded, logs, result, student, teacher, optimizer.step)

    def _batch(self, k: int, recorded: Mapping[str, np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
        recipe, first = self.recipe, 5000 + 10 * k
        return (
            checked(recipe.smooth_img(first, 2, 256, 256), recorded["img_sha256"]),
            checked(recipe.rand_label(first + 1, 2, 256, 256, 3, cell=64), recorded["gt_sha256"]).squeeze(1),
            checked(recipe.smooth_img(first + 2, 2, 256, 256), recorded["target_sha256"]),
        )

    def _imagenet_encoder(self) -> torch.nn.Module:
        weights = self.weights("b0", prefix="imnet_model.", named="imnet_model.", gain=6.0)
        encoder = build_segmentor(ModelSettings(encoder="mit_b0", num_classes=3)).backbone.eval()
        encoder.load_state_dict(
            convert_encoder_state_dict({k.removeprefix("backbone."): v for k, v in weights.items() if "backbone" in k})
        )
        return encoder


def checked(array: np.ndarray, digest: np.ndarray) -> Tensor:
    """The input as a tensor.

    Raises:
        ValueError: it is not what the fixture was made with.
    """
    if hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() != str(np.ravel(digest)[0]):
        raise ValueError("The input is not the one that the fixture was made with.")
    return torch.from_numpy(array)


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference_recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

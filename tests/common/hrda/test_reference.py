"""Equality with the reference implementation, on its recorded outputs (shared/reference), at its stated tolerances.

The tolerances are those of the fixtures' README: ten times what the reference differs from itself between
two versions of torch. Where our order of random draws differs, the recorded draws are fed in.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.reference import STEPS, Reference, checked
from common.hrda import InferenceSettings, ModelSettings, SelfTrainingSettings, build_segmentor
from common.hrda.network.reference_weights import convert_encoder_state_dict, convert_reference_state_dict
from common.hrda.network.segmentor import HRDASegmentor
from common.hrda.pixels import denormalise, normalise
from common.hrda.sliding import sliding_logits
from common.hrda.training.feature_distance import downscale_labels, masked_feature_distance
from common.hrda.training.mixing import ColorJitter, blur, blur_kernel_size, class_masks, paste
from common.hrda.training.optimisation import optimizer_groups
from common.hrda.training.pseudo_labels import pseudo_labels
from common.hrda.training.teacher import averaging_factor
from common.hrda.windows import Box
from tests.shared import SHARED, needs_shared

pytestmark = needs_shared

FOLDER = SHARED / "reference"
reference = Reference(FOLDER) if FOLDER.is_dir() else None
FEATURES = 3e-5
LOGITS = 1.5e-5
PROBABILITIES = 2.1e-6
LOSS = 1.5e-7
ROUNDING_GRADIENTS = "scale_attention.embed_layers."


@pytest.fixture(scope="module")
def b0() -> HRDASegmentor:
    return reference.model("b0")


def assert_close(ours, theirs, atol: float) -> None:
    ours = ours.detach().numpy() if isinstance(ours, Tensor) else np.asarray(ours)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours.astype("float64"), theirs.astype("float64"), rtol=0, atol=atol)


@pytest.mark.parametrize("encoder", ["b0", "b5"])
@pytest.mark.parametrize("prefix", ["model.", "ema_model.", "imnet_model."])
def test_every_name_of_the_reference_is_mapped(encoder: str, prefix: str) -> None:
    model = build_segmentor(ModelSettings(encoder=f"mit_{encoder}", num_classes=3))
    names = reference.keys(encoder)
    state = {f"module.{name}": torch.zeros(shape) for name, shape in names.items()}
    if prefix == "imnet_model.":
        part = {
            n.removeprefix("imnet_model.backbone."): torch.zeros(s)
            for n, s in names.items()
            if "imnet" in n and "backbone" in n
        }
        model.backbone.load_state_dict(convert_encoder_state_dict(part), strict=True)
    else:
        model.load_state_dict(convert_reference_state_dict(state, prefix=prefix), strict=True)
        assert len(model.state_dict()) < sum(n.startswith(prefix) for n in names)


@torch.no_grad()
def test_encoder_features_b0(b0: HRDASegmentor) -> None:
    data = reference.fixture("a_mit_b0")
    x = checked(reference.recipe.randn(1000, 1, 3, 128, 160), data["input_sha256"])
    for index, feature in enumerate(b0.backbone(x), 1):
        assert_close(feature, data[f"f{index}"], FEATURES)


@torch.no_grad()
def test_encoder_features_and_one_crop_b5() -> None:
    model = reference.model("b5")
    data = reference.fixture("a_mit_b5")
    f1, f2, f3, f4 = model.backbone(checked(reference.recipe.randn(1000, 1, 3, 128, 160), data["input_sha256"]))
    for ours, name in ((f1[..., ::4, ::4], "f1_s4"), (f2[..., ::2, ::2], "f2_s2"), (f3, "f3"), (f4, "f4")):
        assert_close(ours, data[name], FEATURES)
    assert_crop(model, reference.fixture("b_b5_encode_decode"))


@torch.no_grad()
def assert_crop(model: HRDASegmentor, data) -> None:
    x = reference.image(data, 2000, 1, 256, 256)
    parts = model.crop_parts(x)
    assert_close(parts.context * (1 - parts.attention), data["lr_logits"] * (1 - data["att"]), LOGITS)
    assert_close(parts.context, data["lr_logits"], LOGITS)
    assert_close(parts.attention, data["att"], LOGITS)
    assert_close(parts.detail, data["hr_logits"], LOGITS)
    assert_close(parts.fused, data["fused"], LOGITS)
    windows = [x[..., top : top + 128, left : left + 128] for top in (0, 64, 128) for left in (0, 64, 128)]
    assert_close(model.decode_head(model.backbone(torch.cat(windows))), data["hr_crop_logits"], LOGITS)
    logits = model.crop_logits(x)
    assert_close(logits[..., ::4, ::4], data["out_s4"], LOGITS)
    np.testing.assert_allclose(logits.numpy(), data["out_f16"].astype("float32"), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(logits.argmax(1).numpy(), data["argmax"])


def test_one_crop_b0(b0: HRDASegmentor) -> None:
    assert_crop(b0, reference.fixture("b_b0_encode_decode"))


@pytest.mark.parametrize(
    ("name", "seed", "size"), [("b_b0_slide_256x384", 2001, (256, 384)), ("b_b0_slide_192x224_small", 2003, (192, 224))]
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_sliding_inference(b0: HRDASegmentor, name: str, seed: int, size: tuple[int, int], batch_size: int) -> None:
    data = reference.fixture(name)
    settings = InferenceSettings(window=(256, 256), stride=(128, 128), batch_size=batch_size)
    probabilities = sliding_logits(b0, reference.image(data, seed, 1, *size), settings).softmax(1)
    assert_close(probabilities[..., ::4, ::4], data["probs_s4"], PROBABILITIES)
    best = probabilities.topk(2, dim=1).values
    # Two classes nearer than the bound above are equal to it: which one is named is rounding.
    decided = (best[:, 0] - best[:, 1] > 2 * PROBABILITIES).numpy()
    assert decided.mean() > 0.9999
    np.testing.assert_array_equal(probabilities.argmax(1).numpy()[decided], data["argmax"][decided])
    if "probs_f16" in data:
        np.testing.assert_allclose(probabilities.numpy(), data["probs_f16"].astype("float32"), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_windows_of_sliding_inference(b0: HRDASegmentor) -> None:
    data = reference.fixture("b_b0_slide_256x384")
    x = reference.image(data, 2001, 1, 256, 384)
    parts = b0.crop_parts(torch.cat([x[..., :256], x[..., 128:]]))
    for ours, name in (
        (parts.context, "lr_logits"),
        (parts.detail, "hr_logits"),
        (parts.attention, "att"),
        (parts.fused, "fused"),
    ):
        assert_close(ours, data[name], LOGITS)


@pytest.mark.parametrize("name", ["c_b0_train", "c_b0_eval", "c_b0_train_segweight"])
def test_losses_gradients_and_buffers(name: str) -> None:
    data = reference.fixture(name)
    model = reference.model("b0").train("train" in name)
    x = reference.image(data, 3000, 2, 256, 256)
    labels = checked(reference.recipe.rand_label(3001, 2, 256, 256, 3), data["gt_sha256"]).squeeze(1)
    weights = None
    if "segweight" in name:
        weights = torch.from_numpy(np.random.default_rng(3002).random((2, 256, 256)).astype(np.float32))
    top, bottom, left, right = data["box"].tolist()
    logits = model.train_logits(x, Box(top, bottom, left, right))
    assert_close(logits.context_features[-1], data["feat4_lr"], FEATURES)
    losses = model.losses(logits, labels, weights)
    total = sum(losses.values())
    recorded = dict(zip(data["log_names"].tolist(), data["log_values"].tolist(), strict=True))
    assert abs(losses["loss_fused"].item() - recorded["decode.loss_seg"]) < LOSS
    assert abs(losses["loss_detail"].item() - recorded["decode.hr.loss_seg"]) < LOSS
    assert abs(total.item() - recorded["loss"]) < LOSS
    total.backward()
    gradients = reference_gradients(model)
    assert_gradient_norms(gradients, data["grad_names"], data["grad_norms"], 4e-3 if "train" in name else 4e-4)
    for key in data.files:
        if key.startswith("grad:"):
            scale = np.abs(data[key]).max()
            assert_close(gradients[key.removeprefix("grad:")] / scale, data[key] / scale, 4e-3)
        elif key.startswith("buf:"):
            assert_close(model.state_dict()[key.removeprefix("buf:")], data[key], FEATURES)


def reference_gradients(model: HRDASegmentor) -> dict[str, Tensor]:
    """The gradients under the reference's names."""
    named = dict(model.named_parameters())
    gradients: dict[str, Tensor] = {}
    for key, shape in reference.keys("b0").items():
        if not key.startswith("model."):
            continue
        bare = key.removeprefix("model.")
        if bare.endswith(("running_mean", "running_var", "num_batches_tracked")):
            continue
        lead = {bare: torch.zeros(shape)}
        if ".attn.q." in bare or ".attn.kv." in bare:
            other = bare.replace(".attn.q.", ".attn.?.").replace(".attn.kv.", ".attn.?.")
            q, kv = other.replace("?", "q"), other.replace("?", "kv")
            dims = reference.keys("b0")[f"model.{q}"][0]
            [ours] = convert_reference_state_dict({q: torch.zeros(dims), kv: torch.zeros(2 * dims)})
            gradient = named[ours].grad
            gradients[bare] = gradient[:dims] if ".attn.q." in bare else gradient[dims:]
        else:
            [ours] = convert_reference_state_dict(lead)
            gradients[bare] = named[ours].grad.reshape(shape)
    return gradients


def assert_gradient_norms(gradients: dict[str, Tensor], names, norms, tolerance: float) -> None:
    assert set(gradients) == set(names.tolist())
    for name, norm in zip(names.tolist(), norms.tolist(), strict=True):
        if ROUNDING_GRADIENTS in name and name.endswith("proj.bias"):
            continue
        assert gradients[name].norm().item() == pytest.approx(norm, rel=tolerance), name


def test_pseudo_labels_and_weight() -> None:
    data = reference.fixture("d_pseudo")
    settings = SelfTrainingSettings(pseudo_label_rule="published", pseudo_label_threshold=float(data["threshold"]))
    pseudo = pseudo_labels(torch.from_numpy(data["logits"]), settings)
    np.testing.assert_array_equal(pseudo.labels.numpy(), data["pseudo_label"])
    assert pseudo.confident_share.item() == pytest.approx(float(data["pseudo_weight"]), abs=1e-7)
    assert (pseudo.confidence >= 0.968).sum().item() == int(data["n_large"])
    assert pseudo.weights.unique().numel() == 1


def test_classmix() -> None:
    data = reference.fixture("d_classmix")
    labels = torch.from_numpy(data["label"].astype(np.int64)).squeeze(1)
    present = labels.unique()
    np.testing.assert_array_equal(present.numpy(), data["classes_present"])
    mask = class_masks(labels, [present[torch.from_numpy(picks)] for picks in data["picks"]])
    np.testing.assert_array_equal(mask[:, None].numpy(), data["mask"].astype(bool))
    target = torch.from_numpy(reference.recipe.rand_label(4003, 2, 64, 96, 5, ignore=False)).squeeze(1)
    np.testing.assert_array_equal(target.numpy(), data["target_label"])
    np.testing.assert_array_equal(paste(mask, labels, target)[:, None].numpy(), data["mixed_label"])
    source_image, target_image = (
        torch.from_numpy(np.stack([reference.recipe.randn(seed, 3, 64, 96)] * 2)) for seed in (4001, 4002)
    )
    mixed = paste(mask, source_image, target_image)
    assert_close(mixed[..., ::4, ::4], data["mixed_img_s4"], 0)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_color_jitter(index: int) -> None:
    data = reference.fixture(f"d_colorjitter_{index}")
    jitter = ColorJitter(
        *(torch.from_numpy(data[f"param:{n}_factor"]) for n in ("brightness", "contrast", "saturation", "hue")),
        tuple(data["param:order"].tolist()),
    )
    images = normalise(torch.from_numpy(reference.fixture("d_colorjitter_0")["data_u8"]))
    ours = normalise(jitter(denormalise(images) / 255) * 255)
    assert_close(ours, data["out"], FEATURES)


def test_blur() -> None:
    data = reference.fixture("d_blur_0")
    np.testing.assert_array_equal(blur_kernel_size((64, 96)), data["ksize"])
    assert_close(blur(torch.from_numpy(data["data"]), float(data["sigma"])), data["out"], FEATURES)


def test_teacher_averaging_factor() -> None:
    data = reference.fixture("d_ema_alpha")
    for alpha, key in ((0.999, "alpha999"), (0.99, "alpha99")):
        ours = [averaging_factor(int(t), alpha) for t in data["t"]]
        np.testing.assert_array_equal(ours, data[key])


def test_label_downscaling() -> None:
    data = reference.fixture("d_downscale_label")
    labels = torch.from_numpy(data["label"].astype(np.int64)).squeeze(1)
    ours = downscale_labels(labels, int(data["scale"]), float(data["min_ratio"]), int(data["n_classes"]))
    np.testing.assert_array_equal(ours[:, None].numpy(), data["out"])


def test_feature_distance() -> None:
    data = reference.fixture("d_featdist")
    f1, f2, mask = (torch.from_numpy(data[k]) for k in ("f1", "f2", "mask"))
    distance = masked_feature_distance(f1, f2, mask.squeeze(1).bool())
    assert distance.item() == pytest.approx(float(data["mean_dist"]), abs=FEATURES)


def test_optimizer_groups() -> None:
    model = build_segmentor(ModelSettings(encoder="mit_b0", num_classes=3))
    groups = optimizer_groups(model, lr=1e-4, weight_decay=1e-4, head_lr_factor=10)
    ours = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    named = dict(model.named_parameters())
    recorded = json.loads((FOLDER / "optim_groups_b0.json").read_text())
    reached = set()
    for entry in recorded:
        bare = entry["name"].removeprefix("model.")
        query = bare.replace(".attn.kv.", ".attn.q.")
        probe = {query: torch.zeros(1)}
        if ".attn.q." in query:
            probe[query.replace(".attn.q.", ".attn.kv.")] = torch.zeros(1)
        for name in convert_reference_state_dict(
            {k: v[:, None] if k.endswith(("fc1.weight", "fc2.weight")) else v for k, v in probe.items()}
        ):
            reached.add(name)
            lr, decay = ours[id(named[name])]
            assert (lr, decay) == pytest.approx((entry["lr"], entry["weight_decay"])), bare
    assert reached == set(named)


@pytest.mark.parametrize("name", STEPS)
def test_three_complete_iterations(name: str) -> None:
    with_distance = name == "d_step_fd"
    for k, recorded, logs, result, student, teacher, update in reference.iterations(name, torch.device("cpu")):
        first = k == 0
        fused, detail = logs["decode.loss_seg"], logs["decode.hr.loss_seg"]
        mixed = logs["mix.decode.loss_seg"] + logs["mix.decode.hr.loss_seg"]
        distance = logs.get("src.loss_imnet_feat_dist", 0.0)
        tolerance = {"abs": 1e-5} if first else {"rel": 1.1e-3}
        assert result.scalars["loss/source"].item() == pytest.approx(fused + detail, **tolerance)
        assert result.scalars["loss/source_detail"].item() == pytest.approx(detail, **tolerance)
        assert result.scalars["loss/mixed"].item() == pytest.approx(mixed, **tolerance)
        if with_distance:
            assert result.scalars["loss/feature_distance"].item() == pytest.approx(distance, **tolerance)
        differing = (result.pseudo.labels.numpy() != recorded["pseudo_label"]).sum()
        assert differing <= (0 if first else 150)
        assert result.pseudo.confident_share.item() == pytest.approx(float(recorded["pseudo_frac"]), abs=5e-4)
        assert_close(result.second_images[..., ::4, ::4], recorded["mixed_img_s4"], 1e-6)
        assert (result.second_labels[:, None].numpy() != recorded["mixed_lbl"]).sum() <= differing
        assert_gradient_norms(
            reference_gradients(student), recorded["grad_names"], recorded["grad_norms"], 1.6e-3 if first else 1.5e-2
        )
        update()
        for model, which in ((student, "student:"), (teacher, "teacher:")):
            for key in (key for key in recorded if key.startswith(which)):
                bare = key.removeprefix(which)
                buffers = model.state_dict()
                if bare in buffers:
                    ours = buffers[bare]
                else:
                    [name_] = convert_reference_state_dict({bare: torch.zeros(recorded[key].shape)})
                    ours = buffers[name_]
                # One Adam step moves a weight by lr whatever its gradient's size, so that rounding of a
                # gradient near zero shows as a whole step: 1e-3 for the head, 1e-4 for the encoder.
                lr = 1e-3 if "head" in bare else 1e-4
                if "running" in bare:
                    assert_close(ours, recorded[key], FEATURES if first else 1e-2)
                else:
                    assert_mostly_close(ours, recorded[key], 0.1 * lr * (k + 1), lr * 2 * (k + 1))


def assert_mostly_close(ours: Tensor, theirs: np.ndarray, typical: float, worst: float) -> None:
    """99% of the values within `typical`, all within `worst`."""
    difference = np.abs(ours.numpy().astype("float64") - theirs.astype("float64"))
    assert np.quantile(difference, 0.99) <= typical
    assert difference.max() <= worst

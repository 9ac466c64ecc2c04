"""Pseudo-labels by class: shares that come from the data, and cannot drift away from it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from common.hrda import SelfTrainingSettings
from common.hrda.training.pseudo_labels import ClassCuts, PseudoLabels, averaged_views, pseudo_labels


def rule(**settings) -> SelfTrainingSettings:
    return SelfTrainingSettings(pseudo_label_rule="class_balanced", **settings)


def of_crack(probability: Tensor) -> Tensor:
    """Logits 1×2×H×W of a crack's probability H×W."""
    return torch.stack([(1 - probability).log(), probability.log()])[None]


def labelled(cuts: ClassCuts, logits: Tensor, settings: SelfTrainingSettings) -> PseudoLabels:
    return pseudo_labels(logits, settings, cuts.cuts())


def spread_out(batch: Tensor) -> Tensor:
    """The same pixels four times as far apart: every fourth is counted."""
    return batch.repeat_interleave(4, -1).repeat_interleave(4, -2)


@pytest.mark.parametrize(("count", "corners"), [(2, 2), (4, 4)])
def test_views_are_averaged_where_they_lie_in_the_image(count: int, corners: int) -> None:
    def answer(images: Tensor) -> Tensor:
        """Sees a crack in the upper left corner of whatever it is shown, and one where the image is bright."""
        logits = torch.stack([torch.zeros_like(images[:, 0]), 4 * images[:, 0]], dim=1)
        logits[:, 1, 0, 0] = 8
        return logits

    image = torch.zeros(1, 3, 6, 4)
    image[..., 3, 1] = 1
    crack = averaged_views(answer, image, count).softmax(dim=1)[0, 1]
    alone = torch.tensor([0.0, 4.0, 8.0]).sigmoid().tolist()
    # What the image shows stays; what one view has by chance is shared among them.
    assert crack[3, 1].item() == pytest.approx(alone[1], abs=1e-6)
    by_chance = alone[0] + (alone[2] - alone[0]) / count
    assert crack[0, 0].item() == pytest.approx(by_chance, abs=1e-6)
    assert (crack > 0.51).sum().item() == corners + 1


def test_scales_are_averaged_where_they_lie_in_the_image() -> None:
    asked = []

    def answer(images: Tensor) -> Tensor:
        """Sees a crack in the right half, the surer the larger the image is."""
        asked.append(tuple(images.shape[-2:]))
        crack = torch.zeros_like(images[:, 0])
        crack[..., images.shape[-1] // 2 :] = images.shape[-2] / 32
        return torch.stack([torch.zeros_like(crack), crack], dim=1)

    crack = averaged_views(answer, torch.zeros(1, 3, 96, 128), 2, (0.7, 1.0, 1.5)).softmax(dim=1)[0, 1]
    # Sizes that the network takes: multiples of 16.
    assert asked == [(64, 96)] * 2 + [(96, 128)] * 2 + [(144, 192)] * 2
    # Of the mirrored view the left half; each scale is as sure as its height says.
    sure = (torch.tensor([64.0, 96.0, 144.0]) / 32).sigmoid().mean()
    assert crack.shape == (96, 128)
    assert crack[:, :60].mean().item() == pytest.approx((0.5 + sure.item()) / 2, abs=1e-5)
    torch.testing.assert_close(crack, crack.flip(1))


def test_a_small_image_is_not_shrunk_below_what_the_network_takes() -> None:
    asked = []

    def answer(images: Tensor) -> Tensor:
        asked.append(tuple(images.shape[-2:]))
        return images[:, :2]

    averaged_views(answer, torch.zeros(1, 3, 64, 96), 1, (0.5,))
    assert asked == [(64, 64)]


def test_one_view_is_the_answer_itself() -> None:
    logits = torch.randn(1, 2, 4, 4)
    assert averaged_views(lambda _: logits, torch.zeros(1, 3, 4, 4), 1) is logits


def test_certainty_of_all_views_stays_a_finite_logit() -> None:
    certain = torch.tensor([-500.0, 500.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    logits = averaged_views(lambda _: certain, torch.zeros(1, 3, 4, 4), 2)
    assert logits.isfinite().all()
    assert (logits.argmax(dim=1) == 1).all()


def test_crack_of_which_the_teacher_is_never_sure_gets_its_share_of_the_source() -> None:
    settings = rule(balance_source=1, balance_keep=1)
    probability = torch.linspace(0.001, 0.4, 10_000)[torch.randperm(10_000, generator=torch.Generator().manual_seed(0))]
    logits = spread_out(of_crack(probability.view(100, 100)))
    cuts = ClassCuts(torch.tensor([0.98, 0.02]), settings)
    cuts.learn(logits)
    pseudo = labelled(cuts, logits, settings)
    assert (pseudo.labels == 1).float().mean().item() == pytest.approx(0.02, abs=1e-3)
    assert cuts.cuts().tolist() == pytest.approx([0.608, 0.392], abs=1e-3)
    # Nothing is left out: each of the two classes takes what the other does not.
    assert pseudo.weights.mean().item() == pytest.approx(1, abs=1e-3)
    published = pseudo_labels(logits, SelfTrainingSettings(pseudo_label_rule="published"))
    assert published.labels.max() == 0


def test_only_the_most_confident_pixels_of_each_class_count() -> None:
    settings = rule(balance_source=1, balance_keep=0.5)
    logits = spread_out(of_crack(torch.linspace(0.001, 0.9, 10_000).view(100, 100)))
    cuts = ClassCuts(torch.tensor([0.9, 0.1]), settings)
    cuts.learn(logits)
    pseudo = labelled(cuts, logits, settings)
    shares = [((pseudo.labels == index) & (pseudo.weights > 0)).float().mean().item() for index in (0, 1)]
    assert shares == pytest.approx([0.45, 0.05], abs=2e-3)
    assert pseudo.class_shares(2).tolist() == pytest.approx([0.9, 0.1], abs=4e-3)
    assert set(pseudo.weights.unique().tolist()) == {0.0, 1.0}


def test_no_class_of_many_gets_more_than_its_share() -> None:
    settings = rule(balance_source=1, balance_keep=0.8)
    shares = torch.tensor([0.5, 0.3, 0.15, 0.04, 0.01])
    logits = torch.randn(1, 5, 400, 400, generator=torch.Generator().manual_seed(0)) * 2
    # The teacher hardly knows the last class and sees the second everywhere.
    logits += torch.tensor([0.0, 3, 0, 0, -4])[:, None, None]
    cuts = ClassCuts(shares, settings)
    cuts.learn(logits)
    pseudo = labelled(cuts, logits, settings)
    got = torch.stack([((pseudo.labels == index) & (pseudo.weights > 0)).float().mean() for index in range(5)])
    assert (got < 0.8 * shares + 0.005).all()
    assert (got > 0.2 * shares).all()
    # By the highest probability alone, the second takes over and the last is gone.
    plain = logits.argmax(1).flatten().bincount(minlength=5) / logits[:, 0].numel()
    assert plain[1] > 0.7
    assert plain[4] < 0.002


@pytest.mark.parametrize(
    ("trust", "weights", "expected"),
    [
        (1, None, 0.02),
        (0, None, 0.2),
        (0.5, None, (0.02 * 0.2) ** 0.5 / ((0.02 * 0.2) ** 0.5 + (0.98 * 0.8) ** 0.5)),
        # A loss weight of 4 makes odds of 1 : 16 what the teacher calls 1 : 4.
        (0, [1.0, 4.0], 1 / 17),
    ],
)
def test_share_of_a_class_lies_between_the_sources_and_what_the_teacher_expects(trust, weights, expected) -> None:
    weights = None if weights is None else torch.tensor(weights)
    cuts = ClassCuts(torch.tensor([0.98, 0.02]), rule(balance_source=trust), weights)
    cuts.learn(of_crack(torch.full((8, 8), 0.2)))
    assert cuts.shares()[1].item() == pytest.approx(expected, rel=1e-4)


def test_teacher_that_believes_ever_more_drifts_no_further_than_it_is_let() -> None:
    """With a fixed cut it ends with a fifth of the pixels."""
    generator = torch.Generator().manual_seed(0)
    rules = [rule(balance_source=trust, balance_keep=1) for trust in (1.0, 0.5, 0.0)]
    each = [ClassCuts(torch.tensor([0.985, 0.015]), settings) for settings in rules]
    for step in range(200):
        logits = torch.randn(2, 2, 64, 64, generator=generator)
        logits[:, 1] += min(step / 25 - 4, -0.7)
        for cuts in each:
            cuts.learn(logits)
    fixed = pseudo_labels(logits, SelfTrainingSettings(pseudo_label_rule="per_class", class_threshold=0.6))
    assert fixed.labels.float().mean() > 0.2
    anchored, between, free = (
        labelled(cuts, logits, settings).class_shares(2)[1].item() for cuts, settings in zip(each, rules, strict=True)
    )
    assert anchored == pytest.approx(0.015, abs=0.008)
    assert anchored < between < 0.5 * free


def test_a_batch_without_cracks_gets_none_because_earlier_ones_count() -> None:
    settings = rule(balance_source=1, balance_keep=1)
    cuts = ClassCuts(torch.tensor([0.955, 0.045]), settings)
    without = 0.01 + 0.02 * torch.rand(400, 400, generator=torch.Generator().manual_seed(0))
    with_crack = without.clone()
    with_crack[:40] += 0.7
    for _ in range(5):
        cuts.learn(of_crack(with_crack))
        cuts.learn(of_crack(without))
    assert labelled(cuts, of_crack(without), settings).labels.max() == 0
    # A tenth of its pixels, of which nine in ten are among the 4.5% of all.
    got = (labelled(cuts, of_crack(with_crack), settings).labels == 1).float().mean().item()
    assert got == pytest.approx(0.09, abs=0.006)


def test_pixels_that_are_not_valid_or_not_finite_are_not_counted() -> None:
    settings = rule()
    logits = torch.randn(1, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    clean, dirty = (ClassCuts(torch.tensor([0.9, 0.1]), settings) for _ in range(2))
    valid = torch.ones(1, 32, 32)
    valid[..., 16:] = 0
    clean.learn(logits[..., :16])
    dirty.learn(torch.where(valid[:, None] > 0, logits, 9.0), valid)
    dirty.learn(torch.full_like(logits, torch.nan))
    dirty.learn(logits, torch.zeros_like(valid))
    torch.testing.assert_close(dirty.cuts(), clean.cuts())
    torch.testing.assert_close(dirty.state_dict(), clean.state_dict())


def test_before_anything_was_counted_the_more_probable_class_is_taken() -> None:
    settings = rule()
    pseudo = labelled(ClassCuts(torch.tensor([0.9, 0.1]), settings), of_crack(torch.tensor([[0.6, 0.4]])), settings)
    assert pseudo.labels.tolist() == [[[1, 0]]]
    assert pseudo.weights.tolist() == [[[1.0, 1.0]]]


def test_class_that_the_source_lacks_is_never_believed() -> None:
    settings = rule()
    cuts = ClassCuts(torch.tensor([0.9, 0.1, 0.0]), settings)
    logits = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits[:, 2] += 9
    cuts.learn(logits)
    assert not (labelled(cuts, logits, settings).labels == 2).any()


def test_counts_survive_saving() -> None:
    first, second = (ClassCuts(torch.tensor([0.9, 0.1]), rule()) for _ in range(2))
    logits = torch.randn(3, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    first.learn(logits)
    second.load_state_dict(first.state_dict())
    for cuts in (first, second):
        cuts.learn(-logits)
    assert torch.equal(first.cuts(), second.cuts())


def test_processes_that_share_their_counts_find_the_cuts_of_the_whole_batch() -> None:
    settings, shares = rule(), torch.tensor([0.9, 0.1])
    logits = torch.randn(2, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    whole = ClassCuts(shares, settings)
    whole.learn(logits)
    sent: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        sent.append(tensor)
        return tensor

    for image in logits:
        ClassCuts(shares, settings, share=keep).learn(image[None])
    part = ClassCuts(shares, settings, share=lambda _: sum(sent) / 2)
    part.learn(logits[:1])
    torch.testing.assert_close(part.cuts(), whole.cuts())


def test_shares_of_the_classes_leave_out_pixels_that_do_not_count() -> None:
    labels = torch.tensor([[[0, 1, 1, 2]]])
    ones = torch.ones(1, 1, 4)
    pseudo = PseudoLabels(labels, ones, torch.tensor([[[0.5, 0.5, 0.0, 0.5]]]), ones.mean())
    torch.testing.assert_close(pseudo.class_shares(4), torch.tensor([1 / 3, 1 / 3, 1 / 3, 0]))
    assert PseudoLabels(labels, ones, 0 * ones, ones.mean()).class_shares(4).tolist() == [0, 0, 0, 0]


def test_finding_cuts_and_labels_reads_nothing_back_from_its_device() -> None:
    """On the meta device tensors have no content: whatever asks for some, which on a GPU would wait for it, fails."""
    settings, shares = rule(), torch.tensor([0.9, 0.1], device="meta")
    cuts = ClassCuts(shares, settings, class_weights=shares)
    logits = torch.empty(2, 2, 64, 64, device="meta")
    cuts.learn(logits, torch.empty(2, 64, 64, dtype=torch.bool, device="meta"))
    pseudo = labelled(cuts, logits, settings)
    assert pseudo.class_shares(2).device.type == "meta"

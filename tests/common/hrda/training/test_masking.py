"""Masked image consistency: which pixels are hidden."""

from __future__ import annotations

import pytest
import torch

from common.hrda.training.masking import block_side, draw_kept_blocks, mask_blocks


def test_block_is_a_sixteenth_of_the_crop_unless_given() -> None:
    assert [block_side(size, None) for size in ((1024, 1024), (512, 640), (64, 64))] == [64, 32, 4]
    assert block_side((512, 512), 48) == 48


def test_blocks_are_hidden_whole_and_with_0() -> None:
    images = torch.rand(2, 3, 8, 10) + 1
    kept = torch.tensor([[[True, False, True], [False, True, False]], [[False] * 3, [True] * 3]])
    masked = mask_blocks(images, kept, side=4)
    visible = (masked != 0).all(dim=1)
    assert torch.equal(masked != 0, visible[:, None].expand_as(masked))
    assert visible[0, ::4, ::4].tolist() == kept[0].tolist()
    for image, blocks in zip(visible, kept, strict=True):
        for row in range(8):
            for column in range(10):
                assert image[row, column] == blocks[row // 4, column // 4]
    assert torch.equal(masked[visible[:, None].expand_as(masked)], images[visible[:, None].expand_as(masked)])


@pytest.mark.parametrize("ratio", [0.0, 0.7, 1.0])
def test_share_of_hidden_blocks_is_the_ratio(ratio: float) -> None:
    kept = draw_kept_blocks(50, (160, 170), 10, ratio, torch.Generator().manual_seed(0))
    assert kept.shape == (50, 16, 17)
    assert 1 - kept.float().mean().item() == pytest.approx(ratio, abs=0.01)
    if 0 < ratio < 1:
        assert not torch.equal(kept[0], kept[1])

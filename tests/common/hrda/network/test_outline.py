import pytest
import torch
from torch import nn

from common.hrda import ModelSettings, build_segmentor
from common.hrda.network.outline import outline


@pytest.mark.parametrize("encoder", ["mit_b0", "pvt_v2_b0"])
def test_outline_has_names_and_shapes_takes_no_memory_and_draws_nothing(encoder):
    settings = ModelSettings(encoder=encoder, crop_size=(64, 64), decoder_channels=8, attention_channels=8)
    before = torch.get_rng_state()
    with outline():
        empty = build_segmentor(settings)
    assert torch.equal(torch.get_rng_state(), before)
    whole = build_segmentor(settings).state_dict()
    assert {name: value.shape for name, value in empty.state_dict().items()} == {n: v.shape for n, v in whole.items()}
    assert all(value.is_meta for value in empty.parameters())


def test_weights_are_drawn_again_after_an_outline():
    with outline():
        nn.Linear(3, 3)
    drawn = nn.init.normal_(torch.zeros(1000))
    assert 0.8 < drawn.std() < 1.2

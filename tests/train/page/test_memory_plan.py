"""What is said of a graphics card that is too small: changes that really fit, and the least of them."""

import re
from dataclasses import replace

import pytest
import torch

from train.page.memory_plan import GraphicsCard, best_card, describe_need, fits, memory_of
from train.settings.presets import presets
from train.settings.training import TrainSettings

SETTINGS = TrainSettings.from_yaml(
    "{batch_size: 8, model: {encoder: mit_b2, crop_size: [512, 768], decoder_channels: 16, attention_channels: 16}}"
)


def card(free: int) -> GraphicsCard:
    return GraphicsCard("Some GPU", free, 2 * free)


def test_remedies_fit_and_are_no_smaller_than_needed():
    room = card(memory_of(replace(SETTINGS, batch_size=5)))
    sentence, kind = describe_need(SETTINGS, room)
    assert kind == "warning"
    assert "What fits: batch 5 or crop 384 × 576 or model mit_b" in sentence
    assert not fits(replace(SETTINGS, batch_size=6), room)
    for crop, expected in (((384, 576), True), ((448, 640), False)):
        assert fits(replace(SETTINGS, model=replace(SETTINGS.model, crop_size=crop)), room) is expected


def test_card_that_suffices_and_card_that_never_does():
    assert describe_need(SETTINGS, card(memory_of(SETTINGS)))[1] == "success"
    sentence, kind = describe_need(SETTINGS, card(2**20))
    assert (kind, "Nothing fits" in sentence) == ("warning", True)


def test_card_with_the_most_free_memory_counts(monkeypatch: pytest.MonkeyPatch):
    free = [(1, 10), (7, 8), (3, 12)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: free[index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    assert best_card() == GraphicsCard("GPU 1", 7, 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert best_card() is None


@pytest.mark.parametrize("there", [None, card(memory_of(SETTINGS)), card(2**20)])
def test_nothing_is_said_of_a_time_that_nobody_measured(there: GraphicsCard | None):
    texts = [describe_need(SETTINGS, there)[0], *(preset.description for preset in presets().values())]
    assert not [text for text in texts if re.search(r"\b(second|minute|hour|day|week)s?\b", text)]

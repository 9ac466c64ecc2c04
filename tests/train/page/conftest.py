"""Cards that several tests look at: the SDK takes each widget's id once in a process."""

from collections.abc import Iterator

import pytest

from train.page import settings as hyperparameters
from train.page.monitor import MonitorCard
from train.page.settings import SettingsSelector
from train.settings.training import DEFAULT_YAML


@pytest.fixture(scope="session")
def card() -> MonitorCard:
    """The card of a running training, without an instance."""
    environment = {"SERVER_ADDRESS": "http://127.0.0.1:1", "API_TOKEN": "x" * 128, "TEAM_ID": "1", "ENV": "development"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return MonitorCard({})


@pytest.fixture(scope="session")
def settings_selector() -> Iterator[SettingsSelector]:
    """The settings card, which waits less for who types."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hyperparameters, "_PAUSE_S", 0.01)
        yield SettingsSelector(DEFAULT_YAML.read_text(encoding="utf-8"), {"model_benchmark": True})

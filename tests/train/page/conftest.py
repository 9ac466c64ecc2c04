"""Cards that several tests look at: the SDK takes each widget's id once in a process."""

import pytest

from train.page.monitor import MonitorCard


@pytest.fixture(scope="session")
def card() -> MonitorCard:
    """The card of a running training, without an instance."""
    environment = {"SERVER_ADDRESS": "http://127.0.0.1:1", "API_TOKEN": "x" * 128, "TEAM_ID": "1", "ENV": "development"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return MonitorCard({})

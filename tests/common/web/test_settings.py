"""What both apps read of the environment."""

import pytest

from common.hrda.checks import SettingsError
from common.web.settings import DoorSettings


@pytest.mark.parametrize("token", ["", "short", "with a space in it", "sixteen-lettérs!", "new\nline-and-more-of-it"])
def test_token_that_protects_nothing_is_refused_without_repeating_it(token):
    with pytest.raises(SettingsError, match="HRDA_API_TOKEN must be at least 16") as refused:
        DoorSettings.from_environment({"HRDA_API_TOKEN": token})
    assert not token or token not in str(refused.value)


def test_variables_of_the_other_app_are_passed_over_and_mistyped_ones_are_not():
    assert DoorSettings.from_environment({"HRDA_WORKERS": "3"}, others_too=True) == DoorSettings()
    with pytest.raises(SettingsError, match="did you mean 'HRDA_API_TOKEN'"):
        DoorSettings.from_environment({"HRDA_API_TOKN": "x"}, others_too=True)
    with pytest.raises(SettingsError, match="Unknown variable 'HRDA_WORKERS'"):
        DoorSettings.from_environment({"HRDA_WORKERS": "3"})

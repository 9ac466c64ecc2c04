"""How files of results are called, and which formats there are."""

import pytest

from common.hrda.checks import SettingsError
from serve.batch.outputs import FORMATS, chosen_formats
from serve.batch.result import result_names
from serve.errors import RequestError


def test_name_is_that_of_the_photo_without_its_suffix_unless_another_has_it():
    photos = ["a.jpg", "b.jpg", "b.PNG", "night/a.jpg", "night/A.png", "night/c", "d.jpg", "d.jpg.png", "e.jpg.png"]
    names = result_names(photos)
    assert len({name.casefold() for name in names.values()}) == len(photos)
    assert names == {
        "a.jpg": "a",
        "b.jpg": "b.jpg",
        "b.PNG": "b.PNG",
        "night/a.jpg": "night/a.jpg",
        "night/A.png": "night/A.png",
        "night/c": "night/c",
        "d.jpg": "d",
        "d.jpg.png": "d.jpg.png",
        "e.jpg.png": "e.jpg",
    }


def test_formats_are_chosen_by_a_list_of_names():
    assert [each.name for each in chosen_formats("overlay, masks,overlay")] == ["overlay", "masks"]
    assert all(name == each.name for name, each in FORMATS.items())
    with pytest.raises(SettingsError, match="Unknown format 'mask': did you mean 'masks'"):
        chosen_formats("mask")
    with pytest.raises(SettingsError, match="at least one of masks"):
        chosen_formats(" , ")


def test_format_whose_package_is_not_there_says_what_to_install(monkeypatch):
    monkeypatch.setattr("serve.batch.outputs.find_spec", lambda name: None)
    lacking = [each for each in FORMATS.values() if each.packages]
    for each in lacking:
        with pytest.raises(RequestError, match=rf"{each.name} needs {each.packages[0]}.*requirements-batch\.txt"):
            chosen_formats(each.name)

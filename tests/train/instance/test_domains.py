"""The domains of an app state: read strictly, and looked up before anything is downloaded."""

from types import SimpleNamespace

import pytest

from train.instance.domains import (
    Domain,
    FoundDomain,
    InputError,
    Inputs,
    check_apart,
    download,
    find,
    overlap_with_target,
)

SOURCE, TARGET, VALIDATION = 1, 2, 3
STATE = {
    "source": {"project_id": SOURCE, "dataset_ids": [10]},
    "target": {"project_id": TARGET, "dataset_ids": None},
    "validation": {"project_id": VALIDATION, "dataset_ids": [30, 31]},
}


class Instance:
    """The part of the SDK's `Api` that finds projects and datasets."""

    def __init__(self) -> None:
        self.datasets = {
            SOURCE: [([], 10, "ds", 3), ([], 11, "more", 1)],
            TARGET: [([], 20, "ds", 2)],
            VALIDATION: [([], 30, "road", 0), (["road"], 31, "night", 2), ([], 32, "empty", 0)],
            4: [([], 40, "clips", 5)],
        }
        self.project = SimpleNamespace(get_info_by_id=self.find)
        self.dataset = SimpleNamespace(tree=self.tree)

    def find(self, number: int) -> SimpleNamespace | None:
        kind = "videos" if number == 4 else "images"
        return SimpleNamespace(id=number, name=f"project {number}", type=kind) if number in self.datasets else None

    def tree(self, number: int):
        for parents, dataset_id, name, count in self.datasets[number]:
            yield parents, SimpleNamespace(id=dataset_id, name=name, images_count=count)


def test_domains_survive_the_way_to_an_app_state_and_back():
    inputs = Inputs.from_state(STATE, SOURCE)
    assert inputs.to_state() == STATE
    assert Inputs.from_state(inputs.to_state(), SOURCE) == inputs
    without_target = Inputs.from_state({**STATE, "target": None}, SOURCE)
    assert without_target.target is None
    assert Inputs.from_state(without_target.to_state(), SOURCE) == without_target


def test_labelled_part_of_the_target_survives_the_way_and_may_be_left_out():
    state = {**STATE, "labelled_target": {"project_id": TARGET, "dataset_ids": [20]}}
    inputs = Inputs.from_state(state, SOURCE)
    assert inputs.labelled_target == Domain(TARGET, (20,))
    assert inputs.to_state() == state
    for left_out in (STATE, {**STATE, "labelled_target": None}):
        assert Inputs.from_state(left_out, SOURCE).labelled_target is None
    assert list(find(Instance(), inputs)) == ["source", "target", "validation", "labelled_target"]


def test_that_nothing_is_labelled_survives_the_way_and_needs_a_target():
    state = {**STATE, "validation": "none"}
    inputs = Inputs.from_state(state, SOURCE)
    assert inputs.validation is None and inputs.to_state() == state
    assert list(find(Instance(), inputs)) == ["source", "target"]
    with pytest.raises(InputError, match="networks are compared on the target: choose a target too"):
        Inputs.from_state({**state, "target": None}, SOURCE)


def test_source_is_the_launched_project_unless_named():
    assert Inputs.from_state({"validation": {"project_id": 3}}, 7).source == Domain(7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validation": None}, "No validation project is named"),
        ({"source": {"project_id": 2}}, "The source must be the project that the app was started on, 1"),
        ({"target": {"project": 2}}, "input.target must look like"),
        ({"target": {"project_id": "2"}}, "project_id is a whole number. Received: '2'"),
        ({"target": {"project_id": True}}, "project_id is a whole number. Received: True"),
        ({"target": {"project_id": 2, "dataset_ids": []}}, "a list of at least one"),
        ({"target": 2}, "input.target must look like"),
        ({"labelled_target": {"project": 2}}, "input.labelled_target must look like"),
        ({"test": {"project_id": 2}}, "Unknown key 'test' in input"),
    ],
)
def test_unclear_domain_is_refused(change: dict, message: str):
    with pytest.raises(InputError) as error:
        Inputs.from_state({**STATE, **change}, SOURCE)
    assert message in str(error.value)


def test_state_without_domains_shows_what_one_looks_like():
    with pytest.raises(InputError, match='input = {"source": {"project_id": 1}'):
        Inputs.from_state(None, SOURCE)


def test_chosen_datasets_are_found_by_path():
    found = find(Instance(), Inputs.from_state(STATE, SOURCE))
    assert {role: list(domain.datasets) for role, domain in found.items()} == {
        "source": ["ds"],
        "target": ["ds"],
        "validation": ["road", "road/night"],
    }
    assert [domain.images_count for domain in found.values()] == [3, 2, 2]


@pytest.mark.parametrize(
    ("role", "domain", "message"),
    [
        ("target", Domain(9), "There is no project 9 for the target"),
        ("target", Domain(4), "Project 4 'project 4' (target) holds videos"),
        ("validation", Domain(3, (33,)), "has no dataset 33. Its datasets: 30 'road', 31 'road/night', 32 'empty'"),
        ("validation", Domain(3, (32,)), "The datasets of the validation in project 3 'project 3' hold no images"),
        ("validation", Domain(1), "Source and validation share dataset 'ds' of project 'project 1'"),
        ("labelled_target", Domain(9), "There is no project 9 for the labelled target"),
        ("labelled_target", Domain(3, (31,)), "Labelled target and validation share dataset 'road/night'"),
    ],
)
def test_domain_that_cannot_be_used_is_refused(role: str, domain: Domain, message: str):
    domains = {"source": Domain(1, (10,)), "target": Domain(2), "validation": Domain(3), role: domain}
    with pytest.raises(InputError) as error:
        find(Instance(), Inputs(**domains))
    assert message in str(error.value)


def test_datasets_of_one_project_may_be_source_and_validation():
    found = find(Instance(), Inputs(Domain(1, (10,)), None, Domain(1, (11,))))
    assert set(found) == {"source", "validation"}
    assert overlap_with_target(found) is None


def test_overlap_with_target_is_told_and_allowed():
    found = find(Instance(), Inputs(Domain(1), Domain(3), Domain(3, (31,))))
    assert overlap_with_target(found) == "Target and validation share dataset 'road/night' of project 'project 3'."


def test_what_a_mode_learns_from_is_not_measured_on():
    found = find(Instance(), Inputs(Domain(1), Domain(3), Domain(3, (31,))))
    check_apart(found, "uda")
    with pytest.raises(InputError, match="Target and validation share dataset 'road/night' of project 'project 3'"):
        check_apart(found, "supervised")


def test_unwritable_cache_does_not_stop_a_download(monkeypatch, tmp_path):
    """Outside of an agent the cache's folder is /apps_cache, which an ordinary user cannot make."""
    calls = []

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("/apps_cache")

    monkeypatch.setattr("train.instance.domains.download_using_cache", refuse)
    monkeypatch.setattr("train.instance.domains.download_fast", lambda *given, **named: calls.append((given, named)))
    domain = FoundDomain(SimpleNamespace(id=1), {"ds": SimpleNamespace(id=10)})
    download("api", domain, tmp_path / "source", use_cache=True, progress=print)
    assert calls == [(("api", 1, str(tmp_path / "source"), [10]), {"progress_cb": print, "save_image_info": True})]

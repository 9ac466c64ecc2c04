"""The card of the domains against a sandbox: what it says at once, what wins, and what it restores."""

import base64
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import requests
import supervisely as sly
from fastapi.testclient import TestClient
from supervisely.app import DataJson, StateJson
from supervisely.app.fastapi import _MainServer

from common.data.images import decode_image
from sandbox.testing import Sandbox, running_sandbox
from train.instance.domains import Domain, InputError, Inputs
from train.instance.facts import DomainFacts, Superseded, domain_facts
from train.page import domains
from train.page.domains import DomainSelector

LIMIT_S = 30
CRACK = sly.ProjectMeta([sly.ObjClass("crack", sly.Bitmap)])


@pytest.fixture(scope="module")
def projects(tmp_path_factory) -> Iterator[dict[str, sly.ProjectInfo]]:
    """Projects of one image a dataset; `source` has a dataset `night` nested in `road`, and `<b>` needs escaping."""
    with running_sandbox(tmp_path_factory.mktemp("state")) as sandbox, pytest.MonkeyPatch.context() as patch:
        for name, value in sandbox.env(SUPERVISELY_PUBLIC_API_RETRIES=1).items():
            patch.setenv(name, value)
        api = sly.Api(sandbox.address, sandbox.token, ignore_task_id=True)
        made = {}
        for name, side, labelled in (("source", 20, True), ("target", 50, False), ("labelled", 20, True)):
            made[name] = add_project(api, sandbox, name, side, labelled)
        parent = api.dataset.get_list(made["source"].id)[0]
        add_image(api, api.dataset.create(made["source"].id, "night", parent_id=parent.id).id, 20, True)
        renamed = add_project(api, sandbox, "<b>", 20, False)
        api.project.update_meta(renamed.id, sly.ProjectMeta([sly.ObjClass("<i>crack", sly.Bitmap)]))
        made["<b>"] = renamed
        yield {name: api.project.get_info_by_id(project.id) for name, project in made.items()}


def test_photos_with_labels_show_them_in_the_colour_of_their_class(card, projects):
    card.set_inputs(Inputs(Domain(projects["source"].id), None, Domain(projects["labelled"].id)))
    assert card.wait(LIMIT_S)
    for role in ("source", "validation"):
        url = DataJson()[f"{role}_photo_1"]["url"]
        picture = decode_image(base64.b64decode(url.removeprefix("data:image/jpeg;base64,")), "a picture")
        colour = np.array(CRACK.get_obj_class("crack").color)
        labelled, rest = picture[0].mean(axis=0), picture[-1].mean(axis=0)
        # JPEG blurs the colours of a row of one pixel, and keeps its brightness.
        assert labelled.mean() > 0.3 * colour.mean()
        assert rest.max() < 25, "the photos are black"
        assert "Share of pixels: crack" in DataJson()[f"{role}_shares"]["text"]


def test_missing_target_is_said_at_the_target_at_once_and_forgotten_once_chosen(card, projects):
    card.use_missing(lambda: None if card.has_target else "Mode <uda> needs target photos.")
    card.on_choice(card.show_missing)
    card.set_inputs(Inputs(Domain(projects["source"].id), None, Domain(projects["labelled"].id)))
    assert DataJson()["target_missing"]["text"] == "Mode &lt;uda&gt; needs target photos."
    assert DataJson()["target_missing"]["status"] == "warning"
    inputs = Inputs(Domain(projects["source"].id), Domain(projects["target"].id), Domain(projects["labelled"].id))
    card.set_inputs(inputs)
    assert DataJson()["target_missing"]["text"] == ""
    card.use_missing(lambda: None)


def add_project(api: sly.Api, sandbox: Sandbox, name: str, side: int, labelled: bool) -> sly.ProjectInfo:
    project = api.project.create(sandbox.workspace_id, name)
    api.project.update_meta(project.id, CRACK)
    add_image(api, api.dataset.create(project.id, "road").id, side, labelled)
    return project


def add_image(api: sly.Api, dataset_id: int, side: int, labelled: bool) -> None:
    image = api.image.upload_np(dataset_id, "one.png", np.zeros((side, side, 3), np.uint8))
    if labelled:
        mask = np.zeros((side, side), bool)
        mask[0] = True
        label = sly.Label(sly.Bitmap(mask), CRACK.get_obj_class("crack"))
        api.annotation.upload_ann(image.id, sly.Annotation((side, side), [label]))


@pytest.fixture(scope="module")
def card(projects) -> DomainSelector:
    """One for all tests: the ids of its widgets are fixed, so there can be only one in a process."""
    return DomainSelector(projects["source"], {})


@pytest.fixture
def page(card) -> "Page":
    return Page(card)


class Page:
    """The card as a browser has it: state that is sent, data that is shown."""

    def __init__(self, card: DomainSelector) -> None:
        self.card = card
        self._client = TestClient(_MainServer().get_server())

    def change(self, widget_id: str, key: str, value: object, *, wait: bool = True) -> None:
        StateJson()[widget_id][key] = value
        assert self._client.post(f"/{widget_id}/value_changed").status_code == 200
        if wait:
            assert self.card.wait(LIMIT_S)

    def choose(self, **projects: sly.ProjectInfo | None) -> None:
        for role, project in projects.items():
            self.change(f"{role}_project", "value", project and project.id)

    def text(self, widget_id: str) -> str:
        return DataJson()[widget_id]["text"]

    def problems(self, role: str) -> list[tuple[str, str]]:
        ids = [
            f"{role}_{kind}_{number}"
            for kind, count in (("error", 3), ("warning", 5))
            for number in range(1, count + 1)
        ]
        return [(one["status"], one["text"]) for one in (DataJson()[name] for name in ids) if one["text"]]


@pytest.fixture
def _nothing_known(card, monkeypatch) -> None:
    monkeypatch.setattr(card, "_known", {})


@pytest.fixture(autouse=True)
def _nothing_chosen(card, projects) -> None:
    card.set_inputs(Inputs(Domain(projects["source"].id), None, Domain(projects["labelled"].id)))
    assert card.wait(LIMIT_S)


def test_facts_are_shown_for_each_domain(page, projects):
    page.choose(target=projects["labelled"], validation=projects["labelled"])
    assert page.text("source_facts") == "2 images, 2 labelled, 20 × 20 pixels."
    assert page.text("source_shares") == "Share of pixels: crack 5 %. Counted on 2 of 2 images."
    assert page.text("validation_facts") == "1 image, 1 labelled, 20 × 20 pixels."
    urls = [DataJson()[f"source_photo_{number}"]["url"] for number in range(1, 5)]
    assert [bool(url) for url in urls] == [True, True, False, False]
    url = DataJson()["target_photo_1"]["url"]
    assert requests.get(url, timeout=10).headers["content-type"] == "image/jpeg", "without a token, as browsers ask"
    assert page.card.facts("validation").labelled_images == 1


def test_problems_are_said_beside_the_selector_that_causes_them(page, projects):
    page.choose(target=projects["target"], validation=projects["target"])
    [overlap, size] = page.problems("target")
    assert overlap == ("warning", "Target and validation share dataset 'road' of project 'target'.")
    assert size[0] == "warning"
    assert "50 against 20 pixels" in size[1]
    [error, size] = page.problems("validation")
    assert error == ("error", "No image of the validation has labels. Choose others, or label some.")
    assert page.problems("source") == []
    page.choose(target=None, validation=projects["labelled"])
    assert page.problems("target") == page.problems("validation") == []
    assert page.text("target_note") == "Choose a project. Training without adaptation needs none."


def test_measuring_on_the_source_is_an_error_until_other_datasets_are_chosen(page, projects):
    page.choose(validation=projects["source"])
    assert [kind for kind, _ in page.problems("validation")] == ["error"]
    assert not page.card.validate_step()
    assert "Source and validation share datasets 'road', 'road/night'" in page.text(page.card.validator_text.widget_id)
    road, night = (item for item in page.card.widgets_to_disable[1].get_all_items())
    page.change("source_all", "checked", False)
    page.change("source_tree", "value", [{"id": road.id, "label": "road"}])
    page.change("validation_all", "checked", False)
    assert [item["id"] for item in StateJson()["validation_tree"]["value"]] == [road.id, night.id], "to untick from"
    page.change("validation_tree", "value", [{"id": night.id, "label": "night"}])
    assert page.problems("validation") == []
    assert page.card.validate_step()
    project_id = projects["source"].id
    assert page.card.get_inputs() == Inputs(Domain(project_id, (road.id,)), None, Domain(project_id, (night.id,)))


def test_target_that_is_measured_on_is_an_error_where_it_is_learnt_from(page, projects):
    page.choose(target=projects["labelled"], validation=projects["labelled"])
    assert page.card.measured_target("uda") is None
    assert page.card.measured_target("supervised").startswith("Target and validation share dataset 'road'")
    page.choose(target=projects["target"])
    assert page.card.measured_target("supervised") is None


def test_no_dataset_is_an_error_at_once(page):
    page.change("validation_all", "checked", False)
    page.change("validation_tree", "value", [])
    assert page.problems("validation") == [("error", "Choose at least one dataset of the validation.")]
    with pytest.raises(InputError, match="at least one dataset of the validation"):
        page.card.get_inputs()
    page.change("validation_all", "checked", True)
    assert page.problems("validation") == []


def test_datasets_of_the_project_before_are_not_taken_for_the_new_one(page, projects):
    """A browser that is slow to hear of the new project sends the old choice once more."""
    page.change("validation_all", "checked", False)
    old = StateJson()["validation_tree"]["value"]
    page.choose(validation=projects["target"])
    page.change("validation_tree", "value", old)
    assert page.problems("validation") == [("error", "Choose at least one dataset of the validation.")]


def test_names_from_the_instance_are_text_and_not_markup(page, projects):
    page.choose(target=projects["<b>"], validation=projects["<b>"])
    [(_, sentence), *_] = page.problems("target")
    assert "of project '&lt;b&gt;'" in sentence


def test_choice_survives_an_app_state(page, projects):
    road = page.card.widgets_to_disable[1].get_all_items()[0].id
    for inputs in (
        Inputs(Domain(projects["source"].id, (road,)), Domain(projects["target"].id), Domain(projects["labelled"].id)),
        Inputs(
            Domain(projects["source"].id),
            None,
            Domain(projects["labelled"].id),
            Domain(projects["source"].id, (road,)),
        ),
        Inputs(Domain(projects["source"].id), None, Domain(projects["labelled"].id)),
    ):
        page.card.set_inputs(Inputs.from_state(inputs.to_state(), projects["source"].id))
        assert page.card.get_inputs() == inputs
        assert page.card.validate_step()
        assert DataJson()["source_tree"]["hide"] is (inputs.source.dataset_ids is None), "the choice can be seen"


def test_who_has_no_labelled_photos_says_so_and_needs_a_target(page, projects):
    page.choose(target=None, validation=None)
    with pytest.raises(InputError, match="Choose a validation project"):
        page.card.get_inputs()
    [declined] = [item for item in DataJson()["validation_project"]["items"] if item["label"].startswith("I have no")]
    page.change("validation_project", "value", declined["value"])
    assert not page.card.validate_step()
    assert "choose a target too" in page.text(page.card.validator_text.widget_id)
    page.choose(target=projects["target"])
    inputs = page.card.get_inputs()
    assert inputs.validation is None and page.card.validate_step()
    assert "validation" not in page.text(page.card.validator_text.widget_id)
    page.choose(validation=projects["labelled"])
    page.card.set_inputs(Inputs.from_state(inputs.to_state(), projects["source"].id))
    assert page.card.get_inputs() == inputs


def test_labelled_part_of_the_target_is_read_with_its_labels_and_kept_apart_from_the_validation(page, projects):
    page.choose(labelled_target=projects["source"])
    assert page.text("labelled_target_facts") == "2 images, 2 labelled, 20 × 20 pixels."
    assert page.card.get_inputs().labelled_target == Domain(projects["source"].id)
    assert page.card.validate_step()
    assert "2 labelled target" in page.text(page.card.validator_text.widget_id)
    page.choose(labelled_target=projects["target"])
    assert page.problems("labelled_target")[0] == (
        "error", "No image of the labelled target has labels. Choose others, or label some."
    )  # fmt: skip
    page.choose(labelled_target=projects["labelled"])
    [(kind, sentence)] = page.problems("validation")
    assert (kind, sentence[:36]) == ("error", "Labelled target and validation share")
    assert not page.card.validate_step()
    page.choose(labelled_target=None)
    assert page.card.get_inputs().labelled_target is None


def test_project_of_another_workspace_is_restored(page, projects, monkeypatch):
    api = sly.Api.from_env()
    workspace = api.workspace.create(projects["source"].team_id, "elsewhere")
    strange = api.project.create(workspace.id, "strange")
    page.card.set_inputs(Inputs(Domain(projects["source"].id), Domain(strange.id), Domain(projects["labelled"].id)))
    assert page.card.get_inputs().target == Domain(strange.id)
    assert "strange" in [item["label"] for item in DataJson()["target_project"]["items"]]
    assert page.card.wait(LIMIT_S)
    assert "hold no images" in page.problems("target")[0][1]


@pytest.mark.usefixtures("_nothing_known")
def test_newer_choice_wins_over_one_that_is_still_read(page, projects, monkeypatch):
    reading, ended = threading.Event(), threading.Event()

    def slow(api: sly.Api, domain: object, *, is_stale: Callable[[], bool], **given: object) -> DomainFacts:
        if domain.project.id != projects["target"].id:
            return domain_facts(api, domain, is_stale=is_stale, **given)
        reading.set()
        while not is_stale():
            ended.wait(0.01)
        ended.set()
        raise Superseded

    monkeypatch.setattr(domains, "domain_facts", slow)
    page.change("validation_project", "value", projects["target"].id, wait=False)
    assert reading.wait(LIMIT_S)
    assert page.text("validation_note") == "Reading…"
    assert page.card.facts("validation") is None
    assert page.card.facts("source") is not None, "what has not changed is known"
    page.change("validation_project", "value", projects["labelled"].id)
    assert ended.is_set()
    assert page.text("validation_facts") == "1 image, 1 labelled, 20 × 20 pixels."


def test_facts_are_read_once_for_the_same_datasets(page, projects, monkeypatch):
    page.choose(validation=projects["target"])
    monkeypatch.setattr(domains, "domain_facts", None)
    page.choose(validation=projects["labelled"])
    assert page.text("validation_facts") == "1 image, 1 labelled, 20 × 20 pixels."


@pytest.mark.usefixtures("_nothing_known")
@pytest.mark.parametrize("error", [requests.ConnectionError("no route"), KeyError("images")])
def test_instance_that_fails_is_said_and_tried_again(page, projects, monkeypatch, error):
    def fail(*given: object, **named: object) -> DomainFacts:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(domains, "domain_facts", fail)
        page.choose(target=projects["<b>"])
    [(kind, sentence)] = page.problems("target")
    assert kind == "error"
    assert sentence.startswith("The instance does not answer as expected: ")
    assert page.text("target_note") == page.text("target_facts") == ""
    page.choose(target=projects["<b>"])
    assert page.problems("target") == []
    assert page.text("target_facts").startswith("1 image")


def test_instance_that_is_away_at_the_button_is_said(page, monkeypatch):
    def away(*_: object) -> None:
        raise requests.ConnectionError("no route")

    monkeypatch.setattr(domains, "find", away)
    assert not page.card.validate_step()
    assert "The instance does not answer as expected: no route" in page.text(page.card.validator_text.widget_id)


def test_readers_of_facts_are_called_at_once_and_after_each_change(page, projects):
    seen = []
    page.card.on_change(lambda: seen.append(page.card.facts("validation")))
    assert [facts.labelled_images for facts in seen] == [1]
    page.choose(validation=projects["target"])
    assert [facts.labelled_images for facts in seen] == [1, 0]

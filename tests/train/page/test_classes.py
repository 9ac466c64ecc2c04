"""The card of the classes: counts of source and validation beside each other, and what is missing said."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import supervisely as sly
from supervisely.app import DataJson

from sandbox.testing import running_sandbox
from train.instance.facts import ClassFacts, DomainFacts
from train.page.classes import AnyShapeClassesSelector, class_rows


def facts(**classes: ClassFacts) -> DomainFacts:
    return DomainFacts(
        images=9, labelled_images=8, sized_images=9, smallest=None, largest=None, median_long_edge=None, classes=classes
    )


SOURCE = facts(crack=ClassFacts(8, 20, 0.0123), joint=ClassFacts(2, 2, 0.25), stain=ClassFacts(0, 0, 0.0))
VALIDATION = facts(crack=ClassFacts(5, 9, 0.00001), joint=ClassFacts(0, 0, None))


def test_rows_compare_source_and_validation():
    assert class_rows(SOURCE, VALIDATION) == [
        ["crack", "8", "1.2 %", "5", "below 0.01 %", "rare"],
        ["joint", "2", "25 %", "0", "", "no labels in validation"],
        ["stain", "0", "0 %", "0", "", "no labels in source, no labels in validation"],
    ]


def test_what_is_not_known_is_left_empty():
    assert class_rows(SOURCE, None)[1] == ["joint", "2", "25 %", "", "", ""]
    assert class_rows(None, VALIDATION)[0] == ["crack", "", "", "5", "below 0.01 %", ""]


def test_names_are_text_and_not_markup():
    assert class_rows(facts(**{"<b>": ClassFacts(1, 1, 0.5)}), None)[0][0] == "&lt;b&gt;"


@pytest.fixture(scope="module")
def card(tmp_path_factory) -> Iterator[AnyShapeClassesSelector]:
    """One for all tests: the ids of its widgets are fixed, so there can be only one in a process."""
    with running_sandbox(tmp_path_factory.mktemp("state")) as sandbox, pytest.MonkeyPatch.context() as patch:
        for name, value in sandbox.env(SUPERVISELY_PUBLIC_API_RETRIES=1).items():
            patch.setenv(name, value)
        api = sly.Api(sandbox.address, sandbox.token, ignore_task_id=True)
        project = api.project.create(sandbox.workspace_id, "classes")
        shapes = {"crack": sly.Bitmap, "joint": sly.Rectangle, "soft": sly.AlphaMask, "axis": sly.Polyline}
        api.project.update_meta(project.id, sly.ProjectMeta([sly.ObjClass(*one) for one in shapes.items()]))
        model_selector = SimpleNamespace(models=[{"meta": {"task_type": "semantic segmentation"}}])
        yield AnyShapeClassesSelector(project.id, [], model_selector, {})


def test_every_shape_with_an_area_is_offered(card):
    assert set(card.get_selected_classes()) == {"crack", "joint", "soft"}


def test_counts_are_shown_once_they_are_known(card):
    field = card._counts_field.widget_id
    card.set_facts(None, None)
    assert DataJson()[field]["hide"] is True
    card.set_facts(SOURCE, VALIDATION)
    assert DataJson()[field]["hide"] is False
    assert [row[0] for row in DataJson()["classes_counts"]["table_data"]["data"]] == ["crack", "joint", "stain"]


def test_chosen_class_without_labels_is_warned_of(card):
    card.set_facts(SOURCE, VALIDATION)
    card.set_classes(["crack"])
    assert card.validate_step()
    assert (card.validator_text.text, card.validator_text.status) == ("Classes: crack.", "success")
    card.set_classes(["crack", "joint"])
    assert card.validate_step(), "the photos decide, which are only here later"
    assert "No labels of the class 'joint' in the validation: how well it is found is not measured." in (
        card.validator_text.text
    )
    assert card.validator_text.status == "warning"


def test_all_classes_without_labels_are_named_at_once(card):
    card.set_facts(facts(crack=ClassFacts(8, 20, 0.01)), facts())
    card.set_classes(["crack", "joint", "soft"])
    assert card.validate_step()
    assert card.validator_text.text == (
        "Classes: crack, joint, soft. No labels of the classes 'joint', 'soft' in the source: leave them out, or label "
        "some. No labels of the class 'crack' in the validation: how well it is found is not measured."
    )


def test_classes_to_ignore_are_chosen_on_the_card_and_shown_as_the_yaml_has_them(card):
    heard = []
    card.on_ignored(heard.append)
    widget = card._ignored_select
    card.show_ignored(["soft", "of the validation"])
    offered = [item["value"] for item in DataJson()["ignored_classes"]["items"]]
    assert (widget.get_value(), set(offered)) == (
        ["soft", "of the validation"],
        {"crack", "joint", "soft", "axis", "of the validation"},
    )
    widget._value_changed_callback(["soft", "of the validation"])
    assert heard == [], "what was sent to the browser is no choice"
    widget._value_changed_callback(["soft"])
    assert heard == [["soft"]]
    card.set_facts(None, None)
    card.set_classes(["crack", "soft"])
    assert not card.validate_step()
    assert (
        "Chosen and ignored at once: the class 'soft'. Untick it in one of the two lists." in card.validator_text.text
    )
    card.set_classes(["crack"])
    assert card.validate_step()
    card.show_ignored([])


def test_class_called_background_is_offered_to_be_the_background(card, monkeypatch):
    monkeypatch.setattr(card, "get_selected_classes", lambda: ["crack", "Background"])
    card.set_facts(None, None)
    assert card.validate_step()
    assert "'Background' would be trained as a class of its own" in card.validator_text.text
    assert card.validator_text.status == "warning"


def test_no_class_is_refused(card):
    card.classes_table.clear_selection()
    assert not card.validate_step()
    assert card.validator_text.text == "Choose at least one class besides the background."

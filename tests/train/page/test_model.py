"""The card of the model against a sandbox: memory of each network, experiments and checkpoints of the former app."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import supervisely as sly
import torch
from fastapi.testclient import TestClient
from supervisely.app import DataJson, StateJson
from supervisely.app.fastapi import _MainServer
from supervisely.nn.training.train_app import TrainApp

from common.hrda import ModelSettings, SettingsError, build_segmentor
from common.hrda.catalogue import ENCODERS
from common.hrda.training.memory import count_parameters
from sandbox.testing import Sandbox, running_sandbox
from tests.common.hrda.test_checkpoints import SETTINGS, bundle, former_checkpoint
from tests.weights import NOWHERE, Server, free_to_use, publishing, save
from train.instance.former_checkpoints import find_former_checkpoint, find_former_checkpoints
from train.page import model as model_module
from train.page.encoder_weights import OWN
from train.page.model import LICENCE, MEMORY, HRDAModelSelector
from train.page.start_weights import EXPERIMENTS, FORMER
from train.run.initial_weights import load_initial_weights
from train.settings.training import TrainSettings

MODELS = json.loads((Path(model_module.__file__).parents[1] / "models.json").read_text(encoding="utf-8"))
NARROW = TrainSettings.from_yaml("model: {crop_size: [128, 128], decoder_channels: 16, attention_channels: 16}")
LIMIT_S = 300
OLD, NEW = "/HRDA/11_roads/iter_100.pth", "/HRDA/12_cracks/best.pth"


@dataclass
class Team:
    """A team with two checkpoints of the former app."""

    api: sly.Api
    sandbox: Sandbox
    folder: Path

    def upload(self, path: Path, remote: str) -> None:
        self.api.file.upload(self.sandbox.team_id, str(path), remote)

    def add_experiment(self, task_id: int, metrics: object = None) -> str:
        """File an experiment as another task's training does, with what it says of its scores; returns its folder."""
        folder = f"/experiments/3_cracks/{task_id}_HRDA/"
        info = {
            "experiment_name": f"experiment {task_id}", "framework_name": "HRDA", "model_name": "mit_b0",
            "task_type": "semantic segmentation", "project_id": 3, "task_id": task_id, "model_meta": "model_meta.json",
            "model_files": {"config": "config.yaml"}, "checkpoints": ["checkpoints/best.pth", "checkpoints/last.pth"],
            "best_checkpoint": "best.pth", "hyperparameters": "hyperparameters.yaml", "artifacts_dir": folder,
            "datetime": "2026-01-01 10:00:00", "evaluation_metrics": metrics,
        }  # fmt: skip
        path = self.folder / "experiment_info.json"
        path.write_text(json.dumps(info), encoding="utf-8")
        self.upload(path, f"{folder}experiment_info.json")
        return folder


@pytest.fixture(scope="module")
def team(tmp_path_factory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    with running_sandbox(folder / "state") as sandbox, pytest.MonkeyPatch.context() as patch:
        for name, value in sandbox.env(SUPERVISELY_PUBLIC_API_RETRIES=1).items():
            patch.setenv(name, value)
        team = Team(sly.Api(sandbox.address, sandbox.token, ignore_task_id=True), sandbox, folder)
        original = bundle()
        path = former_checkpoint(folder / "best.pth", original.student, original.teacher, CLASSES=["__bg__", "crack"])
        (folder / "config.py").write_text("raise SystemExit('never run')\n")
        for remote in (OLD, NEW):
            team.upload(path, remote)
            team.upload(folder / "config.py", f"{remote.rpartition('/')[0]}/config.py")
        yield team


@pytest.fixture(scope="module")
def card(team) -> HRDAModelSelector:
    """One for all tests: the ids of its widgets are fixed, so there can be only one in a process."""
    made = HRDAModelSelector(team.api, "HRDA", MODELS, {"model_selector": {"default_model": "mit_b1"}})
    made.compare_networks(True)
    return made


@pytest.fixture(autouse=True)
def first_tab(card) -> None:
    card.set_model_source("Pretrained models")
    card.experiment_selector.choose_experiments()


def column() -> dict[str, str]:
    """The memory column as the page shows it."""
    [rows] = DataJson()["model_table"]["tableData"]["semantic segmentation"].values()
    assert all(list(row)[-1] == "meta" for row in rows)
    return {row["meta"]["model_name"]: row[MEMORY] for row in rows}


def test_every_network_shows_its_memory_which_follows_the_settings(card):
    card.show_settings(NARROW)
    assert card.wait(LIMIT_S)
    small = column()
    assert list(small) == list(ENCODERS)
    sizes = [float(small[f"mit_b{number}"].split()[0]) for number in range(6)]
    assert sizes == sorted(sizes)
    assert card.memory_text.text.startswith("Training mit_b1 with batch 6 and crops of 128 × 128 takes about ")
    assert "no graphics card" in card.memory_text.text

    card.show_settings(
        TrainSettings.from_yaml(
            "model: {crop_size: [512, 512], decoder_channels: 16, attention_channels: 16}\nmode: source-only"
        )
    )
    assert card.wait(LIMIT_S)
    assert float(column()["mit_b0"].split()[0]) > sizes[0]
    assert "crops of 512 × 512" in card.memory_text.text


def test_sentence_follows_the_chosen_network(card):
    card.show_settings(NARROW)
    assert card.wait(LIMIT_S)
    card.pretrained_models_table.set_by_model_name("mit_b4")
    card.show_need()
    assert card.memory_text.text.startswith("Training mit_b4")


def test_networks_that_nobody_can_choose_are_not_worked_out(card):
    """That would take a processor from the training."""
    card.compare_networks(False)
    card.show_settings(NARROW)
    assert card.wait(LIMIT_S)
    chosen = card.get_model_name()
    assert {name for name, memory in column().items() if "GiB" in memory} == {chosen}
    assert card.memory_text.text.startswith(f"Training {chosen} ")
    card.compare_networks(True)
    assert card.wait(LIMIT_S)
    assert all("GiB" in memory for memory in column().values())


def test_sentence_is_of_no_other_network_while_its_own_is_worked_out(card):
    card.show_settings(NARROW)
    # As while the background is still at others.
    card._figures = {}
    card.pretrained_models_table.set_by_model_name("mit_b3")
    card.show_need()
    assert not card.memory_text.text.startswith("Training mit_b") or "mit_b3" in card.memory_text.text
    assert card.wait(LIMIT_S)
    assert card.memory_text.text.startswith("Training mit_b3")


def test_table_says_the_licence_of_the_weights_in_a_word(card):
    [rows] = DataJson()["model_table"]["tableData"]["semantic segmentation"].values()
    licences = {row["Model"]: row[LICENCE] for row in rows}
    for name, spec in ENCODERS.items():
        assert (licences[name] == "non-commercial") == ("non-commercial" in spec.weights_licence)
        assert spec.weights_licence.endswith("non-commercial use only") or spec.weights_licence.startswith(
            licences[name]
        )


def test_page_says_whether_the_card_suffices(card, monkeypatch: pytest.MonkeyPatch):
    graphics_card = model_module.best_card.__globals__["GraphicsCard"]("Some GPU", 2 * 2**30, 3 * 2**30)
    monkeypatch.setattr(model_module, "best_card", lambda: graphics_card)
    card.pretrained_models_table.set_by_model_name("mit_b5")
    card.show_settings(NARROW)
    assert card.wait(LIMIT_S)
    shown = column()
    assert (shown["mit_b0"].endswith(", fits"), shown["mit_b5"].endswith(", does not fit")) == (True, True)
    assert "That does not fit: Some GPU has 2.0 GiB free of 3.0 GiB. What fits: model mit_b" in card.memory_text.text


def test_what_experiments_keep_of_a_network_says_nothing_of_memory(card):
    assert MEMORY not in card.get_model_info()


def test_parameters_in_the_list_are_those_of_the_networks():
    for entry in MODELS[:2]:
        model = build_segmentor(ModelSettings(encoder=entry["meta"]["model_name"]))
        assert f"{count_parameters(model) / 1e6:.1f}" == entry["Parameters (M)"]
        assert f"{count_parameters(model.backbone) / 1e6:.1f}" == entry["Encoder parameters (M)"]


def test_former_checkpoints_are_listed_newest_first_without_other_files(team, card):
    team.upload(team.folder / "best.pth", "/elsewhere/HRDA/best.pth")
    assert [one.path for one in find_former_checkpoints(team.api, team.sandbox.team_id)] == [NEW, OLD]
    items = DataJson()["former_checkpoint"]["items"]
    assert [item["value"] for item in items] == [NEW, OLD]
    assert items[0]["label"].startswith("12_cracks/best.pth (")


@pytest.mark.parametrize("path", [None, 3, "/HRDA/12_cracks/config.py", "/elsewhere/best.pth", "/HRDA/../x/best.pth"])
def test_path_that_is_no_former_checkpoint_is_refused(team, path):
    """Among others it keeps an app state from naming any file of the team."""
    with pytest.raises(ValueError, match="must be a checkpoint of the former HRDA app"):
        find_former_checkpoint(team.api, team.sandbox.team_id, path, [])


def test_missing_former_checkpoint_is_named_with_the_nearest_one(card):
    with pytest.raises(ValueError, match=f"no checkpoint /HRDA/12_cracks/bestt.pth: did you mean '{NEW}'"):
        card.experiment_selector.require_former("/HRDA/12_cracks/bestt.pth")


def test_chosen_former_checkpoint_is_what_the_sdk_starts_from_and_what_the_app_state_says(card):
    assert card.to_state() == {}
    state = {"source": "Custom models", "checkpoint_path": OLD}
    card.choose(state)
    assert card.validate_step()
    assert card.validator_text.text == f"Start from {OLD}."
    assert (card.get_model_source(), card.to_state()) == ("Custom models", state)
    assert (card.get_checkpoint_name(), card.get_checkpoint_link()) == ("iter_100.pth", OLD)
    assert card.get_selected_task_type() == "semantic segmentation"
    card.choose({"source": "Custom models", "task_id": 5, "checkpoint": "best.pth"})
    assert card.to_state() == {}


def test_training_starts_from_the_weights_of_the_chosen_former_checkpoint(team, card, tmp_path: Path):
    """By the SDK's own download, which reads what the card gives out."""
    card.choose({"source": "Custom models", "checkpoint_path": NEW})
    (tmp_path / "models").mkdir()
    app = SimpleNamespace(
        gui=SimpleNamespace(model_selector=card), model_info=card.get_model_info(), team_id=team.sandbox.team_id,
        _api=team.api, model_dir=str(tmp_path / "models"), progress_bar_main=Bar(), progress_bar_secondary=Bar(),
    )  # fmt: skip
    TrainApp._download_custom_model(app)
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["best.pth"], "never its config.py"
    checkpoint, original = Path(app.model_files["checkpoint"]), bundle().student
    torch.manual_seed(1)
    student = build_segmentor(SETTINGS)
    assert "All weights loaded" in load_initial_weights(student, checkpoint, ("__bg__", "crack"))[0]
    assert all(torch.equal(value, original.state_dict()[name]) for name, value in student.state_dict().items())
    more_classes = build_segmentor(ModelSettings(**{**SETTINGS.to_dict(), "num_classes": 4}))
    said = load_initial_weights(more_classes, checkpoint, ("__bg__", "moss", "crack", "stain"))[0]
    assert "kept: __bg__, crack; starting from random weights: moss, stain" in said
    kept = original.backbone.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in more_classes.backbone.state_dict().items())


def test_nothing_to_go_on_from_is_said_instead_of_an_error(team, card):
    """With the SDK's own card the click ends in an AttributeError."""
    card.set_model_source("Custom models")
    assert not card.validate_step()
    assert "Choose an experiment" in card.validator_text.text


def test_what_is_new_since_the_start_of_the_app_is_found(team, card):
    selector = card.experiment_selector
    team.add_experiment(21)
    assert selector.has_experiment(21), "an app state may name it without a click"
    assert not selector.has_experiment(99)
    card.set_model_source("Custom models")
    selector.set_selected_row_by_task_id(21)
    selector.set_selected_checkpoint_by_name("last.pth")
    team.add_experiment(22)
    team.upload(team.folder / "best.pth", "/HRDA/13_new/best.pth")
    selector.refresh()
    assert "2 experiments, 3 checkpoints" in selector.refresh_text.text
    assert DataJson()[selector.table.widget_id]["total"] == 2
    assert selector.get_selected_experiment_info().task_id == 21, "a person's choice is not lost"
    assert selector.get_selected_checkpoint_path().startswith("/experiments/3_cracks/21_HRDA/")
    assert card.get_model_name() == "mit_b0"
    assert "/HRDA/13_new/best.pth" in [item["value"] for item in DataJson()["former_checkpoint"]["items"]]


def test_experiments_are_told_apart_by_name_task_date_and_foreground_iou(team, card):
    """Also where their files say something else than a score there: anybody may have written them."""
    scores = {31: {"mIoU": 0.7, "mBestIoU": 0.4251}, 32: {"mBestIoU": "<b>"}, 33: [1], 34: {"mBestIoU": 0.9}}
    for task_id, metrics in scores.items():
        team.add_experiment(task_id, metrics)
    selector = card.experiment_selector
    selector.refresh()
    shown = {}
    for task_id in scores:
        cells = [json.loads(cell) for cell in selector.get_selected_row_by_task_id(task_id).to_table_row()]
        ids = [[cell["widget_id"], *cell["widgets"]] for cell in cells]
        texts = [" ".join(DataJson()[one].get("text", "") for one in each if one in DataJson()) for each in ids]
        shown[task_id] = dict(zip(selector.COLUMNS, texts, strict=True))
        assert f"experiment {task_id}" in shown[task_id]["EXPERIMENT"] and "mit_b0" in shown[task_id]["EXPERIMENT"]
        assert str(task_id) in shown[task_id]["TASK"] and "2026-01-01" in shown[task_id]["TASK"]
    assert [row["FOREGROUND IOU"] for row in shown.values()] == ["42.5%", "not measured", "not measured", "90.0%"]
    selector.search("experiment 33")
    assert DataJson()[selector.table.widget_id]["total"] == 1
    selector.search("")
    by_iou = selector.COLUMNS.index("FOREGROUND IOU")
    selector.table.sort(by_iou, "desc")
    first = DataJson()[selector.table.widget_id]["data"][0]["items"]
    assert first == selector.get_selected_row_by_task_id(34).to_table_row()


def test_choice_cannot_be_changed_once_the_step_is_done(card):
    ids = ("model_tabs", "model_table", "encoder_weights", "custom_tabs", "former_checkpoint")
    shown = [DataJson()[name] for name in ids]
    for widget in card.widgets_to_disable:
        widget.disable()
    assert all(data["disabled"] for data in shown)
    for widget in card.widgets_to_disable:
        widget.enable()
    assert not any(data["disabled"] for data in shown)


def test_what_is_chosen_at_first_is_what_the_machine_can_train(monkeypatch):
    monkeypatch.setattr(model_module, "best_card", lambda: None)
    assert model_module.first_choice() == "pvt_v2_b0"
    monkeypatch.setattr(model_module, "best_card", lambda: object())
    assert model_module.first_choice() == TrainSettings().model.encoder == "pvt_v2_b2"


def weights_text() -> str:
    shown = DataJson()["encoder_weights_text"]
    return f"{shown['status']}: {shown['text']}"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("PRETRAINED_WEIGHTS_DIR", str(tmp_path / "kept"))
    with publishing(save(tmp_path / "mit_b0.pth", {"weights": torch.zeros(3)}), monkeypatch) as server:
        yield server


def starting(card: HRDAModelSelector, pretrained: str) -> str:
    """What the card answers to a click on Select, with mit_b0 and this setting."""
    card.pretrained_models_table.set_by_model_name("mit_b0")
    card.show_settings(replace(NARROW, pretrained=pretrained))
    is_valid = card.validate_step()
    assert is_valid == (card.validator_text.status != "error")
    return f"{card.validator_text.status}: {card.validator_text.text}"


def test_licence_of_imagenet_weights_is_shown_before_they_are_used(card):
    card.pretrained_models_table.set_by_model_name("mit_b1")
    card.show_settings(replace(NARROW, pretrained="imagenet"))
    assert StateJson()["encoder_weights"]["value"] == "imagenet"
    assert weights_text().startswith("warning: Published weights of mit_b1 (mit_b1_20220624-02e5a6a1.pth of mmseg")
    assert ": about 53 MB, downloaded when" in weights_text()
    assert "non-commercial use only; it holds for the trained model too" in weights_text()
    card.show_settings(replace(NARROW, pretrained="auto"))
    assert StateJson()["encoder_weights"]["value"] == "auto"
    assert weights_text().startswith("warning: Random weights. The published weights of mit_b1 are non-commercial (NV")
    assert weights_text().endswith("are taken only where they are asked for, with pretrained: imagenet.")
    card.pretrained_models_table.set_by_model_name("pvt_v2_b0")
    card.show_network()
    assert weights_text().startswith("info: Published weights of pvt_v2_b0 (pvt_v2_b0.in1k of timm): about 14 MB")
    assert "Licence: apache-2.0 (as timm states it); it holds for the trained model too." in weights_text()
    card.show_settings(replace(NARROW, pretrained="none"))
    assert StateJson()["encoder_weights"]["value"] == "none"
    assert weights_text().startswith("info: Random weights")
    card.show_settings(replace(NARROW, pretrained="/weights/<mine>.pth"))
    assert "/weights/&lt;mine&gt;.pth" in weights_text()
    assert "/weights/<mine>.pth" in [item["value"] for item in DataJson()["encoder_weights"]["items"]]


def test_click_says_whether_the_weights_can_be_had(card, published, tmp_path, monkeypatch):
    assert starting(card, "none") == "success: Model: mit_b0, from random weights."
    answer = starting(card, "auto")
    assert answer.startswith("warning: Model: mit_b0, from random weights. The published weights of mit_b0 are non-")
    assert answer.endswith("with pretrained: imagenet.") and published.asked == []
    assert "from mit_b0_made-" in starting(card, "imagenet")
    free_to_use(monkeypatch)
    for pretrained in ("auto", "imagenet"):
        assert starting(card, pretrained).startswith("success: Model: mit_b0, from mit_b0_made-")
    assert {line.split()[0] for line in published.asked} == {"HEAD"}
    monkeypatch.setenv("PRETRAINED_WEIGHTS_URL", NOWHERE)
    answer = starting(card, "auto")
    assert answer.startswith(
        "warning: Model: mit_b0, from random weights, because the published weights cannot be had."
    )
    assert f"put it at {tmp_path / 'kept'}" in answer
    assert starting(card, "imagenet").startswith("error: ")
    assert starting(card, str(tmp_path / "none.pth")).startswith("error: ")
    assert starting(card, str(tmp_path / "mit_b0.pth")).startswith("success: ")


def test_app_state_is_carried_out_without_asking_a_server(card, published, monkeypatch):
    free_to_use(monkeypatch)
    with card.not_asking():
        assert "of mmsegmentation, if they can be had. Licence of these weights: apache" in starting(card, "auto")
    assert published.asked == []
    card.show_settings(replace(NARROW, pretrained="none"))
    assert card.validator_text.text == "Model: mit_b0, from random weights.", "what was answered follows the settings"
    assert published.asked == []


def test_choice_of_weights_is_told_once_and_refused_with_a_sentence(card):
    told = []

    def tell(pretrained: str) -> None:
        told.append(pretrained)
        raise SettingsError("The YAML is not valid.")

    card.show_settings(replace(NARROW, pretrained="none"))
    card.weights.on_change(tell)
    server = TestClient(_MainServer().get_server())
    for value in ("none", "auto", "auto"):
        StateJson()["encoder_weights"]["value"] = value
        server.post("/encoder_weights/value_changed").raise_for_status()
    assert told == ["auto"]
    assert weights_text() == "error: The YAML is not valid."


def test_file_of_ones_own_is_named_in_the_form(card, tmp_path):
    weights, told = tmp_path / "mine.pth", []
    card.show_settings(NARROW)
    card.weights.choose(OWN, told.append)
    assert not DataJson()["encoder_weights_path"]["hide"]
    assert told == [], "which file is not known yet"
    card.weights.name_file(f" {weights} ", told.append)
    assert told == [str(weights)]
    card.show_settings(replace(NARROW, pretrained=str(weights)))
    assert weights_text().startswith("error: There is no file")
    weights.touch()
    card.show_settings(replace(NARROW, pretrained=str(weights)))
    assert weights_text().startswith(f"info: As the YAML says: {weights}")


def test_tabs_are_those_that_the_page_shows(card):
    assert StateJson()["custom_tabs"]["value"] == EXPERIMENTS
    assert set(DataJson()["custom_tabs"]["tabsOptions"]) == {EXPERIMENTS, FORMER}
    html = str(card.card.to_html())
    assert all(
        name in html
        for name in ("model_table", "model_memory", "encoder_weights", "former_checkpoint", "models_refresh")
    )


class Bar:
    """Takes the place of a progress widget."""

    def __call__(self, **options) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext(self)

    def update(self, count: int) -> None:
        """A part has arrived."""

    def show(self) -> None:
        """Nothing to show."""

    hide = show

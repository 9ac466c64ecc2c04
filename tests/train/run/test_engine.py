import dataclasses
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from common.hrda import Predictor, SettingsError, build_segmentor, load_checkpoint
from common.hrda.settings import ModelSettings
from sandbox.synthetic.projects import write_project
from serve.model.deployment import Deployment
from serve.model.settings import ServeSettings
from train.run import engine, learner
from train.run.engine import ITERATIONS_TIMED, run
from train.run.initial_weights import load_initial_weights
from train.run.learner import class_weights
from train.run.preparation import Domains, PreparedData, check_class_weights
from train.run.readers import TensorBoardScalars
from train.run.request import RunRequest
from train.run.state import (
    CheckpointWritten,
    Finished,
    PhaseChanged,
    Progressed,
    Started,
    Timed,
    TrainingError,
    TrainingState,
    Validated,
)
from train.run.validation import Measurement
from train.settings.training import TrainSettings

SMALL = [
    "iterations=4",
    "batch_size=2",
    "log_interval=1",
    "model.encoder=mit_b0",
    "pretrained=none",
    "model.crop_size=[64, 64]",
    "model.decoder_channels=8",
    "model.attention_channels=8",
    "optimizer.lr=1e-3",
    "optimizer.warmup_iterations=2",
    "data.scale={long_edge: null, short_edge: null}",
    "data.workers=0",
    "validation.interval=2",
    "checkpoint.interval=3",
    "self_training_start=0.5",
    "self_training.pseudo_label_rule=per_class",
    "class_weights={crack: 3}",
]


def settings(*overrides):
    return TrainSettings().with_overrides([*SMALL, *overrides])


class Recorder:
    """A reader that keeps every change; may set an event after an iteration."""

    def __init__(self, stop=None, stop_after=None):
        self.state, self.changes = TrainingState(), []
        self.state.subscribe(self)
        self._stop, self._stop_after = stop, stop_after

    def __call__(self, state, change):
        self.changes.append(change)
        if isinstance(change, Progressed) and change.iteration == self._stop_after:
            self._stop.set()

    def of(self, kind):
        return [change for change in self.changes if isinstance(change, kind)]

    @property
    def phases(self):
        return [change.phase for change in self.of(PhaseChanged)]

    @property
    def scalars(self):
        return {change.iteration: change.scalars for change in self.of(Progressed)}

    @property
    def metrics(self):
        return {change.iteration: change.metrics for change in self.of(Validated)}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    root = tmp_path_factory.mktemp("projects")
    for name, domain, count in (("source", "source", 4), ("target", "real_like", 3), ("val", "real_like", 2)):
        write_project(root / name, domain, count, seed=len(name), size=(96, 80), workers=1)
    return Domains(*(str(root / name) for name in ("source", "target", "val")))


@pytest.fixture(scope="module")
def finished(domains, tmp_path_factory):
    """A complete run: its folder, its result and what a reader heard."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    recorder = Recorder()
    recorder.state.subscribe(TensorBoardScalars(out / "tensorboard"))
    result = run(RunRequest(settings(), domains, out, device="cpu"), state=recorder.state)
    return out, result, recorder


def last_weights(out):
    content = torch.load(out / "checkpoints" / "last.pth", weights_only=True)
    return content["state_dict"], content["teacher_state_dict"]


def assert_same_run(out, other):
    for ours, theirs in zip(last_weights(out), last_weights(other), strict=True):
        different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
        assert not different


def test_checkpoints_hold_all_that_serving_needs_and_no_code(finished):
    out, result, _ = finished
    assert result.checkpoints == [out / "checkpoints" / "best.pth", out / "checkpoints" / "last.pth"]
    assert result.best == result.checkpoints[0]
    assert result.iteration == 4
    for path in result.checkpoints:
        torch.load(path, weights_only=True)
    bundle = load_checkpoint(out / "checkpoints" / "last.pth")
    assert bundle.classes == ("__bg__", "crack")
    assert bundle.palette == ((0, 0, 0), (220, 20, 60))
    assert bundle.teacher is not None
    assert bundle.iteration == 4
    assert bundle.settings["self_training"]["pseudo_label_rule"] == "per_class"
    assert bundle.input_scale is None
    assert TrainSettings.from_yaml((out / "settings.yaml").read_text()) == settings()


def test_state_hears_of_losses_rate_scores_and_files(finished):
    _, result, recorder = finished
    assert recorder.of(Started) == [Started(0, 4)]
    assert list(recorder.scalars) == [1, 2, 3, 4]
    assert recorder.scalars[1]["lr"] == pytest.approx(1e-3 * 1e-6)
    assert recorder.scalars[4]["lr"] == pytest.approx(1e-3 * 0.25)
    assert list(recorder.metrics) == [2, 4]
    for model in ("student", "teacher"):
        for score in ("iou", "f1", "precision", "recall", "f1_2px", "boundary_f1_4px", "cldice", "ods"):
            assert 0 <= recorder.metrics[4][f"{model}/{score}/crack"] <= 1
    assert next(iter(recorder.metrics[4])) == "student/iou/crack"
    assert result.metrics in recorder.metrics.values()
    saved = [(Path(change.path).name, change.iteration) for change in recorder.of(CheckpointWritten)]
    assert ("best.pth", 2) in saved
    assert [iteration for name, iteration in saved if name == "last.pth"] == [3, 4]


def test_each_validation_has_pictures_of_the_same_photos(finished):
    out, _, recorder = finished
    first, second = (change.previews for change in recorder.of(Validated))
    assert [(preview.kind, preview.name) for preview in first] == [(preview.kind, preview.name) for preview in second]
    assert [preview.kind for preview in first] == ["validation"] * 2 + ["target"] * 3
    paths = [Path(path) for preview in first + second for path in preview.pictures.values()]
    assert {path.parent for path in paths} == {out / "previews" / "000002", out / "previews" / "000004"}
    assert all(path.is_file() for path in paths)


def test_phases_come_in_their_order_and_the_end_is_the_last_change(finished):
    _, result, recorder = finished
    assert recorder.phases == ["preparing", "training", "validating", "training", "validating", "training", "saving"]
    assert recorder.changes[-1] == Finished(
        stopped=False,
        iteration=4,
        best=str(result.best),
        checkpoints=tuple(map(str, result.checkpoints)),
        metrics=result.metrics,
    )
    assert (recorder.state.phase, recorder.state.iteration) == ("finished", 4)


def test_self_training_starts_at_its_share_of_the_run(finished):
    _, _, recorder = finished
    assert "loss/augmented" in recorder.scalars[2]
    assert "loss/mixed" not in recorder.scalars[2]
    assert "loss/mixed" in recorder.scalars[3]
    assert "pseudo_label/foreground_share" in recorder.scalars[3]


def test_training_lowers_the_loss_and_the_teacher_lags_behind(domains, tmp_path):
    recorder = Recorder()
    short = settings("mode=source-only", "iterations=12", "log_interval=3", "validation.interval=99")
    run(RunRequest(short, domains, tmp_path, device="cpu"), state=recorder.state)
    assert recorder.scalars[12]["loss/source"] < 0.8 * recorder.scalars[3]["loss/source"]
    student, teacher = last_weights(tmp_path)
    name = "decode_head.head.conv_seg.weight"
    assert not torch.equal(student[name], teacher[name])


def test_first_ten_iterations_of_a_process_tell_what_the_rest_takes(domains, tmp_path):
    """Reports may be hours apart; whoever waits should not have to wait for the second one."""
    few = ["mode=source-only", "log_interval=50", "validation.interval=50", "checkpoint.interval=50"]
    stop, recorder = threading.Event(), Recorder()
    recorder.state.subscribe(lambda _, change: stop.set() if isinstance(change, Timed) else None)
    run(RunRequest(settings("iterations=300", *few), domains, tmp_path, device="cpu"), state=recorder.state, stop=stop)
    resumed = Recorder()
    request = RunRequest(settings("iterations=22", *few), domains, tmp_path, device="cpu", resume=True)
    run(request, state=resumed.state)
    for one, iteration, left in ((recorder, ITERATIONS_TIMED, 290), (resumed, 2 * ITERATIONS_TIMED, 2)):
        [timed] = one.of(Timed)
        assert timed.iteration == iteration
        assert timed.seconds_left == pytest.approx(left * timed.seconds_per_iteration)
        assert timed.seconds_per_iteration > 0
    assert resumed.of(Progressed)[-1].seconds_per_iteration > 0


def test_curves_can_be_opened_with_tensorboard(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, _, _ = finished
    curves = EventAccumulator(str(out / "tensorboard"))
    curves.Reload()
    assert {"loss/source", "loss/mixed", "lr", "validation/teacher/iou/crack"} <= set(curves.Tags()["scalars"])
    assert [point.step for point in curves.Scalars("lr")] == [1, 2, 3, 4]


def test_equal_seeds_give_equal_weights_whatever_prepares_the_batches(domains, finished, tmp_path):
    out, _, _ = finished
    run(RunRequest(settings("data.workers=2", "data.memory_cache_mb=0"), domains, tmp_path, device="cpu"))
    assert_same_run(out, tmp_path)


def test_stopped_and_resumed_run_equals_one_that_never_stopped(domains, finished, tmp_path):
    out, _, _ = finished
    stop = threading.Event()
    first = Recorder(stop, stop_after=3)
    stopped = run(RunRequest(settings(), domains, tmp_path, device="cpu"), state=first.state, stop=stop)
    assert stopped.iteration == 3
    assert (tmp_path / "checkpoints" / "last.pth").is_file()
    second = Recorder()
    resumed = run(RunRequest(settings(), domains, tmp_path, device="cpu", resume=True), state=second.state)
    assert first.state.phase == "stopped"
    assert second.of(Started) == [Started(3, 4)]
    assert list(second.scalars) == [4]
    assert resumed.iteration == 4
    assert_same_run(out, tmp_path)


def test_folder_of_a_run_is_not_overwritten_and_a_complete_run_not_resumed(domains, finished, tmp_path):
    out, _, _ = finished
    with pytest.raises(SettingsError, match="already holds a run"):
        run(RunRequest(settings(), domains, out, device="cpu"))
    with pytest.raises(SettingsError, match="complete after 4 iterations"):
        run(RunRequest(settings(), domains, out, device="cpu", resume=True))
    with pytest.raises(SettingsError, match="no run to resume"):
        run(RunRequest(settings(), domains, tmp_path, device="cpu", resume=True))


def test_resuming_with_another_model_or_a_damaged_file_is_refused(domains, finished, tmp_path):
    out, _, _ = finished
    wider = settings("iterations=5", "model.decoder_channels=16")
    with pytest.raises(SettingsError, match=r"it was started with: model\.decoder_channels 8\. Received: 16\.$"):
        run(RunRequest(wider, domains, out, device="cpu", resume=True))
    (tmp_path / "resume").mkdir()
    (tmp_path / "resume" / "iteration_000004.pth").write_bytes(b"damaged")
    with pytest.raises(SettingsError, match="damaged"):
        run(RunRequest(settings(), domains, tmp_path, device="cpu", resume=True))


def test_initial_weights_of_a_resumed_run_are_said_to_be_left_aside(domains, finished, tmp_path):
    out, result, _ = finished
    shutil.copytree(out, tmp_path / "run")
    state = TrainingState()
    run(RunRequest(settings("iterations=5"), domains, tmp_path / "run", None, "cpu", True, result.best), state=state)
    assert f"The run goes on with its own weights of iteration 4, not those of {result.best}." in state.messages


@pytest.mark.parametrize(
    ("mode", "losses"),
    [
        ("source-only", {"loss/source", "loss/source_detail"}),
        ("control", {"loss/source", "loss/source_detail", "loss/augmented"}),
        ("supervised", {"loss/source", "loss/source_detail"}),
    ],
)
def test_other_modes_need_no_more_than_they_learn_from(domains, mode, losses, tmp_path):
    given = dataclasses.replace(domains, target=None)
    if mode == "supervised":
        given = dataclasses.replace(domains, source=None)
    recorder = Recorder()
    small = settings(f"mode={mode}", "iterations=1", "optimizer.warmup_iterations=0")
    run(RunRequest(small, given, tmp_path, device="cpu"), state=recorder.state)
    assert {name for name in recorder.scalars[1] if name.startswith("loss/")} == losses
    assert "teacher/iou/crack" in recorder.metrics[1]


@pytest.mark.parametrize(
    ("overrides", "changes", "message"),
    [
        ([], {"target": None}, "Mode 'uda' adapts to a target"),
        (["mode=supervised"], {"target": None}, "labelled target"),
        (["mode=source-only"], {"source": None}, "labelled source"),
        (["class_weights={crak: 3}"], {}, "did you mean 'crack'"),
        (["class_weights=[1, 2, 3]"], {}, "one weight for each of __bg__, crack"),
        (
            ["self_training.feature_distance_weight=0.005", "self_training.feature_distance_classes=[crack]"],
            {},
            "feature_distance_weight",
        ),
        (["model.encoder=efficientnet_lite0", "batch_size=1"], {}, "Batch norms .* Raise batch_size"),
    ],
)
def test_run_that_cannot_work_is_refused_before_training(domains, overrides, changes, message, tmp_path):
    recorder = Recorder()
    with pytest.raises(SettingsError, match=message):
        run(
            RunRequest(settings(*overrides), dataclasses.replace(domains, **changes), tmp_path, device="cpu"),
            state=recorder.state,
        )
    assert not recorder.of(Started)
    assert not list(tmp_path.rglob("*.pth"))


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta"])
def test_device_that_is_not_here_is_refused(domains, name, tmp_path):
    with pytest.raises(SettingsError, match=name):
        run(RunRequest(settings(), domains, tmp_path, device=name))


def test_diverged_training_ends_with_the_remedy(domains, tmp_path, monkeypatch):
    monkeypatch.setattr(learner, "lr_factor", lambda *_: 1e34)
    wild = settings("mode=source-only", "optimizer={warmup_iterations: 0, skip_limit: 2}", "validation.interval=9")
    with pytest.raises(TrainingError, match="Lower optimizer.lr.* No checkpoint was written before: start again"):
        run(RunRequest(wild, domains, tmp_path, device="cpu"))


def test_best_checkpoint_is_that_of_the_best_measurement(domains, tmp_path, monkeypatch):
    scores = iter([(0.5, False), (0.9, True), (0.4, False)])

    def measured(*arguments, **_):
        score, teacher_is_better = next(scores)
        return Measurement(arguments[-2], score, teacher_is_better, {"teacher/iou/crack": score})

    monkeypatch.setattr(engine, "measure_both", measured)
    short = settings("mode=source-only", "iterations=3", "validation.interval=1")
    result = run(RunRequest(short, domains, tmp_path, device="cpu"))
    best, last = (load_checkpoint(path) for path in result.checkpoints)
    assert (best.iteration, best.serve_teacher, best.metrics) == (2, True, {"teacher/iou/crack": 0.9})
    assert (last.iteration, last.serve_teacher, last.metrics) == (3, False, {"teacher/iou/crack": 0.4})
    assert result.metrics == {"teacher/iou/crack": 0.9}


def test_a_checkpoint_knows_the_thresholds_that_its_run_measured(domains, tmp_path):
    short = settings("mode=source-only", "iterations=3", "validation.interval=3")
    result = run(RunRequest(short, domains, tmp_path, device="cpu"))
    best = load_checkpoint(result.best)
    served = "teacher" if best.serve_teacher else "student"
    assert best.best_thresholds == {"crack": best.metrics[f"{served}/best_threshold/crack"]}
    deployment = Deployment.from_file(result.best, "cpu")
    assert deployment.best_thresholds == best.best_thresholds
    assert (deployment.classes, deployment.input_scale) == (best.classes, best.input_scale)


def test_a_model_trained_at_a_factor_is_measured_and_served_at_it(domains, tmp_path, monkeypatch):
    short = settings("mode=source-only", "iterations=3", "validation.interval=3", "data.scale.factor=1.5")
    measured = []
    work = Predictor._run

    def witness(self, images, sinks):
        measured.extend(image.shape[:2] for image in images)
        return work(self, images, sinks)

    monkeypatch.setattr(Predictor, "_run", witness)
    best = run(RunRequest(short, domains, tmp_path, device="cpu")).best
    deployment = Deployment.from_file(best, "cpu")
    image = np.random.default_rng(0).integers(0, 256, (66, 90, 3), np.uint8)
    [served] = deployment.predict([image], ServeSettings())
    assert measured[-1] == (99, 135) and served.labels.shape == (66, 90)
    # Student and teacher, each on all photos.
    assert set(measured[:-1]) == {(144, 120)}
    assert load_checkpoint(best).input_scale == 1.5


def test_measuring_leaves_every_module_in_its_mode(domains, tmp_path):
    from train.run.preparation import prepare
    from train.run.validation import measure

    small = settings()
    data = prepare(small, domains, None, tmp_path, lambda text: None)
    model = build_segmentor(dataclasses.replace(small.model, num_classes=2)).train()
    model.backbone.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    arguments = {"inference": small.inference, "scale": small.data.scale, "device": torch.device("cpu")}
    first = measure(model, data.validation, data.classes, **arguments)
    second = measure(model, data.validation, data.classes, **arguments)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert first.compute() == second.compute()


def test_automatic_weights_grow_with_rarity_and_stay_bounded():
    shares = (0.985, 0.015, 0.0, 1e-9)
    data = PreparedData(("__bg__", "crack", "absent", "rare"), ((0, 0, 0),) * 4, [], shares, [], [])
    weights = class_weights("auto", data)
    assert weights[:3].tolist() == pytest.approx([1.0, (0.985 / 0.015) ** 0.25, 1.0])
    assert weights[3] == 10
    assert class_weights("off", data) is None
    assert class_weights({"crack": 3.0}, data).tolist() == [1, 3, 1, 1]
    assert class_weights((1, 2, 3, 4), data).tolist() == [1, 2, 3, 4]
    check_class_weights({"__bg__": 0.5}, ["crack"])


def test_initial_weights_are_taken_whole_or_as_far_as_the_encoder(finished):
    _, result, _ = finished
    model = ModelSettings(encoder="mit_b0", crop_size=(64, 64), decoder_channels=8, attention_channels=8)
    student = build_segmentor(model)
    assert "All weights" in load_initial_weights(student, result.best, ("__bg__", "crack"))[0]
    trained = load_checkpoint(result.best).model.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in student.state_dict().items())

    other = build_segmentor(dataclasses.replace(model, decoder_channels=16))
    assert "Encoder weights" in load_initial_weights(other, result.best, ("__bg__", "crack"))[0]
    state = other.state_dict()
    assert all(torch.equal(state[name], trained[name]) for name in state if name.startswith("backbone."))


def test_initial_weights_that_do_not_fit_are_refused(finished, tmp_path):
    _, result, _ = finished
    larger = build_segmentor(ModelSettings(encoder="mit_b1", crop_size=(64, 64), decoder_channels=8))
    with pytest.raises(SettingsError, match=r"Set model\.encoder"):
        load_initial_weights(larger, result.best, ("__bg__", "crack"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(SettingsError, match="damaged"):
        load_initial_weights(larger, tmp_path / "text.pth", ("__bg__", "crack"))

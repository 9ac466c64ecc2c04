"""The comparison of choices with and without labels, on a run of two kept states."""

from benchmarks.choice import Row, main, verdict
from sandbox.synthetic.projects import write_project
from train.run.domains import Domains
from train.run.engine import run
from train.run.request import RunRequest
from train.settings.training import TrainSettings

SMALL = [
    "iterations=2",
    "batch_size=1",
    "model={encoder: mit_b0, crop_size: [64, 64], decoder_channels: 8, attention_channels: 8}",
    "optimizer.warmup_iterations=0",
    "data={scale: {long_edge: null, short_edge: null}, workers: 0}",
    "validation={interval: 2, previews: 0}",
]


def test_networks_of_a_run_are_compared_on_its_own_photos(tmp_path, capsys):
    for seed, (name, count) in enumerate({"source": 2, "target": 3, "val": 2}.items()):
        write_project(tmp_path / name, "real_like", count, seed=seed, size=(64, 72), workers=1)
    domains = Domains(*(str(tmp_path / name) for name in ("source", "target", "val")))
    run(RunRequest(TrainSettings().with_overrides(SMALL), domains, tmp_path / "run", device="cpu"))
    capsys.readouterr()
    assert main(["--run", str(tmp_path / "run"), "--photos", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| network | best_iou | iou | certainty | density | mixture |"
    assert [line.split(" | ")[0] for line in lines[2:6]] == ["| 0 student", "| 0 teacher", "| 2 student", "| 2 teacher"]
    assert lines[6].startswith("Best network") and len(lines) == 10


def test_verdict_says_what_each_choice_is_worth():
    rows = {
        "1 student": Row(0.2, 0.1, 0.3, 0.9, 0.5),
        "1 teacher": Row(0.4, 0.35, 0.5, 0.1, 0.7),
        "2 student": Row(0.3, 0.2, 0.4, 0.5, 0.6),
    }
    best, of_certainty, of_density, _ = verdict(rows)
    assert best == "Best network: IoU 40.0."
    assert of_certainty == (
        "certainty: rank correlation 1.00; it chooses 1 teacher, IoU 40.0, at the threshold without labels 35.0."
    )
    assert "correlation -1.00; it chooses 1 student, IoU 20.0" in of_density

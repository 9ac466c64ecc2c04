"""What the page asks of a run is what the command line is told, word for word."""

from dataclasses import fields, replace
from pathlib import Path

from train.__main__ import parse, read_request
from train.run.preparation import Domains
from train.run.request import RunRequest
from train.settings.training import TrainSettings

SETTINGS = TrainSettings().with_overrides(["mode=uda", "iterations=700", "class_weights={'crack, wet': 3}"])
FULL = RunRequest(
    settings=SETTINGS,
    domains=Domains("photos:labelled", "photos:road1,road2/night", "photos:check", "photos:few"),
    out=Path("-runs/first"),
    classes=("crack, wet", 'a "b"', "c", " d "),
    device="cuda:0,cuda:2",
    resume=True,
    init_checkpoint=Path("earlier/best.pth"),
)


def told(request: RunRequest, folder: Path) -> RunRequest:
    """The request as it arrives through the command line."""
    settings_file = folder / "given.yaml"
    settings_file.write_text(request.settings.to_yaml(), encoding="utf-8")
    return read_request(parse(request.command_arguments(settings_file)))


def test_every_part_of_a_request_arrives_through_the_command_line(tmp_path):
    bare = RunRequest(FULL.settings, replace(FULL.domains, target=None, labelled_target=None), FULL.out)
    same = [field.name for field in fields(RunRequest) if getattr(FULL, field.name) == getattr(bare, field.name)]
    assert same == ["settings", "out"], "each option differs from what holds where it is left out"
    assert told(FULL, tmp_path) == FULL
    assert told(bare, tmp_path) == bare

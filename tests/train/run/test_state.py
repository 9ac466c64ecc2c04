import pytest

from train.run.state import (
    ENDED,
    CheckpointWritten,
    Failed,
    Finished,
    PhaseChanged,
    Preview,
    Progressed,
    Said,
    Started,
    StepsSkipped,
    Timed,
    TrainingState,
    Validated,
    decode,
    encode,
)

CHANGES = [
    PhaseChanged("preparing"),
    Said("Lines\nof – text"),
    Started(3, 10),
    PhaseChanged("training"),
    Progressed(4, {"loss/source": 0.5, "lr": 1e-4}, None),
    Timed(4, 13.5, 2.25),
    Progressed(5, {"loss/source": 0.1 + 0.2, "lr": 1e-4}, 12.5, 2.5),
    StepsSkipped(5, 2),
    Validated(5, {"student/mIoU": 0.5}, (Preview("target", "a.jpg", {"photo": "/x/photo.jpg"}),)),
    CheckpointWritten("/x/last.pth", 5, is_best=False),
    CheckpointWritten("/x/last.pth", 6, is_best=False),
]
ENDS = [Finished(True, 6, "/x/last.pth", ("/x/last.pth",), {}), Failed("No room.", "SettingsError")]


@pytest.mark.parametrize("change", [*CHANGES, *ENDS], ids=lambda change: type(change).__name__)
def test_change_is_the_same_after_its_way_through_a_pipe(change):
    line = encode(change)
    assert "\n" not in line
    assert decode(line) == change


@pytest.mark.parametrize("line", ["", "text", "{}", "[]", '{"change": "Exploded"}', '{"change": "Said", "words": ""}'])
def test_line_that_is_no_change_is_refused(line):
    with pytest.raises(ValueError, match="Not a change"):
        decode(line)


def test_state_gathers_changes_and_tells_readers_afterwards():
    state, seen = TrainingState(), []
    state.subscribe(lambda now, change: seen.append((now.iteration, change)))
    for change in CHANGES:
        state.apply(change)
    assert (state.phase, state.iteration, state.total_iterations, state.seconds_left) == ("training", 5, 10, 12.5)
    assert state.seconds_per_iteration == 2.5
    assert state.curves["loss/source"] == [(4, 0.5), (5, 0.1 + 0.2)]
    assert [validated.iteration for validated in state.validations] == [5]
    assert [written.iteration for written in state.checkpoints] == [6]
    assert state.skipped == 2
    assert list(state.messages) == ["Lines\nof – text"]
    assert [change for _, change in seen] == CHANGES
    assert [iteration for iteration, _ in seen][2:7] == [3, 3, 4, 4, 5]


def test_ends_are_final_phases():
    for end, phase in zip(ENDS, ("stopped", "failed"), strict=True):
        state = TrainingState()
        state.apply(end)
        assert state.phase == phase
        assert phase in ENDED
    assert state.failure == "No room."

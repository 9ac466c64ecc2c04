import pytest
import torch

from train.run.progress import RunningMeans, TimeLeft


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_time_left_counts_measurements_apart_and_not_the_warming_up():
    clock = Clock()
    time_left = TimeLeft(100, 20, clock)
    clock.now += 60
    assert (time_left.report(10), time_left.seconds_per_iteration) == (None, None)
    clock.now += 20
    # 2 s an iteration; how long a measurement takes is not known yet.
    assert time_left.report(20) == pytest.approx(160)
    assert time_left.seconds_per_iteration == pytest.approx(2)
    with time_left.measuring():
        clock.now += 7
    clock.now += 20
    # Four measurements are ahead: after 40, 60, 80 and 100.
    assert time_left.report(30) == pytest.approx(2 * 70 + 4 * 7)


def test_time_left_follows_a_change_of_pace():
    clock = Clock()
    time_left = TimeLeft(1000, 1000, clock)
    for iteration in range(10, 400, 10):
        clock.now += 10 if iteration <= 200 else 30
        seconds = time_left.report(iteration)
    assert seconds == pytest.approx(3 * (1000 - 390))


def test_means_count_what_was_learnt_from_and_start_anew():
    means = RunningMeans()
    for value, finite in ((1.0, True), (float("nan"), False), (3.0, True)):
        means.add({"loss": torch.tensor(value)}, torch.tensor(finite))
    means.add({"other": torch.tensor(float("inf"))}, torch.tensor(False))
    assert means.take() == {"loss": 2.0}
    assert means.take() == {}


def test_means_of_an_interrupted_run_go_on():
    values = torch.rand(10)
    whole, first, second = RunningMeans(), RunningMeans(), RunningMeans()
    for value in values:
        whole.add({"loss": value}, torch.tensor(True))
    for value in values[:4]:
        first.add({"loss": value}, torch.tensor(True))
    second.restore(first.to_plain(), torch.device("cpu"))
    for value in values[4:]:
        second.add({"loss": value}, torch.tensor(True))
    assert second.take() == whole.take()

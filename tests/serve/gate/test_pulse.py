"""Liveness notices what is stuck, and nothing else."""

from serve.gate.pulse import Pulse


def test_prediction_that_does_not_get_on_is_noticed_until_it_does():
    now = [0.0]
    pulse = Pulse(10, lambda: now[0])
    now[0] = 100
    assert pulse.trouble() is None, "nothing is predicted"
    with pulse.working():
        now[0] += 9
        assert pulse.trouble() is None
        pulse.after(lambda: None)()
        now[0] += 9
        assert pulse.trouble() is None
        with pulse.working():
            now[0] += 9
            assert "no batch of windows for 18 seconds" in pulse.trouble(), "who waits for its turn does not get on"
        assert pulse.trouble() is None, "another one has ended"
        now[0] += 11
        assert "Start the service anew" in pulse.trouble()
    assert pulse.trouble() is None
    now[0] += 100
    assert pulse.trouble() is None

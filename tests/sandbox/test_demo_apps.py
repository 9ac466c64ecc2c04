"""`make app`: both apps reachable, ended by Ctrl-C, started anew when they have done their work."""

import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import requests

from sandbox.demo import apps


def test_both_apps_are_reachable_until_ctrl_c(tmp_path):
    code = (
        "import sys; from sandbox.demo import apps; apps.PHOTOS = dict.fromkeys(apps.PHOTOS, 2); "
        "sys.exit(apps.main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("Ctrl-C"):
                break
        addresses = re.findall(r"^(Train HRDA|Serve HRDA|Sandbox): +(http://127\.0\.0\.1:\d+)$", "".join(said), re.M)
        assert [name for name, _ in addresses] == ["Train HRDA", "Serve HRDA", "Sandbox"], "".join(said)
        for _, address in addresses:
            assert requests.get(address, timeout=30).ok
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    for _, address in addresses:
        try:
            requests.get(address, timeout=5)
        except requests.ConnectionError:
            continue
        raise AssertionError(f"{address} still answers")


def test_app_that_has_ended_is_started_anew_at_the_same_address():
    runs = []

    @contextmanager
    def run(port, task_id):
        process = SimpleNamespace(poll=lambda: None)
        runs.append((port, task_id, process))
        yield SimpleNamespace(process=process)
        process.poll = lambda: 0

    app = apps.Restartable(run)
    assert not app.has_ended
    app.start(1)
    assert not app.has_ended
    runs[0][2].poll = lambda: 0
    assert app.has_ended
    app.start(2)
    assert not app.has_ended
    assert [(port, task) for port, task, _ in runs] == [(runs[0][0], 1), (runs[0][0], 2)]
    app.close()
    assert runs[1][2].poll() == 0

"""`make app`: both apps reachable, ended by every signal, started anew when they have done their work."""

import os
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from sandbox.demo import both_apps as apps
from sandbox.demo.domains import GENERATED

FEW = (
    "import sys; from sandbox.demo import apps, both_apps; both_apps.PHOTOS = dict.fromkeys(both_apps.PHOTOS, 2); "
    "sys.exit(apps.main(sys.argv[1:]))"
)
# Apps that start at once take the place of the real ones; all else is as it is. Imports come when they do.
LIGHT = """
import sys
from sandbox.demo import apps

class Late:
    def find_spec(self, name, path, target=None):
        if name == "sandbox.demo.both_apps":
            sys.meta_path.remove(self)
            from sandbox.demo import both_apps, processes
            both_apps.demo.train_app = both_apps.demo.serve_app = lambda sandbox, task, *others, port, **more: (
                processes.app("light:app", port, sandbox.env(TASK_ID=task), apps_folder / f"{task}.log"))

from pathlib import Path
apps_folder = Path(sys.argv[2]) / "logs"
sys.meta_path.insert(0, Late())
sys.exit(apps.main(sys.argv[1:]))
"""
LIGHT_APP = """
import subprocess
# As the real app has TensorBoard.
subprocess.Popen(["sleep", "600"])

async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"light"})
"""
MOMENTS = 10
WAYS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)


def test_both_apps_are_reachable_until_ctrl_c(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", FEW, "--out", str(tmp_path)],
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


class Start:
    """A start of `make app` with light apps, whose processes can be told from all others."""

    def __init__(self, out: Path) -> None:
        self.mark = uuid.uuid4().hex
        (out.parent / "light.py").write_text(LIGHT_APP)
        env = os.environ | {"STARTED_BY": self.mark, "PYTHONPATH": f"{out.parent}{os.pathsep}{Path.cwd()}"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", LIGHT, "--out", str(out)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # As a terminal runs it: Ctrl-C reaches the whole group.
            start_new_session=True,
        )
        self.first_line = self.process.stdout.readline()

    def wait_until_ready(self) -> str:
        """Wait for the sentence on how to end it; what was printed till then."""
        said = []
        for line in self.process.stdout:
            said.append(line)
            if line.startswith("Ctrl-C"):
                break
        return "".join(said)

    def break_off(self, way: signal.Signals) -> tuple[int, str]:
        """End it; its exit code and what it printed."""
        (os.killpg if way == signal.SIGINT else os.kill)(self.process.pid, way)
        said, _ = self.process.communicate(timeout=60)
        return self.process.returncode, said

    @property
    def left(self) -> list[str]:
        """Command lines of its processes that run."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
        return found

    def wait_until_nothing_is_left(self) -> None:
        """Wait, as whoever is killed leaves it to the others to see that."""
        deadline = time.monotonic() + 60
        while self.left:
            assert time.monotonic() < deadline, self.left
            time.sleep(0.1)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes below /proc")
def test_start_that_is_broken_off_at_any_moment_leaves_no_process_and_starts_again(tmp_path):
    whole = Start(tmp_path / "measured")
    begun = time.monotonic()
    whole.wait_until_ready()
    takes = time.monotonic() - begun
    code, said = whole.break_off(signal.SIGTERM)
    assert (code, "Traceback" in said) == (0, False), said
    whole.wait_until_nothing_is_left()
    chance = random.Random(16)
    for number, moment in enumerate(sorted(chance.uniform(0, takes) for _ in range(MOMENTS))):
        start, way = Start(tmp_path / "apps"), WAYS[number % len(WAYS)]
        time.sleep(moment)
        code, said = start.break_off(way)
        assert "Traceback" not in said, said
        assert code == (-way if way == signal.SIGKILL else 0), f"{way.name} after {moment:.1f} s: {said}"
        start.wait_until_nothing_is_left()
    last = Start(tmp_path / "apps")
    said = last.wait_until_ready()
    for _, address in re.findall(r"^(Train HRDA|Serve HRDA): +(http\S+)$", said, re.M):
        assert requests.get(address, timeout=30).text == "light"
    for role, count in apps.PHOTOS.items():
        for part in ("img", "ann"):
            assert len(list((tmp_path / "apps" / "projects" / role).glob(f"*/{part}/*"))) == count
    assert last.break_off(signal.SIGINT)[0] == 0
    last.wait_until_nothing_is_left()


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM])
def test_demo_that_is_broken_off_says_no_traceback(tmp_path, way):
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox.demo", "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    # While it imports with one, while it draws with the other.
    time.sleep(1) if way == signal.SIGINT else process.stdout.readline()
    os.killpg(process.pid, way)
    said, _ = process.communicate(timeout=60)
    assert "Traceback" not in said, said


def test_photos_are_drawn_whole_or_not_at_all(tmp_path, monkeypatch):
    draw = apps.write_project

    def broken_off(folder, *arguments, **options):
        draw(folder, *arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(apps, "write_project", broken_off)
    with pytest.raises(KeyboardInterrupt):
        apps.draw(tmp_path, "val", 2)
    assert not (tmp_path / "projects" / "val").exists()
    monkeypatch.setattr(apps, "write_project", draw)
    for role in GENERATED:
        apps.draw(tmp_path, role, 3)
        assert len(list((tmp_path / "projects" / role).glob("*/img/*"))) == 3

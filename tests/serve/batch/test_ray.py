"""`python -m serve batch` with Ray: processes and clusters are killed in the middle, and every photo has one result.

One file, so that one of pytest's processes runs all of it: each Ray takes a gigabyte.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from PIL import Image

from sandbox.testing import Sandbox
from serve.__main__ import main

ROOT = Path(__file__).resolve().parents[3]
PHOTOS = 32
LIMIT_S = 240
SLOW = ("--settings", "stride=16")
"""So many windows that there is time to kill something."""
QUICK_TO_GIVE_UP = {
    # A driver looks for its lost head for a minute.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "3",
    "RAY_gcs_server_request_timeout_seconds": "3",
    "RAY_raylet_client_connect_timeout_milliseconds": "1000",
}
HERE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "SUPERVISELY_SKIP_HTTPS_USER_HELPER_CHECK": "true"}
"""A cluster on the loopback, and an instance there."""


@pytest.fixture(scope="module")
def project(api, instance: Sandbox) -> SimpleNamespace:
    """A project with photos in two datasets, one of which lies in the other."""
    random = np.random.default_rng(11)
    created = api.project.create(instance.workspace_id, "bridge")
    outer = api.dataset.create(created.id, "day")
    inner = api.dataset.create(created.id, "night", parent_id=outer.id)
    ids, contents = {}, {}
    for dataset, folder in ((outer, "day"), (inner, "day/night")):
        images = [random.integers(0, 256, (70, 80, 3), dtype=np.uint8) for _ in range(PHOTOS // 2)]
        infos = api.image.upload_nps(dataset.id, [f"{n:02}.png" for n in range(len(images))], images)
        ids |= {f"{folder}/{info.name}": info.id for info in infos}
        contents |= {f"{folder}/{info.name}": instance.storage.blobs.path(info.hash) for info in infos}
    return SimpleNamespace(id=created.id, ids=ids, outer=outer.id, inner=inner.id, content=contents.__getitem__)


@pytest.fixture(scope="module")
def command(checkpoint: Path, instance: Sandbox, tmp_path_factory) -> Callable[..., subprocess.Popen]:
    """Starts the command; `.log` is what it prints."""
    folder = tmp_path_factory.mktemp("logs")

    def start(*words: object, **env: str) -> subprocess.Popen:
        known = {"SERVER_ADDRESS": instance.address, "API_TOKEN": instance.token}
        known |= {"OMP_NUM_THREADS": "1"} | QUICK_TO_GIVE_UP | HERE
        log = folder / f"{len(list(folder.iterdir()))}.log"
        line = [sys.executable, "-m", "serve", "batch", "--model", checkpoint, "--device", "cpu", *words]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [str(word) for word in line],
                cwd=ROOT,
                env=os.environ | known | env,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process.log = log
        return process

    return start


@pytest.fixture
def inside(checkpoint: Path, instance: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command in this process, without the seconds of its imports."""
    for name, value in ({"SERVER_ADDRESS": instance.address, "API_TOKEN": instance.token} | HERE).items():
        monkeypatch.setenv(name, value)
    line = ["batch", "--model", checkpoint, "--device", "cpu"]
    return lambda *words: main([str(word) for word in (*line, *words)])


@pytest.fixture
def cluster() -> Iterator[SimpleNamespace]:
    """A Ray cluster of two nodes, all of its processes below this one."""
    with pytest.MonkeyPatch.context() as patch:
        known = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        for name, value in (QUICK_TO_GIVE_UP | HERE | known).items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        size = {"num_cpus": 2, "object_store_memory": 100 * 2**20, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=size)
        made.add_node(num_cpus=2, object_store_memory=100 * 2**20)
        try:
            yield made
        finally:
            made.shutdown()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert process.poll() is None, f"it ended before {what}:\n{process.log.read_text()}"
        assert time.monotonic() < deadline, f"{what} has not come:\n{process.log.read_text()}"
        time.sleep(0.05)


def figures(api, project) -> dict[str, list[int]]:
    """Numbers of the labels of each image."""
    found = {}
    for dataset in (project.outer, project.inner):
        for each in api.annotation.get_list(dataset):
            found[each.image_id] = sorted(label["id"] for label in each.annotation["objects"])
    return {name: found[image_id] for name, image_id in project.ids.items()}


def kill_all(processes: list[psutil.Process]) -> None:
    """Kill processes and what they have started."""
    family = [each for process in processes for each in (process, *process.children(recursive=True))]
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=30)


def test_whatever_is_killed_every_photo_has_exactly_one_result(
    project, api, command, cluster, tmp_path, inside, capsys
):
    out = tmp_path / "out"
    words = ["--project", project.id, "--upload", "append", "--format", "masks", "--output", out, "--workers", 2, *SLOW]

    def results() -> int:
        return len(list(out.glob("masks/**/*.png")))

    def below(parent: psutil.Process, name: str) -> list[psutil.Process]:
        return [each for each in parent.children(recursive=True) if name in " ".join(each.cmdline())]

    # A worker, and then the head of the cluster, with all that runs on that machine.
    first = command(*words, "--ray-address", cluster.address)
    wait_for(lambda: results() >= 2, first, "a result")
    workers = below(psutil.Process(), "ray::MapWorker")
    assert workers
    workers[0].kill()
    before = results()
    wait_for(lambda: results() >= before + 4, first, "a result without the worker")
    # Labels follow their masks.
    wait_for(lambda: any(figures(api, project).values()), first, "labels on the instance")
    killed = [each.process.pid for kind in cluster.head_node.all_processes.values() for each in kind]
    kill_all([psutil.Process(pid) for pid in killed])
    first.wait(LIMIT_S)
    assert first.returncode != 0
    halfway = figures(api, project)
    assert 0 < sum(map(bool, halfway.values())) < PHOTOS, "the head was killed too late to prove anything"

    # The command, whose Ray is one of its own: it is reached from this machine alone, and ends with it.
    second = command(*words)
    before = results()
    wait_for(lambda: results() >= before + 4, second, "a result of the second run")
    family = psutil.Process(second.pid).children(recursive=True)
    assert len(family) > 4, "it has started a Ray of its own"
    listening = set()
    for process in family:
        with suppress(psutil.NoSuchProcess):
            connections = process.net_connections("inet")
            listening |= {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN}
    assert listening and listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    second.kill()
    second.wait()
    _, alive = psutil.wait_procs(family, timeout=LIMIT_S)
    assert alive == [], "no process is left"
    later = figures(api, project)
    assert sum(map(bool, later.values())) < PHOTOS, "it was killed too late to prove anything"

    # Meanwhile a photo is damaged that has no result yet.
    damaged = min(name for name, ids in later.items() if not ids)
    mask = out / "masks" / Path(damaged).with_suffix(".png")
    mask.unlink(missing_ok=True)
    project.content(damaged).write_bytes(b"no picture")
    last = command(*words)
    assert last.wait(LIMIT_S) == 3, last.log.read_text()
    told = last.log.read_text()
    assert f"{damaged}: Cannot read the image {damaged}" in told
    assert "Traceback" not in told
    assert f"{PHOTOS} photos in project {project.id}" in told and "predicted now" in told
    left = [*Path("/tmp").glob(f"hrda_ray_{second.pid}_*"), *Path("/tmp").glob(f"hrda_ray_{last.pid}_*")]
    assert left == []

    after = figures(api, project)
    assert [name for name, ids in after.items() if not ids] == [damaged], "no other photo is lost"
    for before in (halfway, later):
        kept = {name: ids for name, ids in before.items() if ids}
        assert {name: ids for name, ids in after.items() if name in kept} == kept, "none is uploaded twice"
    assert results() == PHOTOS - 1 and not mask.exists()
    for name, ids in after.items():
        if name != damaged:
            labels = np.asarray(Image.open(out / "masks" / Path(name).with_suffix(".png")))
            assert len(ids) == len(np.unique(labels)), f"{name} has as many labels as classes"
    records = [json.loads(line) for line in (out / "manifest/all.jsonl").read_text().splitlines()]
    assert sorted(record["photo"] for record in records) == sorted(project.ids)
    assert [record["photo"] for record in records if record["reason"]] == [damaged]

    assert inside(*words, "--dry-run") == 0
    told = capsys.readouterr().out
    assert f"{PHOTOS - 1} with a result" in told
    assert "1 photo to predict" in told and "1 failed before" in told

"""`python -m serve batch` in the tests' own process, and a server of S3."""

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from moto.server import ThreadedMotoServer

from serve.__main__ import main
from serve.batch import pipeline, rays, steps
from serve.batch.worker import Worker

ENDPOINT = "AWS_ENDPOINT_URL"


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The steps without processes; `.photos` were worked on."""
    seen = SimpleNamespace(photos=[])

    def stream(assignment, tasks, machines):
        worker = Worker.from_file(assignment.model, assignment.device, assignment.runtime, assignment.settings)
        for task in tasks:
            seen.photos.append(task.item.name)
            [step] = steps.predict(assignment, worker, [steps.read(assignment, task)])
            record, halt = steps.write(assignment, step)
            if halt:
                raise pipeline.RequestError(record.reason)
            yield record

    monkeypatch.setattr(pipeline, "stream", stream)
    monkeypatch.setattr("serve.batch.command._ray", lambda args, machines: nullcontext())
    monkeypatch.setattr(rays, "require_ray", lambda: None)
    return seen


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path, inline: SimpleNamespace) -> Callable[..., tuple[int, list[str]]]:
    """Run the command; its status and the photos that were worked on."""

    def run(*words: object, source: object = tmp_path / "photos", output: object = tmp_path / "out"):
        inline.photos.clear()
        command = ["batch", "--model", checkpoint, "--input", source, "--output", output, "--device", "cpu", *words]
        return main([str(word) for word in command]), sorted(inline.photos)

    return run


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadedMotoServer]:
    """A server of S3 on this machine with the bucket `site`, which the environment names."""
    from pyarrow.fs import S3FileSystem

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    known = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", ENDPOINT: f"http://{host}:{port}"}
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    S3FileSystem(region="us-east-1", endpoint_override=known[ENDPOINT], allow_bucket_creation=True).create_dir("site")
    yield server
    server.stop()

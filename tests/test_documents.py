"""The documents' commands, run as a reader runs them: in order, as they stand, with small values of their variables."""

from __future__ import annotations

import functools
import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
import supervisely as sly
import yaml
from rasterio.transform import from_origin

from common.data.images import read_image
from sandbox.demo.processes import app, free_port
from sandbox.testing import Sandbox, running_sandbox
from serve.batch.outputs import FORMATS
from tests.documents.fences import OUTPUT, PYTHON, SHELLS, Fence, fences
from tests.documents.place import DOCUMENTS, ROOT, Outcome, Place


@dataclass(frozen=True)
class Step:
    """A block that the tests run."""

    first: str
    """How its first command begins."""
    answers: tuple[str, ...]
    """What it prints, among other things."""
    serves: str | None = None
    """It is a server, which runs until stopped; what answers once it is ready."""
    tells: tuple[str, ...] = ()
    """Variables that it prints as lines `NAME=value`, and a reader puts into the environment."""


RUN: dict[str, tuple[Step, ...]] = {
    "README.md": (
        Step(".venv/bin/python -m train", ("Best checkpoint: runs/mine/checkpoints/best.pth", "-> found/img/")),
        Step("from common.data.images import", ()),
    ),
    "docs/training.md": (
        Step(".venv/bin/python -m sandbox.synthetic", ("4 photos are in synthetic, dataset ds0.", "dataset checked.")),
        Step(".venv/bin/python -m train", ("Best checkpoint: runs/first/checkpoints/best.pth",)),
        Step(".venv/bin/python -m serve predict", ("[4/4]", "-> predictions/img/")),
        Step(
            ".venv/bin/python -m sandbox --data . --apps",
            ("The sandbox is ready at http://127.0.0.1:",),
            serves="",
            tells=("SERVER_ADDRESS", "API_TOKEN", "TEAM_ID", "WORKSPACE_ID"),
        ),
        Step("import os", ("_HRDA/ best.pth {'ONNXRuntime': 'export/best.onnx'}",)),
        Step("from pathlib import Path", ("__bg__: ", "crack: ", "of the photo")),
    ),
    "serve/README.md": (
        Step("import supervisely as sly", ("Deployed in task",)),
        Step("api.task.send_request(", ()),
        Step("python -m serve predict", ("photo.jpg -> predictions/photo.jpg.json",)),
        Step("python -m serve deploy", (), serves="is_ready"),
        Step("HRDA_API_TOKEN=replace-me-by-a-secret python -m serve deploy", (), serves="is_ready"),
        Step("curl -X POST $URL/inference_image ", ('"annotation"', '"__bg__"')),
        Step("python -m serve export", ("Exported to model.onnx.", "photo.jpg -> predictions_onnx/photo.jpg.json")),
        Step("python -m serve deploy", (), serves="is_ready"),
        Step("dataset_id = sly.env", ("Annotation", "Labels were added to")),
        Step("session = sly.nn", ("Annotations: 2",)),
        Step("curl -X POST $URL/inference_image ", ('"annotation"', '"__bg__"')),
        Step("curl -X POST $URL/inference_image ", ('"components"', '"length_mm"')),
        Step("curl -X POST $URL/inference_image_url", ('"annotation"',)),
        Step("curl -X POST $URL/inference_batch_ids", ('"annotation"',)),
        Step("curl -X POST $URL/inference_batch_async", ('"pending_results"', '"success":true')),
    ),
    "docs/outputs.md": (
        Step("python -m serve predict", ("photo.jpg -> results/masks/photo.png: ", "Written: results")),
        Step("import pandas", ("photo.jpg has", "max_width_mm")),
    ),
    "docs/import.md": (
        Step(
            ".venv/bin/python -m train import mine",
            ("2 photos, 2 with labels; classes: crack. Imported as mine_project.",),
        ),
        Step("mkdir -p raw", ("4 photos, 0 with labels. Imported as raw_project.",)),
    ),
    "docs/orthomosaics.md": (
        Step(
            ".venv/bin/python -m serve predict mosaic.tif",
            ("mosaic.tif: 300×200 pixels, EPSG:32633.", "Written: found"),
        ),
    ),
    "docs/batch.md": (Step("python -m serve batch", ("8 photos to predict with model.pth", "predicted now")),),
    "docs/several_gpus.md": (
        Step(".venv/bin/torchrun --standalone", ("Best checkpoint: runs/several/checkpoints/best.pth",)),
    ),
}

MARKED = {
    ("docs/release.md", "docker build -f docker/Dockerfile -t supervisely/hrda:0.1.0 .", "needs docker"),
    (
        "docs/release.md",
        ".github/release_branch.sh v0.1.0",
        "makes a branch of the repository; tests/test_release.py runs it in a copy",
    ),
    ("docs/release.md", "git switch release-v0.1.0", "needs an instance; the manifests' tests run the command"),
    (
        "README.md",
        "make demo    # draws photos, trains, deploys and annotates; first pictures three minutes after the set-up",
        "takes eight minutes; tests/test_end_to_end.py runs its parts",
    ),
    (
        "README.md",
        "make app     # both apps in your browser, with generated photos",
        "runs until stopped; tests/sandbox/test_demo_apps.py starts both apps",
    ),
    ("docs/demo.md", "make demo", "takes eight minutes; tests/test_end_to_end.py runs its parts"),
    (
        "docs/demo.md",
        "make demo COMPARE=0                                        # HRDA alone",
        "takes eight minutes; tests/sandbox/test_demo.py checks its options",
    ),
    ("docs/demo.md", "make app", "runs until stopped; tests/sandbox/test_demo_apps.py starts both apps"),
    ("docs/developing.md", "make test", "it is the tests"),
    (
        "docs/installing.md",
        "python3.11 -m venv .venv && .venv/bin/pip install -r requirements.txt",
        "downloads 2.5 GB",
    ),
    ("serve/README.md", "docker build -f docker/Dockerfile -t supervisely/hrda:0.1.0 .", "needs docker"),
    ("docs/batch.md", ".venv/bin/ray start --head --port 6379 --node-ip-address 10.0.0.1", "needs two machines"),
    ("docs/batch.md", 'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)', "needs SLURM"),
    ("docs/batch.md", "kubectl apply -f - <<'YAML'", "needs a Kubernetes cluster with KubeRay"),
    (
        "docs/several_gpus.md",
        'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "needs SLURM",
    ),
}

OUTPUTS = {
    ("docs/architecture.md", "common/            what both apps share"),
    ("docs/benchmarks.md", "calm                               count   p50 ms   p95 ms   max ms"),
}
"""Blocks that show a folder or what a program printed: nothing to run."""

SETTINGS = {
    "iterations": 2,
    "batch_size": 2,
    "log_interval": 1,
    "self_training_start": 0.5,
    "model": {"encoder": "mit_b0", "crop_size": [64, 64], "decoder_channels": 8, "attention_channels": 8},
    "optimizer": {"lr": 1e-3, "warmup_iterations": 1},
    "inference": {"stride": [64, 64]},
    "data": {"scale": {"long_edge": 96, "short_edge": 96}, "workers": 0},
    "validation": {"interval": 2, "max_images": 2, "previews": 1},
    "checkpoint": {"interval": 2},
}

VARIABLES = {"COUNT": "4", "ITERATIONS": "2", "SETTINGS": "small.yaml", "PROCESSES": "2"}
"""Small values for what the blocks name. PORT, URL, IMAGE_URL and IMAGE_IDS are known once servers run."""
FOUND = frozenset({"PORT", "URL", "IMAGE_URL", "IMAGE_IDS"})

EXPERIMENT = "/experiments/27_Cracks/265_HRDA"
FORMER_CHECKPOINT = "/HRDA/segmentation_cracks/best.pth"
"""Where the page has its checkpoints in Team Files."""


@functools.cache
def blocks(document: str) -> tuple[Fence, ...]:
    return tuple(fences(ROOT / document, document))


def to_run(document: str) -> list[Fence]:
    return [block for block in blocks(document) if block.reason is None and block.language != OUTPUT]


@dataclass
class Reader:
    """Works through documents in one place, each once."""

    place: Place
    variables: dict[str, str]

    def __post_init__(self) -> None:
        self._outcomes: dict[str, list[Outcome]] = {}

    def read(self, document: str) -> list[Outcome]:
        """What became of the document's blocks, in order, up to the first that failed."""
        if document not in self._outcomes:
            found = self._outcomes[document] = []
            before = dict(self.place.env)
            for block, step in zip(to_run(document), RUN[document], strict=True):
                found.append(self.place.run(block, self.variables, ready=step.serves))
                if found[-1].code:
                    break
                lines = dict(line.split("=", 1) for line in found[-1].output.splitlines() if "=" in line)
                self.place.env |= {name: lines[name] for name in step.tells}
            self.place.end()
            self.place.env = before
        return self._outcomes[document]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    place = Place(tmp_path_factory.mktemp("reader") / "place")
    (place.folder / VARIABLES["SETTINGS"]).write_text(yaml.safe_dump(SETTINGS))
    yield Reader(place, dict(VARIABLES))
    place.end()


@pytest.fixture(scope="module")
def trained(reader: Reader) -> Path:
    """The folder after docs/training.md, with a checkpoint that its commands trained."""
    reader.read("docs/training.md")
    assert (reader.place.folder / "runs/first/checkpoints/best.pth").is_file(), "see the test of docs/training.md"
    return reader.place.folder


@pytest.fixture(scope="module")
def served(reader: Reader, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder after serve/README.md, read beside an instance that has the checkpoint and runs Serve HRDA."""
    checkpoint = trained / "runs/first/checkpoints/best.pth"
    shutil.copy(checkpoint, trained / "model.pth")
    photos = sorted((trained / "photos/checked/img").iterdir())
    for name, photo in zip(("photo.jpg", "a.jpg", "b.jpg"), photos, strict=False):
        shutil.copy(photo, trained / name)
    logs = tmp_path_factory.mktemp("logs")
    with ExitStack() as until_end, pytest.MonkeyPatch.context() as patch:
        sandbox = until_end.enter_context(running_sandbox(tmp_path_factory.mktemp("instance")))
        patch.setenv("SUPERVISELY_SKIP_HTTPS_USER_HELPER_CHECK", "true")
        dataset_id, image_ids = fill(sandbox, trained, photos[:2])
        known = {name: value for name, value in sandbox.env().items() if name not in reader.place.env}
        # The image on the internet lies on this machine.
        known |= {"DATASET_ID": str(dataset_id), "HRDA_ALLOW_HTTP": "true", "HRDA_ALLOW_PRIVATE_ADDRESSES": "true"}
        reader.place.env |= known
        reader.variables |= {
            "IMAGE_IDS": ",".join(map(str, image_ids)),
            "IMAGE_URL": f"{until_end.enter_context(web_server(trained))}/photo.jpg",
        }
        port = free_port()
        manifest = json.loads((ROOT / "serve/config.json").read_text())
        module = sandbox.add_module(manifest, address=f"http://127.0.0.1:{port}")
        task_id = sandbox.create_task(module["name"], f"http://127.0.0.1:{port}", moduleId=module["id"])["id"]
        env = reader.place.env | {"TASK_ID": str(task_id), "ENV": "production", "APP_NAME": "Serve HRDA"}
        until_end.enter_context(app("serve.main:model.app", port, env, logs / "serve_app.log"))
        reader.read("serve/README.md")
        for name in known:
            del reader.place.env[name]
    return trained


def fill(sandbox: Sandbox, folder: Path, photos: list[Path]) -> tuple[int, list[int]]:
    """Put the checkpoint where the page has its own, and photos into a dataset: its number and theirs."""
    api = sly.Api(sandbox.address, sandbox.token)
    info = {
        "experiment_name": "Cracks",
        "framework_name": "HRDA",
        "model_name": "HRDA mit_b0",
        "project_id": 27,
        "task_id": 265,
        "task_type": "semantic segmentation",
        "model_files": {},
        "checkpoints": ["checkpoints/best.pth"],
        "best_checkpoint": "best.pth",
        "model_meta": "model_meta.json",
        "hyperparameters": "hyperparameters.yaml",
        "artifacts_dir": EXPERIMENT,
    }
    (folder / "experiment_info.json").write_text(json.dumps(info))
    (folder / "model_meta.json").write_text('{"classes": [], "tags": []}')
    for name in ("experiment_info.json", "model_meta.json"):
        api.file.upload(sandbox.team_id, str(folder / name), f"{EXPERIMENT}/{name}")
    for remote in (f"{EXPERIMENT}/checkpoints/best.pth", FORMER_CHECKPOINT):
        api.file.upload(sandbox.team_id, str(folder / "model.pth"), remote)
    project = api.project.create(sandbox.workspace_id, "cracks")
    dataset = api.dataset.create(project.id, "checked")
    infos = api.image.upload_paths(dataset.id, [path.name for path in photos], [str(path) for path in photos])
    return dataset.id, [each.id for each in infos]


class web_server:
    """A folder's files on http://127.0.0.1, while the block runs."""

    def __init__(self, folder: Path) -> None:
        handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def assert_answered(document: str, outcomes: list[Outcome]) -> None:
    """Every block ended well and printed what it is expected to."""
    for block, step, outcome in zip(to_run(document), RUN[document], outcomes, strict=False):
        where = f"{document}:{block.line} printed:\n{outcome.output[-4000:]}"
        assert outcome.code == 0, f"exit code {outcome.code}; {where}"
        for answer in step.answers:
            assert answer in outcome.output, f"no {answer!r}; {where}"
    assert len(outcomes) == len(RUN[document])


def masks(path: Path) -> dict[str, np.ndarray]:
    """A written annotation's classes as masks at the photo's size."""
    annotation = json.loads(path.read_text())
    meta = sly.ProjectMeta([sly.ObjClass(label["classTitle"], sly.Bitmap) for label in annotation["objects"]])
    found = {}
    for label in sly.Annotation.from_json(annotation, meta).labels:
        found[label.obj_class.name] = np.zeros((annotation["size"]["height"], annotation["size"]["width"]), np.uint8)
        label.draw(found[label.obj_class.name], color=1)
    return found


def test_every_block_is_run_or_marked_with_its_reason():
    marked = {(block.document, block.first, block.reason) for d in DOCUMENTS for block in blocks(d) if block.reason}
    assert marked == MARKED
    assert {
        (b.document, b.text.split("\n")[0]) for d in DOCUMENTS for b in blocks(d) if b.language == OUTPUT
    } == OUTPUTS
    for document in DOCUMENTS:
        assert {block.language for block in blocks(document)} <= {*SHELLS, PYTHON, OUTPUT}, document
        steps = RUN.get(document, ())
        assert [block.first[: len(step.first)] for block, step in zip(to_run(document), steps, strict=False)] == [
            step.first for step in steps
        ], document
        assert len(to_run(document)) == len(steps), f"{document} has a block that nothing runs"


def test_every_variable_of_the_tests_is_one_that_a_block_names():
    named = {name for document in DOCUMENTS for block in to_run(document) for name in block.variables}
    assert named == {*VARIABLES, *FOUND}


def test_blocks_are_found_with_their_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "- a\n\n  ```sh\n  A=${A:-1}\n  # why\n  run $A\n  ```\n<!-- not run by the tests: no -->\n~~~\n```\n~~~\n"
    )
    first, second = fences(page, "page.md")
    assert (first.line, first.language, first.first, first.variables) == (3, "sh", "run $A", {"A"})
    assert (second.text, second.reason) == ("```\n", "no")


@pytest.mark.parametrize(
    ("text", "message"),
    [("```\nls\n", "does not end"), ("<!-- not run by the tests: no -->\n\n```\nls\n```\n", "right before")],
)
def test_block_or_mark_that_leads_nowhere_is_an_error(text, message, tmp_path):
    (tmp_path / "page.md").write_text(text)
    with pytest.raises(ValueError, match=message):
        fences(tmp_path / "page.md", "page.md")


def test_commands_of_training_do_what_its_page_says(reader):
    assert_answered("docs/training.md", reader.read("docs/training.md"))


def test_commands_of_the_front_page_do_what_it_says(reader, trained):
    shutil.copy(next((trained / "photos/checked/img").iterdir()), trained / "photo.jpg")
    assert_answered("README.md", reader.read("README.md"))


def test_commands_of_serving_do_what_its_page_says(reader, served):
    assert_answered("serve/README.md", reader.read("serve/README.md"))
    with np.load(served / "probabilities.npz") as answer:
        np.testing.assert_allclose(answer["probabilities"].astype(np.float32).sum(0), 1, atol=0.01)


def test_outputs_are_written_and_read_as_their_page_says(reader, served):
    assert_answered("docs/outputs.md", reader.read("docs/outputs.md"))
    page = (ROOT / "docs/outputs.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `") and line.count("|") == 5]
    assert {row.split("`")[1] for row in rows} == set(FORMATS)
    for row in rows:
        for path in re.findall(r"`([^`]*)`", row.split("|")[2]):
            assert (served / "results" / path).is_file(), path


def test_importing_does_what_its_page_says(reader, trained):
    for folder in ("images", "masks"):
        (trained / "mine" / folder).mkdir(parents=True)
    for photo in sorted((trained / "photos/checked/img").iterdir())[:2]:
        shutil.copy(photo, trained / "mine" / "images")
        mask = np.zeros(read_image(photo).shape[:2], np.uint8)
        mask[10] = 1
        cv2.imwrite(str(trained / "mine" / "masks" / f"{photo.stem}.png"), mask)
    assert_answered("docs/import.md", reader.read("docs/import.md"))


def test_orthomosaics_are_predicted_as_their_page_says(reader, trained):
    with rasterio.open(
        trained / "mosaic.tif",
        "w",
        driver="GTiff",
        width=300,
        height=200,
        count=3,
        dtype="uint8",
        crs="EPSG:32633",
        transform=from_origin(500_000, 5_000_000, 0.01, 0.01),
    ) as file:
        file.write(np.random.default_rng(0).integers(0, 256, (3, 200, 300), np.uint8))
    assert_answered("docs/orthomosaics.md", reader.read("docs/orthomosaics.md"))
    assert (trained / "found" / "mosaic.labels.tif").is_file()


def test_collection_is_predicted_as_its_page_says(reader, trained):
    shutil.copy(trained / "runs/first/checkpoints/best.pth", trained / "model.pth")
    assert_answered("docs/batch.md", reader.read("docs/batch.md"))
    written = sorted(path.stem for path in (trained / "predictions_batch/masks").rglob("*.png"))
    assert written == sorted(path.stem for path in (trained / "photos").rglob("img/*.*"))


def test_training_in_several_processes_does_what_its_page_says(reader, trained):
    assert_answered("docs/several_gpus.md", reader.read("docs/several_gpus.md"))


def test_folder_is_predicted_by_the_checkpoint_of_a_real_training(trained):
    photos = sorted((trained / "photos/checked/img").iterdir())
    written = sorted((trained / "predictions/img").glob("*.json"))
    assert [path.name for path in written] == [f"{photo.name}.json" for photo in photos]
    for photo, path in zip(photos, written, strict=True):
        found = masks(path)
        assert set(found) <= {"__bg__", "crack"}
        areas = np.sum(list(found.values()), axis=0)
        assert areas.shape == read_image(photo).shape[:2]
        assert (areas == 1).all(), "each pixel has one class"
        assert cv2.imread(str(path.with_suffix(".png"))).shape[:2] == areas.shape


def test_exported_network_of_a_real_training_predicts_the_same(served):
    ours = masks(served / "predictions/photo.jpg.json")
    exported = masks(served / "predictions_onnx/photo.jpg.json")
    assert set(ours) == set(exported)
    for name, mask in ours.items():
        assert (mask == exported[name]).mean() > 0.999

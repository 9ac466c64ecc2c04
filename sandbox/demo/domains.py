"""The demo's three domains: generated, or folders of the user's own; on disk and on the instance."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import supervisely as sly

from common.data.folders import is_of_project, split_spec
from common.data.images import IMAGE_SUFFIXES
from common.data.project import open_project
from sandbox.demo.processes import DemoError
from sandbox.synthetic.projects import write_project

GENERATED = {
    # name: (domain, photos, first seed, labelled)
    "source": ("source", 300, 0, True),
    "target": ("real_like", 200, 100_000, False),
    "val": ("real_like", 60, 200_000, True),
}
SIDE = 256


@dataclass(frozen=True)
class Domain:
    """A domain of the demo."""

    spec: str
    """`DIR` or `DIR:DATASET` on this machine."""
    project_id: int
    """Number of the project on the instance."""
    dataset_ids: list[int] | None
    """Numbers of the chosen datasets; None: all."""

    @property
    def state(self) -> dict[str, object]:
        """The domain in an app state."""
        return {"project_id": self.project_id, "dataset_ids": self.dataset_ids}

    def images(self, api: sly.Api) -> list[sly.ImageInfo]:
        """The domain's photos on the instance."""
        datasets = self.dataset_ids or [info.id for info in api.dataset.get_list(self.project_id, recursive=True)]
        return [image for number in datasets for image in api.image.get_list(number)]


def require_photos(spec: str) -> None:
    """Refuse a folder that is no project and cannot be imported as one either.

    Raises:
        ProjectError: it says what is wrong.
    """
    folder, _ = split_spec(spec)
    if is_of_project(folder) or not any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*")):
        open_project(spec)


def as_project(spec: str, out: Path, *, labelled: bool, say: Callable[[str], None]) -> str:
    """`DIR` or `DIR:DATASET` of a project: `spec` itself, or what `python -m train import` makes of it in `out`.

    Raises:
        DemoError: it cannot be imported; the reason.
    """
    folder, wanted = split_spec(spec)
    if is_of_project(folder):
        return spec
    say(f"Importing {folder}.")
    command = [sys.executable, "-m", "train", "import", str(folder), "--out", str(out)]
    done = subprocess.run(
        [*command, *([] if labelled else ["--unlabelled"])], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise DemoError(done.stderr.strip().removeprefix("error: "))
    say(done.stdout.strip().splitlines()[-1])
    return str(out) if wanted is None else f"{out}:{wanted}"


def generate(folder: Path, chosen: dict[str, str | None], say: Callable[[str], None]) -> dict[str, str]:
    """Folders of the three domains: the user's where given, generated ones for the rest.

    Args:
        folder: where generated projects go.
        chosen: `DIR[:DATASET]` or None for source, target and val; what is no project is imported.
        say: gets sentences about progress.

    Raises:
        DemoError: as `as_project`.
    """
    specs = {}
    for role, spec in chosen.items():
        if spec:
            specs[role] = as_project(spec, folder / role, labelled=role != "target", say=say)
            continue
        domain, count, seed, labelled = GENERATED[role]
        say(f"Generating {count} photos of the {domain} domain for {role}.")
        # In this process alone: others would each answer a Ctrl-C in their own way, and it takes some seconds.
        write_project(folder / role, domain, count, seed=seed, size=(SIDE, SIDE), labelled=labelled, workers=1)
        specs[role] = str(folder / role)
    return specs


def upload(api: sly.Api, workspace_id: int, specs: dict[str, str], say: Callable[[str], None]) -> dict[str, Domain]:
    """Upload every project folder once and find the chosen datasets on the instance."""
    numbers: dict[Path, int] = {}
    domains = {}
    for role, spec in specs.items():
        folder, wanted = split_spec(spec)
        folder = folder.resolve()
        if folder not in numbers:
            say(f"Uploading {folder.name} as a project.")
            numbers[folder], _ = sly.upload_project(
                str(folder), api, workspace_id, project_name=folder.name, log_progress=False
            )
        datasets = {"/".join([*parents, info.name]): info.id for parents, info in api.dataset.tree(numbers[folder])}
        used = {record.dataset for record in open_project(spec)}
        ids = [number for path, number in datasets.items() if path in used] if wanted else None
        domains[role] = Domain(spec, numbers[folder], ids)
    return domains

"""What a release is made of: the branch without requirements.txt, one tag in all places, and the workflows."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.documents.fences import fences

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
IMAGE = json.loads((ROOT / "config.json").read_text(encoding="utf-8"))["docker_image"]
PUT_TOGETHER = (
    ".github/release_branch.sh",
    ".github/absolute_links.py",
    "requirements.txt",
    "config.json",
    "README.md",
    "serve/config.json",
    "serve/README.md",
)
OF_A_RUNNER = ("apt-get ", "sudo rm ", "echo ", "docker run --rm ")
"""Beginnings of commands that only set up or look after a runner."""


def git(*words: str, cwd: Path) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *words]
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with the script and both apps' folders."""
    for name in PUT_TOGETHER:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    git("init", "-q", "-b", "main", cwd=tmp_path)
    git("config", "user.name", "t", cwd=tmp_path)
    git("config", "user.email", "t@t", cwd=tmp_path)
    git("add", "-A", cwd=tmp_path)
    git("commit", "-q", "-m", "first", cwd=tmp_path)
    git("remote", "add", "origin", "git@github.com:owner/hrda.git", cwd=tmp_path)
    return tmp_path


def make_branch(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", ".github/release_branch.sh", *words]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True)


def test_branch_of_a_release_is_the_last_commit_without_the_file_that_is_refused(checkout: Path):
    for _ in range(2):
        done = make_branch(checkout, "v0.1.0")
        assert done.returncode == 0, done.stderr
    changed = git("diff", "--name-status", "main", "release-v0.1.0", cwd=checkout).split("\n")
    assert set(changed) == {"D\trequirements.txt", "M\tREADME.md", "M\tserve/README.md", ""}
    assert git("rev-parse", "release-v0.1.0^", cwd=checkout) == git("rev-parse", "main", cwd=checkout)
    names = git("ls-tree", "-r", "--name-only", "release-v0.1.0", cwd=checkout).split()
    for manifest in [name for name in names if Path(name).name == "config.json"]:
        assert str(Path(manifest).parent / "requirements.txt") not in names
    assert git("status", "--porcelain", cwd=checkout) == "", "the working folder is as it was"
    assert git("branch", "--show-current", cwd=checkout).strip() == "main"


@pytest.mark.parametrize("page", ["README.md", "serve/README.md"])
def test_page_of_a_release_has_absolute_addresses_of_files_that_are_there(page: str, checkout: Path):
    assert make_branch(checkout, "v0.1.0").returncode == 0
    shown = git("show", f"release-v0.1.0:{page}", cwd=checkout)
    addresses = re.findall(r"\]\(([^)]+)\)", shown)
    assert all(address.startswith(("https://", "#")) for address in addresses)
    for kind, host in (("", "github.com/owner/hrda/blob"), ("!", "raw.githubusercontent.com/owner/hrda")):
        found = re.findall(rf"{kind}\[[^\]]*\]\(https://{host}/release-v0\.1\.0/([^)#]+)", shown)
        assert all((ROOT / path).exists() for path in found)
        assert found or page != "README.md"
    assert len(addresses) == len(re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text(encoding="utf-8")))


def test_pages_of_a_release_need_a_repository_that_they_lead_to(checkout: Path):
    git("remote", "set-url", "origin", "/somewhere/else", cwd=checkout)
    done = make_branch(checkout, "v0.1.0")
    assert (done.returncode, "v0.1.0 owner/name" in done.stderr) == (2, True)
    assert make_branch(checkout, "v0.1.0", "me/mine").returncode == 0
    assert "https://raw.githubusercontent.com/me/mine/" in git("show", "release-v0.1.0:README.md", cwd=checkout)


def test_branch_is_not_made_of_what_is_not_committed_or_of_no_version(checkout: Path):
    done = make_branch(checkout, "0.1")
    assert (done.returncode, done.stderr) == (2, "usage: .github/release_branch.sh v0.1.0 [owner/name]\n")
    (checkout / "new.txt").write_text("new")
    done = make_branch(checkout, "v0.1.0")
    assert (done.returncode, "Commit or remove" in done.stderr) == (2, True)
    assert "release" not in git("branch", cwd=checkout)


def test_one_tag_of_the_images_is_in_all_places():
    name, tag = IMAGE.split(":")
    named = re.compile(rf"\b{name}(?:-deploy)?:([\w.]+)")
    places = [*WORKFLOWS, *(ROOT / "docker").iterdir(), ROOT / "docs/release.md", ROOT / "serve/README.md"]
    places += [ROOT / "config.json", ROOT / "serve/config.json"]
    for place in places:
        assert set(named.findall(place.read_text(encoding="utf-8"))) <= {tag}, f"{place} has another tag"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_runs_the_commands_that_a_reader_is_told(path: Path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    # YAML 1.1 reads the key `on` as true.
    assert set(workflow) >= {"name", True, "permissions", "jobs"}
    documents = ("docs/developing.md", "serve/README.md", "docs/release.md")
    told = {
        line.strip() for name in documents for block in fences(ROOT / name, name) for line in block.text.splitlines()
    }
    run = []
    for job in workflow["jobs"].values():
        assert {"runs-on", "steps", "timeout-minutes"} <= set(job)
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            run += [line.strip() for line in step.get("run", "").splitlines() if line.strip()]
    ours = [line for line in run if not line.startswith(OF_A_RUNNER)]
    pushed = [f"docker push {line.rsplit(' ', 2)[1]}" for line in ours if line.startswith("docker build ")]
    assert ours and set(ours) <= {*told, *pushed}
    for file in re.findall(r"-f (\S+)", "\n".join(ours)):
        assert (ROOT / file).is_file()


def test_tests_are_among_the_workflows():
    assert "make test" in (ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8")

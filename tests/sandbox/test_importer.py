"""Projects on disk become projects of the sandbox, the same as if the SDK had uploaded them."""

import json
from pathlib import Path

import pytest
import supervisely as sly

from sandbox.importer import ImportFailed, import_project, import_projects
from sandbox.storage import Storage
from sandbox.testing import running_sandbox
from tests.sandbox import samples


def test_imported_project_downloads_as_it_was(tmp_path):
    source = samples.write(tmp_path / "data" / "cracks")
    with running_sandbox(tmp_path / "state", tmp_path / "data") as sandbox:
        (imported,) = sandbox.imported
        assert (imported.name, imported.images, imported.skipped) == ("cracks", 12, 0)
        api = sly.Api(sandbox.address, sandbox.token)
        sly.download_fast(api, imported.project_id, str(tmp_path / "back"), log_progress=False)
    back = sly.Project(str(tmp_path / "back"), sly.OpenMode.READ)
    assert samples.content(back) == samples.content(source)
    assert samples.order(back, "a", "photo_0.png") == samples.order(source, "a", "photo_0.png")


@pytest.fixture
def storage(tmp_path):
    storage = Storage(tmp_path / "state")
    yield storage
    storage.close()


@pytest.fixture
def project(tmp_path) -> Path:
    return Path(samples.write(tmp_path / "data" / "cracks", images=1).directory)


def test_second_start_imports_nothing_twice(storage, project):
    first = import_projects(storage, project.parent)
    again = import_projects(storage, project)
    assert [item.images for item in again] == [0]
    assert again[0].project_id == first[0].project_id
    assert storage.value("SELECT COUNT(*) FROM images") == 4


def test_unreadable_image_is_left_out_and_counted(storage, project):
    (project / "a" / "img" / "broken.jpg").write_text("not an image")
    imported = import_project(storage, project)
    assert (imported.images, imported.skipped) == (4, 1)


def test_image_without_annotation_and_with_details_is_taken(storage, project):
    (project / "a" / "ann" / "photo_0.png.json").unlink()
    (project / "a" / "meta").mkdir()
    (project / "a" / "meta" / "photo_0.png.json").write_text('{"camera": "x"}')
    import_project(storage, project)
    row = storage.one("SELECT i.* FROM images i JOIN datasets d ON d.id=i.dataset_id WHERE d.name='a'")
    assert json.loads(row["meta"]) == {"camera": "x"}
    assert storage.value("SELECT COUNT(*) FROM figures WHERE image_id=?", row["id"]) == 0


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("meta.json", "{", "meta.json"),
        ("meta.json", '{"classes": [], "tags": [], "projectType": "videos"}', "videos"),
        ("meta.json", '{"classes": [], "tags": []}', "no class"),
        ("a/ann/photo_0.png.json", '{"tags": []}', "photo_0.png.json"),
        ("a/ann/photo_0.png.json", '{"objects": [{"geometryType": "oriented_bbox"}]}', "oriented box"),
    ],
    ids=["no JSON", "videos", "missing class", "no objects", "oriented box"],
)
def test_damaged_project_is_named_and_leaves_nothing_behind(storage, project, file, text, message):
    (project / file).write_text(text)
    with pytest.raises(ImportFailed, match=message):
        import_project(storage, project)
    assert storage.value("SELECT COUNT(*) FROM projects") == 0
    assert storage.value("SELECT COUNT(*) FROM images") == 0


def test_folder_without_projects_is_refused(storage, tmp_path):
    with pytest.raises(ImportFailed, match=r"meta\.json"):
        import_projects(storage, tmp_path / "nowhere")

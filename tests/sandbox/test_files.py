"""Team Files: what is put there is found, listed and taken back unchanged."""

import hashlib
import json
from base64 import b64encode

import pytest
import requests

TEAM = 1


@pytest.fixture
def folder(tmp_path):
    """``run/config.yaml``, ``run/checkpoints/best.pth`` and ``run/checkpoints/deep/x.bin`` on disk."""
    contents = {"config.yaml": b"a: 1\n", "checkpoints/best.pth": b"\x00\x01" * 70_000, "checkpoints/deep/x.bin": b"x"}
    for name, content in contents.items():
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "run", contents


@pytest.fixture(params=["upload_directory", "upload_directory_fast"])
def uploaded(api, folder, request):
    """The folder in Team Files under ``/experiments/1_p/7_HRDA``; removed after the test."""
    options = {"change_name_if_conflict": False}
    remote = getattr(api.file, request.param)(TEAM, str(folder[0]), "/experiments/1_p/7_HRDA", **options)
    yield remote, folder[1]
    if api.file.dir_exists(TEAM, "/experiments/"):
        api.file.remove_dir(TEAM, "/experiments/")


def test_directory_comes_back_as_it_was_sent(api, uploaded, tmp_path):
    remote, contents = uploaded
    assert remote == "/experiments/1_p/7_HRDA"
    api.file.download_directory(TEAM, remote, str(tmp_path / "back"))
    back = {
        str(p.relative_to(tmp_path / "back")): p.read_bytes() for p in (tmp_path / "back").rglob("*") if p.is_file()
    }
    assert back == contents


def test_lists_are_whole_flat_or_of_one_folder(api, uploaded):
    remote, contents = uploaded
    assert api.file.listdir(TEAM, "/experiments", recursive=True) == sorted(f"{remote}/{name}" for name in contents)
    flat = api.file.list(TEAM, remote, recursive=False, return_type="fileinfo")
    assert [(info.path, info.is_dir) for info in flat] == [
        (f"{remote}/checkpoints/", True),
        (f"{remote}/config.yaml", False),
    ]
    # A name that another begins with is not in its folder.
    assert api.file.list(TEAM, remote[:-1]) == []
    assert api.file.get_directory_size(TEAM, remote) == sum(map(len, contents.values()))
    modern = api.storage.list(TEAM, remote, recursive=False)
    assert {(info.name, info.is_dir) for info in modern} == {("checkpoints", True), ("config.yaml", False)}
    everything = api.storage.list(TEAM, "/experiments/", include_files=False)
    assert [info.path for info in everything] == [
        "/experiments/1_p/", f"{remote}/", f"{remote}/checkpoints/", f"{remote}/checkpoints/deep/",
    ]  # fmt: skip


def test_info_of_a_file_by_path_and_id(api, uploaded):
    remote, contents = uploaded
    info = api.file.get_info_by_path(TEAM, f"{remote}/config.yaml")
    assert (info.name, info.sizeb, info.ext) == ("config.yaml", 5, "yaml")
    assert info.hash == b64encode(hashlib.sha256(contents["config.yaml"]).digest()).decode()
    assert api.file.get_info_by_id(info.id) == info
    assert requests.get(info.full_storage_url, timeout=5).content == contents["config.yaml"]
    assert api.file.get_info_by_path(TEAM, f"{remote}/none.yaml") is None
    assert api.file.exists(TEAM, info.path)
    assert api.storage.dir_exists(TEAM, f"{remote}/checkpoints")
    assert not api.file.exists(TEAM, f"{remote}/checkpoints")


def test_free_name_of_a_folder_counts_on(api, uploaded, folder):
    remote, _ = uploaded
    assert api.file.get_free_dir_name(TEAM, remote) == f"{remote}_000"
    assert api.file.upload_directory(TEAM, str(folder[0]), remote) == f"{remote}_000"
    with pytest.raises(FileExistsError):
        api.file.upload_directory(TEAM, str(folder[0]), remote, change_name_if_conflict=False)


def test_upload_to_a_taken_path_replaces_the_file(api, tmp_path):
    path = tmp_path / "note.json"
    for value in ({"a": 1}, {"b": [2, 3]}):
        path.write_text(json.dumps(value))
        api.file.upload(TEAM, str(path), "/notes/note.json")
        assert api.file.get_json_file_content(TEAM, "/notes/note.json") == value
    assert len(api.file.list(TEAM, "/notes/")) == 1
    api.file.download(TEAM, "/notes/note.json", str(tmp_path / "back.json"))
    assert json.loads((tmp_path / "back.json").read_text()) == {"b": [2, 3]}
    api.file.remove(TEAM, "/notes/note.json")
    assert not api.file.dir_exists(TEAM, "/notes/")


def test_part_of_a_file_can_be_asked_for(api, sandbox, tmp_path):
    (tmp_path / "big.bin").write_bytes(bytes(range(256)) * 20)
    api.file.upload(TEAM, str(tmp_path / "big.bin"), "/big.bin")
    url = f"{sandbox.address}/public/api/v3/file-storage.download"
    headers = {"x-api-key": sandbox.token, "Range": "bytes=5100-"}
    answer = requests.post(url, json={"teamId": TEAM, "path": "/big.bin"}, headers=headers, timeout=5)
    assert answer.status_code == 206
    assert answer.content == (bytes(range(256)) * 20)[5100:]


def test_removal_takes_what_was_named_and_nothing_else(api, uploaded):
    remote, _ = uploaded
    api.file.remove_file(TEAM, f"{remote}/config.yaml")
    api.file.remove_dir(TEAM, f"{remote}/checkpoints/deep/")
    assert api.file.listdir(TEAM, "/experiments/", recursive=True) == [f"{remote}/checkpoints/best.pth"]
    with pytest.raises(requests.HTTPError):
        api.file.remove(TEAM, f"{remote}/none")


@pytest.mark.parametrize("path", ["relative/a.txt", "/up/../../a.txt"])
def test_paths_that_leave_team_files_are_refused(api, tmp_path, path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(requests.HTTPError) as caught:
        api.file.upload(TEAM, str(tmp_path / "a.txt"), path)
    assert caught.value.response.status_code == 400

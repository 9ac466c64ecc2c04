"""The sandbox as a whole: access, unknown methods, restarts, the command line."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import requests
import supervisely as sly

from sandbox.storage import Storage
from sandbox.testing import running_sandbox
from tests.sandbox import samples

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("headers", [{}, {"x-api-key": "wrong"}, {"x-api-key": ""}], ids=["none", "wrong", "empty"])
@pytest.mark.parametrize("method", ["projects.list", "images.download", "unheard.of", "sandbox.tasks.add"])
def test_no_method_answers_without_the_token(sandbox, headers, method):
    url = f"{sandbox.address}/public/api/v3/{method}"
    answer = requests.post(url, json={"workspaceId": 1}, headers=headers, timeout=5)
    assert answer.status_code == 401
    assert "API token" in answer.json()["error"]


def test_sdk_with_a_wrong_token_fails_at_once(sandbox):
    with pytest.raises(requests.HTTPError, match="API token"):
        sly.Api(sandbox.address, "0" * 128).team.get_list()


def test_unknown_method_is_a_404_and_its_name_is_logged(api, caplog):
    with pytest.raises(requests.HTTPError, match="pointclouds.bulk.conjure") as caught:
        api.post("pointclouds.bulk.conjure", {"id": 1})
    assert caught.value.response.status_code == 404
    assert [record.getMessage() for record in caplog.records if record.name == "sandbox"] == [
        "unknown method: pointclouds.bulk.conjure"
    ]


def test_body_that_is_no_json_object_is_refused_not_a_crash(sandbox):
    url, headers = f"{sandbox.address}/public/api/v3/projects.info", {"x-api-key": sandbox.token}
    for body in ("[1]", "not json", "{}", '{"id": {"a": 1}}', '{"id": "seven"}', '{"id": true}'):
        answer = requests.post(url, data=body, headers={**headers, "Content-Type": "application/json"}, timeout=5)
        assert answer.status_code in (400, 422), body


def test_instance_is_recent_enough_for_the_apps(api, sandbox):
    assert api.is_version_supported("6.18.3")
    assert not api.is_version_supported("6.18.4")
    assert [team.id for team in api.team.get_list()] == [sandbox.team_id]
    assert [workspace.id for workspace in api.workspace.get_list(sandbox.team_id)] == [sandbox.workspace_id]
    assert api.workspace.get_info_by_id(sandbox.workspace_id).team_id == sandbox.team_id
    assert api.user.get_my_info().login == "sandbox"
    assert api.agent.get_list_available(sandbox.team_id)[0].type == "sly_agent"


def test_state_survives_a_restart(tmp_path):
    (tmp_path / "note.txt").write_text("kept")
    with running_sandbox(tmp_path / "state") as first:
        api = sly.Api(first.address, first.token)
        project = api.project.create(first.workspace_id, "kept")
        dataset = api.dataset.create(project.id, "ds")
        image = api.image.upload_np(dataset.id, "a.png", np.full((5, 6, 3), 7, np.uint8))
        api.file.upload(first.team_id, str(tmp_path / "note.txt"), "/note.txt")
        task_id = first.create_task("serve", "http://127.0.0.1:9")["id"]
    with running_sandbox(tmp_path / "state") as second:
        assert second.token == first.token
        api = sly.Api(second.address, second.token)
        assert api.project.get_info_by_name(second.workspace_id, "kept").id == project.id
        assert (api.image.download_np(image.id) == 7).all()
        api.file.download(second.team_id, "/note.txt", str(tmp_path / "back.txt"))
        assert (tmp_path / "back.txt").read_text() == "kept"
        assert api.task.get_info_by_id(task_id)["meta"]["sessionToken"]


def test_two_sandboxes_run_beside_each_other(tmp_path):
    with running_sandbox(tmp_path / "a") as a, running_sandbox(tmp_path / "b", token="mine") as b:
        assert a.address != b.address
        assert b.token == "mine" != a.token


def test_failed_write_leaves_nothing_behind(tmp_path):
    storage = Storage(tmp_path)

    def write() -> None:
        with storage.transaction():
            storage.run("INSERT INTO settings VALUES ('a', '1')")
            with storage.transaction():
                storage.run("INSERT INTO settings VALUES ('a', '2')")

    with pytest.raises(Exception, match="UNIQUE"):
        write()
    assert storage.value("SELECT COUNT(*) FROM settings") == 0
    with storage.blobs.writer() as writer:
        writer.write(b"whole")
    with pytest.raises(ZeroDivisionError), storage.blobs.writer() as writer:
        writer.write(b"half")
        raise ZeroDivisionError
    assert [path.read_bytes() for path in tmp_path.glob("blobs/**/*") if path.is_file()] == [b"whole"]
    storage.close()


def test_environment_of_a_child_process(sandbox, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.setenv("PROJECT_ID", "3")
    env = sandbox.env(TASK_ID=7, PROJECT_ID=None, **{"modal.state.slyProjectId": 5})
    assert (env["SERVER_ADDRESS"], env["API_TOKEN"], env["TEAM_ID"]) == (sandbox.address, sandbox.token, "1")
    assert (env["TASK_ID"], env["SUPERVISELY_TASK_ID"], env["modal.state.slyProjectId"]) == ("7", "7", "5")
    assert env["NO_PROXY"] == "example.org,127.0.0.1,localhost"
    assert "PROJECT_ID" not in env
    assert "SUPERVISELY_TASK_ID" not in sandbox.env()


def test_command_line_imports_serves_and_stops(tmp_path):
    samples.write(tmp_path / "data" / "cracks", images=1)
    command = [sys.executable, "-m", "sandbox", "--data", str(tmp_path / "data"), "--state", str(tmp_path / "state")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ})
    try:
        lines = []
        while not (lines and lines[-1].startswith("The sandbox is ready")):
            line = process.stdout.readline()
            assert line, f"ended early after {lines}"
            lines.append(line.strip())
        values = dict(line.split("=", 1) for line in lines if "=" in line)
        api = sly.Api(values["SERVER_ADDRESS"], values["API_TOKEN"])
        assert api.project.get_info_by_name(int(values["WORKSPACE_ID"]), "cracks").images_count == 4
    finally:
        process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0


def test_command_line_names_what_is_wrong_with_the_data(tmp_path):
    command = [sys.executable, "-m", "sandbox", "--data", str(tmp_path), "--state", str(tmp_path / "state")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert result.returncode == 1
    assert "meta.json" in result.stderr
    assert "Traceback" not in result.stderr


def test_hidden_workspace_is_still_found_by_its_name(api, sandbox):
    """The benchmark hides its workspace and looks for it the next time."""
    workspace = api.workspace.create(sandbox.team_id, "technical")
    api.workspace.change_visibility(workspace.id, visible=False)
    assert api.workspace.get_info_by_name(sandbox.team_id, "technical").id == workspace.id
    assert api.post("workspaces.info", {"id": workspace.id}).json()["hidden"] is True
    api.workspace.change_visibility(workspace.id, visible=True)
    assert api.post("workspaces.info", {"id": workspace.id}).json()["hidden"] is False

"""Weights from a server: nothing unchecked is kept, and without internet one is told what to do."""

import hashlib
from pathlib import Path

import pytest

from common.hrda.network import downloads
from common.hrda.network.downloads import DownloadError, RemoteFile, find_kept, require_reachable, weights_folder
from common.hrda.network.mit_weights import read_encoder
from tests.weights import NOWHERE, Server, serving

CONTENT = bytes(range(256)) * 9000  # more than two reads
SUM = hashlib.sha256(CONTENT).hexdigest()
NAME = f"mit-{SUM[:8]}.pth"


@pytest.fixture(autouse=True)
def server_of_this_machine(monkeypatch):
    monkeypatch.setenv(downloads.PRIVATE, "true")


@pytest.fixture
def server():
    with serving() as running:
        running.files[f"/weights/{NAME}"] = CONTENT
        yield running


def fetch(remote: RemoteFile, folder: Path, progress: downloads.Progress | None = None) -> Path:
    """Download bytes that are no weights."""
    return downloads.fetch(remote, folder, lambda path: None, progress)


def remote(server: Server, name: str = NAME) -> RemoteFile:
    return RemoteFile.from_url(f"{server.address}/weights/{name}")


def test_file_is_downloaded_once_and_its_progress_told_to_the_end(server, tmp_path):
    told = []
    path = fetch(remote(server), tmp_path / "kept", lambda *report: told.append(report))
    assert path == tmp_path / "kept" / NAME
    assert path.read_bytes() == CONTENT
    assert told[0] == (NAME, 2**20, len(CONTENT))
    assert told[-1] == (NAME, len(CONTENT), len(CONTENT))
    assert fetch(remote(server), tmp_path / "kept") == path
    assert server.asked == [f"GET /weights/{NAME}"]
    assert [entry.name for entry in path.parent.iterdir()] == [NAME]


def test_file_put_there_by_hand_needs_no_server(tmp_path):
    (tmp_path / NAME).write_bytes(CONTENT)
    assert fetch(RemoteFile.from_url(f"{NOWHERE}/{NAME}"), tmp_path) == tmp_path / NAME


def test_file_that_is_there_is_never_replaced_by_another(server, tmp_path):
    server.files["/weights/mine.pth"] = CONTENT
    for name, url in ((NAME, NAME), ("mine.pth", f"mine.pth#sha256={SUM}")):
        (tmp_path / name).write_bytes(CONTENT[:-1])
        for attempt in (find_kept, fetch):
            with pytest.raises(DownloadError, match="is not the file that is asked for, or is damaged.*Move it away"):
                attempt(remote(server, url), tmp_path)
        assert (tmp_path / name).read_bytes() == CONTENT[:-1]
    assert server.asked == []


def test_file_that_appears_during_the_download_is_not_replaced(server, tmp_path):
    def somebody_writes(*_: object) -> None:
        (tmp_path / NAME).write_text("of somebody else")

    with pytest.raises(DownloadError, match="is not the file that is asked for"):
        fetch(remote(server), tmp_path, somebody_writes)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(NAME, "of somebody else")]


def test_what_is_read_as_no_weights_is_not_kept(server, tmp_path):
    with pytest.raises(
        DownloadError, match=f"{NAME} could not be downloaded .* it is not kept: the file is not a file"
    ):
        downloads.fetch(remote(server), tmp_path, read_encoder)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["app.py", "config.json", "hrda.pth.py", ".bashrc", "weights", "authorized_keys"])
def test_only_files_of_weights_are_downloaded(name):
    with pytest.raises(DownloadError, match="A file of weights ends in .pth, .pt, .bin, .ckpt or .safetensors"):
        RemoteFile.from_url(f"https://example.com/{name}#sha256={SUM}")


def test_settings_of_others_do_not_reach_into_the_own_network(server, tmp_path, monkeypatch):
    """The server of published weights is named by the machine's owner; one in settings must be of the internet."""
    monkeypatch.delenv(downloads.PRIVATE)
    url = f"{server.address}/weights/{NAME}"
    for attempt in (fetch, require_reachable):
        with pytest.raises(DownloadError, match="must lead to a public address of the internet"):
            attempt(RemoteFile.from_url(url), tmp_path)
    assert server.asked == []
    assert fetch(RemoteFile.from_url(url, of_owner=True), tmp_path).read_bytes() == CONTENT


def test_other_content_than_the_sum_says_is_not_kept(server, tmp_path):
    server.files[f"/weights/{NAME}"] = CONTENT[::-1]
    with pytest.raises(DownloadError, match=f"SHA-256 sum begins with [0-9a-f]{{8}} and not with {SUM[:8]}"):
        fetch(remote(server), tmp_path)
    assert not list(tmp_path.iterdir())


def test_broken_connection_leaves_nothing_behind(server, tmp_path):
    server.sent = 2**20 + 5
    with pytest.raises(DownloadError, match=f"the connection ended after {server.sent} of {len(CONTENT)} bytes"):
        fetch(remote(server), tmp_path)
    assert not list(tmp_path.iterdir())


def test_whoever_follows_the_progress_can_end_the_download(server, tmp_path):
    def stop(*_: object) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        fetch(remote(server), tmp_path, stop)
    assert not list(tmp_path.iterdir())


def test_without_a_server_one_is_told_where_to_put_the_file(tmp_path):
    away = RemoteFile.from_url(f"{NOWHERE}/{NAME}")
    for attempt in (fetch, require_reachable):
        with pytest.raises(DownloadError, match="Connection refused. Without internet, download it elsewhere") as said:
            attempt(away, tmp_path)
        assert f"put it at {tmp_path / NAME}" in str(said.value)


def test_missing_file_is_noticed_without_loading_it(server, tmp_path):
    assert require_reachable(remote(server), tmp_path) == len(CONTENT)
    with pytest.raises(DownloadError, match="the server answers with status 404"):
        require_reachable(remote(server, f"other-{SUM[:8]}.pth"), tmp_path)
    assert {line.split()[0] for line in server.asked} == {"HEAD"}


def test_folder_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(DownloadError, match="taken"):
        fetch(remote(server), tmp_path / "taken")


def test_sum_may_stand_behind_the_address(server, tmp_path):
    server.files["/weights/mine.pth"] = CONTENT
    mine = RemoteFile.from_url(f"{server.address}/weights/mine.pth#sha256={SUM}")
    assert fetch(mine, tmp_path) == tmp_path / "mine.pth"


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://a/mine.pth", r"does not say its SHA-256 sum. Append it as #sha256="),
        ("http://a/mine-12.pth", "does not say its SHA-256 sum"),
        ("file:///etc/mine-12345678.pth", "from http:// or https://"),
        ("http:///mine-12345678.pth", "from http:// or https://"),
        ("http://a/#sha256=12345678", "from http:// or https://"),
        ("http://a/%2e%2e#sha256=12345678", "from http:// or https://"),
    ],
)
def test_address_without_a_file_or_a_sum_is_refused(url, sentence):
    with pytest.raises(DownloadError, match=sentence):
        RemoteFile.from_url(url)


def test_name_on_this_machine_cannot_lead_out_of_the_folder():
    assert RemoteFile.from_url("http://a/b%2F..%2Fc-12345678.pth").name == "c-12345678.pth"


def test_files_lie_where_the_owner_of_the_machine_says_or_torch_keeps_its_own(tmp_path, monkeypatch):
    monkeypatch.delenv(downloads.FOLDER, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert weights_folder() == tmp_path / "hub" / "checkpoints"
    monkeypatch.setenv(downloads.FOLDER, str(tmp_path / "mine"))
    assert weights_folder() == tmp_path / "mine"

"""Methods of Team Files."""

import mimetypes
import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from sqlite3 import Row

from fastapi import Request
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from sandbox.errors import ApiError, not_found
from sandbox.methods import Json, Methods, Store, address, content_path
from sandbox.payload import integer, items, text
from sandbox.storage import USER_ID, Storage, now

router = Methods()


def clean(path: str) -> str:
    """A path of Team Files without doubled or closing slashes.

    Raises:
        ApiError: 400 if it does not start at the root or leads upwards.
    """
    parts = PurePosixPath(path).parts
    if not path.startswith("/") or ".." in parts:
        raise ApiError(400, f"A path in Team Files starts with '/' and has no '..'. Received: {path!r}")
    return "/" + "/".join(part for part in parts if part.strip("/"))


def _file(row: Row, base: str) -> dict:
    name = PurePosixPath(row["path"]).name
    storage_path = content_path(row["hash"], name)
    return {
        "id": row["id"], "teamId": row["team_id"], "userId": USER_ID, "type": "file", "isDir": False, "name": name,
        "path": row["path"], "hash": row["hash"], "size": row["size"], "storagePath": storage_path,
        "fullStorageUrl": base + storage_path, "createdAt": row["created_at"], "updatedAt": row["updated_at"],
        "meta": {
            "size": row["size"], "ext": PurePosixPath(name).suffix.lstrip("."),
            "mime": mimetypes.guess_type(name)[0] or "application/octet-stream",
        },
    }  # fmt: skip


def _folder(team_id: int, path: str, updated_at: str) -> dict:
    return {
        "id": None, "teamId": team_id, "userId": USER_ID, "type": "folder", "isDir": True,
        "name": PurePosixPath(path).name, "path": f"{path}/", "hash": None, "size": None, "storagePath": None,
        "fullStorageUrl": None, "createdAt": updated_at, "updatedAt": updated_at,
        "meta": {"size": None, "ext": None, "mime": None},
    }  # fmt: skip


def _below(storage: Storage, team_id: int, path: str) -> list[Row]:
    """The rows of the files in the folder ``path`` and its folders; and of the file ``path``, if no slash ends it."""
    folder = clean(path).rstrip("/") + "/"
    itself = "" if path.endswith("/") else clean(path)
    return storage.all(
        "SELECT * FROM files WHERE team_id=? AND (path=? OR substr(path, 1, ?)=?) ORDER BY path",
        team_id, itself, len(folder), folder,
    )  # fmt: skip


def _list(storage: Storage, body: dict, base: str) -> list[dict]:
    team_id, path = integer(body, "teamId"), text(body, "path")
    rows = _below(storage, team_id, path)
    if body.get("recursive", True):
        return [_file(row, base) for row in rows]
    depth = len(PurePosixPath(clean(path)).parts)
    entries: dict[str, dict] = {}
    for row in rows:
        parts = PurePosixPath(row["path"]).parts
        if len(parts) <= depth + 1:
            entries[row["path"]] = _file(row, base)
        else:
            child = str(PurePosixPath(*parts[: depth + 1]))
            entries.setdefault(child, _folder(team_id, child, row["updated_at"]))
    return list(entries.values())


@router.method("file-storage.list")
def files_list(body: Json, store: Store, request: Request) -> list[dict]:
    return _list(store, body, address(request))


@router.method("file-storage.v2.list")
def files_list_v2(body: Json, store: Store, request: Request) -> dict:
    entities = _list(store, body, address(request))
    if body.get("recursive", True):
        top = len(PurePosixPath(clean(text(body, "path"))).parts)
        folders: dict[str, dict] = {}
        for entity in entities:
            for parent in list(PurePosixPath(entity["path"]).parents)[::-1]:
                if len(parent.parts) > top:
                    folder = _folder(entity["teamId"], str(parent), entity["updatedAt"])
                    folders.setdefault(str(parent), folder)
        entities = [*folders.values(), *entities]
    wanted = [kind for kind, key in (("file", "files"), ("folder", "folders")) if body.get(key, True)]
    entities = [entity for entity in entities if entity["type"] in wanted]
    return {"entities": entities[: integer(body, "limit", len(entities))], "continuationToken": None}


@router.method("file-storage.info")
def files_info(body: Json, store: Store, request: Request) -> dict:
    file_id = integer(body, "id")
    row = store.one("SELECT * FROM files WHERE id=?", file_id)
    if row is None:
        raise not_found("File", file_id)
    return _file(row, address(request))


def put(storage: Storage, team_id: int, path: str, content_hash: str, size: int) -> int:
    """Put a stored content at a path of Team Files, in place of what lies there, and return the file's id.

    Raises:
        ApiError: 404 for an unknown team, 400 if the path is not one of a file.
    """
    path, moment = clean(path), now()
    if path == "/":
        raise ApiError(400, "A file needs a name. Received the path '/'.")
    with storage.transaction():
        if storage.one("SELECT 1 FROM teams WHERE id=?", team_id) is None:
            raise not_found("Team", team_id)
        storage.run(
            "INSERT INTO files (team_id, path, hash, size, created_at, updated_at) VALUES (?,?,?,?,?,?)"
            " ON CONFLICT (team_id, path) DO UPDATE SET hash=excluded.hash, size=excluded.size,"
            " updated_at=excluded.updated_at",
            team_id, path, content_hash, size, moment, moment,
        )  # fmt: skip
        return storage.value("SELECT id FROM files WHERE team_id=? AND path=?", team_id, path)


async def _take_form(request: Request, storage: Storage) -> list[dict]:
    """Keep the files of a multipart request, in which name, folder and content of each follow one another."""
    team_id = integer(dict(request.query_params), "teamId")
    async with request.form(max_files=float("inf"), max_fields=float("inf")) as form:
        pairs = form.multi_items()
        names = [value for key, value in pairs if key == "name"]
        folders = [value for key, value in pairs if key == "path"]
        contents = [value for key, value in pairs if key == "file" and isinstance(value, UploadFile)]
        if not len(names) == len(folders) == len(contents):
            raise ApiError(
                400,
                "Each file needs 'name', 'path' (its folder) and 'file'. "
                f"Received: {len(names)}, {len(folders)} and {len(contents)}",
            )

        def take(name: str, folder: str, content: UploadFile) -> dict:
            content_hash, size = storage.blobs.put(content.file)
            file_id = put(storage, team_id, f"{folder.rstrip('/')}/{name}", content_hash, size)
            return files_info({"id": file_id}, storage, request)

        return [
            await run_in_threadpool(take, name, folder, content)
            for name, folder, content in zip(names, folders, contents, strict=True)
        ]


@router.method("file-storage.bulk.upload")
async def files_bulk_upload(request: Request, store: Store) -> list[dict]:
    return await _take_form(request, store)


@router.method("file-storage.upload")
async def files_upload(request: Request, store: Store) -> dict:
    if request.headers.get("content-type", "").startswith("multipart/"):
        return (await _take_form(request, store))[0]
    query = dict(request.query_params)
    team_id, path = integer(query, "teamId"), text(query, "path")
    with store.blobs.writer() as writer:
        async for chunk in request.stream():
            await run_in_threadpool(writer.write, chunk)
    file_id = await run_in_threadpool(put, store, team_id, path, writer.hash, writer.size)
    return files_info({"id": file_id}, store, request)


@router.method("file-storage.download")
def files_download(body: Json, store: Store) -> FileResponse:
    team_id, path = integer(body, "teamId"), text(body, "path")
    if path.endswith("/"):
        return _archive(store, team_id, path)
    row = store.one("SELECT * FROM files WHERE team_id=? AND path=?", team_id, clean(path))
    if row is None:
        raise not_found("File", path)
    return FileResponse(
        store.blobs.path(row["hash"]), media_type="application/octet-stream", filename=PurePosixPath(path).name,
        headers={"x-content-checksum-sha256": row["hash"]},
    )  # fmt: skip


def _archive(storage: Storage, team_id: int, path: str) -> FileResponse:
    """A folder as a tar file whose only top folder bears its name."""
    rows = _below(storage, team_id, path)
    if not rows:
        raise not_found("Folder", path)
    root = PurePosixPath(clean(path)).parent
    with tempfile.NamedTemporaryFile(suffix=".tar", delete=False) as file, tarfile.open(fileobj=file, mode="w") as tar:
        for row in rows:
            tar.add(storage.blobs.path(row["hash"]), arcname=str(PurePosixPath(row["path"]).relative_to(root)))
    return FileResponse(file.name, media_type="application/x-tar", background=BackgroundTask(Path(file.name).unlink))


def _remove(storage: Storage, team_id: int, paths: list[str]) -> None:
    with storage.transaction():
        for path in paths:
            rows = _below(storage, team_id, path)
            if not rows:
                raise not_found("File or folder", path)
            for row in rows:
                storage.run("DELETE FROM files WHERE id=?", row["id"])


@router.method("file-storage.remove")
def files_remove(body: Json, store: Store) -> dict:
    _remove(store, integer(body, "teamId"), [text(body, "path")])
    return {"success": True}


@router.method("file-storage.bulk.remove")
def files_bulk_remove(body: Json, store: Store) -> dict:
    _remove(store, integer(body, "teamId"), [text({"paths": path}, "paths") for path in items(body, "paths")])
    return {"success": True}

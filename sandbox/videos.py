"""Methods of videos: listing, upload, download of files and of single frames."""

import json
from sqlite3 import Row

from fastapi import Request, Response
from fastapi.responses import FileResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from sandbox import datasets
from sandbox.errors import ApiError, not_found
from sandbox.methods import Json, Methods, Store, address, content_path
from sandbox.multipart import multipart
from sandbox.paging import answer_page
from sandbox.payload import integer, integers, items, mapping, text
from sandbox.storage import USER_ID, Storage, dump, now
from sandbox.videofile import UnreadableVideo, inspect, read_frame

router = Methods()

_COLUMNS = {
    "id": "v.id", "name": "v.name", "title": "v.name", "hash": "v.hash", "datasetId": "v.dataset_id",
    "size": "b.size", "createdAt": "v.created_at", "updatedAt": "v.updated_at",
}  # fmt: skip
_TABLE = """videos v JOIN video_blobs b ON b.hash=v.hash JOIN datasets d ON d.id=v.dataset_id
    JOIN projects p ON p.id=d.project_id JOIN workspaces w ON w.id=p.workspace_id"""
_SELECT = "v.*, b.size, b.codec, b.width, b.height, b.frames, b.fps, d.project_id, p.workspace_id, w.team_id"


def _file_meta(row: Row) -> dict:
    duration = row["frames"] / row["fps"]
    stream = {
        "index": 0, "codecType": "video", "codecName": row["codec"], "width": row["width"], "height": row["height"],
        "duration": duration, "rotation": 0, "startTime": 0, "framesCount": row["frames"], "framesToTimecodes": [],
    }  # fmt: skip
    return {**stream, "formatName": "mov,mp4", "mime": "video/mp4", "size": str(row["size"]), "streams": [stream]}


def to_json(rows: list[Row], base: str) -> list[dict]:
    """Videos as ``videos.info`` answers them, in the order of ``rows``."""
    return [
        {
            "id": row["id"], "name": row["name"], "title": row["name"], "description": row["description"],
            "link": None, "hash": row["hash"], "teamId": row["team_id"], "workspaceId": row["workspace_id"],
            "projectId": row["project_id"], "datasetId": row["dataset_id"], "createdBy": USER_ID,
            "createdAt": row["created_at"], "updatedAt": row["updated_at"], "tags": [], "customData": {},
            "meta": json.loads(row["meta"]), "fileMeta": _file_meta(row), "processingPath": f"1/{row['id']}",
            "pathOriginal": content_path(row["hash"], row["name"]),
            "fullStorageUrl": base + content_path(row["hash"], row["name"]),
        }
        for row in rows
    ]  # fmt: skip


def get_rows(storage: Storage, ids: list[int]) -> list[Row]:
    """The rows of videos, in the order of ``ids``.

    Raises:
        ApiError: 404 naming the first video that does not exist.
    """
    query = f"SELECT {_SELECT} FROM {_TABLE} WHERE v.id IN (SELECT value FROM json_each(?))"
    found = {row["id"]: row for row in storage.all(query, dump(ids))}
    for video_id in ids:
        if video_id not in found:
            raise not_found("Video", video_id)
    return [found[video_id] for video_id in ids]


@router.method("videos.list")
def videos_list(body: Json, store: Store, request: Request) -> dict:
    if body.get("datasetId") is not None:
        where, values = ["v.dataset_id=?"], [integer(body, "datasetId")]
        datasets.get(store, values[0])
    else:
        where, values = ["d.project_id=?"], [integer(body, "projectId")]
    base = address(request)
    return answer_page(
        store, body, table=_TABLE, select=_SELECT, columns=_COLUMNS, where=where, values=values,
        convert=lambda rows: to_json(rows, base),
    )  # fmt: skip


@router.method("videos.info")
def videos_info(body: Json, store: Store, request: Request) -> dict:
    return to_json(get_rows(store, [integer(body, "id")]), address(request))[0]


@router.method("videos.bulk.upload")
async def videos_upload(request: Request, store: Store) -> list[dict]:
    def take(file: UploadFile) -> dict:
        content_hash, size = store.blobs.put(file.file)
        try:
            facts = inspect(store.blobs.path(content_hash))
        except UnreadableVideo as error:
            return {"errors": [{"message": str(error)}]}
        store.run(
            "INSERT OR IGNORE INTO video_blobs VALUES (?,?,?,?,?,?,?)",
            content_hash, size, facts.codec, facts.width, facts.height, facts.frames, facts.fps,
        )  # fmt: skip
        return {"hash": content_hash, "size": size}

    async with request.form(max_files=float("inf")) as form:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        return [await run_in_threadpool(take, file) for file in files]


def _blob(storage: Storage, content_hash: str) -> Row:
    row = storage.one("SELECT * FROM video_blobs WHERE hash=?", content_hash)
    if row is None:
        raise ApiError(400, f"No video with hash {content_hash!r} was uploaded: call videos.bulk.upload before.")
    return row


@router.method("import-storage.internal.meta.list")
def stored_meta(body: Json, store: Store) -> list[dict]:
    hashes = items(body, "hashes")
    return [{"hash": each, "meta": _file_meta(_blob(store, each))} for each in hashes]


@router.method("videos.bulk.add")
def videos_add(body: Json, store: Store, request: Request) -> list[dict]:
    dataset_id, moment, ids = integer(body, "datasetId"), now(), []
    with store.transaction():
        datasets.get(store, dataset_id)
        for entry in items(body, "videos"):
            name = text(entry, "title")
            if store.one("SELECT 1 FROM videos WHERE dataset_id=? AND name=?", dataset_id, name):
                raise ApiError(400, f"A video named {name!r} exists in dataset {dataset_id}.", type="NONUNIQUE")
            ids.append(store.run(
                "INSERT INTO videos (dataset_id, name, hash, meta, description, created_at, updated_at)"
                " VALUES (?,?,?,?,?,?,?)",
                dataset_id, name, _blob(store, text(entry, "hash"))["hash"], dump(mapping(entry, "meta", {})),
                text(entry, "description", ""), moment, moment,
            ))  # fmt: skip
        store.touch_dataset(dataset_id)
    return to_json(get_rows(store, ids), address(request))


@router.method("videos.download")
def videos_download(body: Json, store: Store) -> FileResponse:
    row = get_rows(store, [integer(body, "id")])[0]
    return FileResponse(store.blobs.path(row["hash"]), media_type="video/mp4", filename=row["name"])


def _frame(storage: Storage, video: Row, index: int) -> bytes:
    frame = read_frame(storage.blobs.path(video["hash"]), index) if 0 <= index < video["frames"] else None
    if frame is None:
        raise ApiError(400, f"Video {video['id']} has {video['frames']} frames. Received: frame {index}")
    return frame


@router.method("videos.download-frame")
def frame_download(body: Json, store: Store) -> Response:
    [video] = get_rows(store, [integer(body, "videoId")])
    return Response(_frame(store, video, integer(body, "frame")), media_type="image/png")


@router.method("videos.bulk.download-frame")
def frames_download(body: Json, store: Store) -> Response:
    [video] = get_rows(store, [integer(body, "videoId")])
    return multipart((str(index), _frame(store, video, index)) for index in integers(body, "frames"))

"""Who is let in: by host, by the page that asks, by token, by the kind of body."""

import base64
import socket
from typing import Any

import pytest

from common.web.door import Door
from common.web.refusals import Refusal
from common.web.routes import ROUTES, SERVE, TRAIN, WEBSOCKET, routes_of
from common.web.settings import DoorSettings

TOKEN = "0123456789abcdefg"
AGENT = {"ENV": "production", "TASK_ID": "5", "SERVER_ADDRESS": "https://instance.example"}


def ask(
    path: str = "/get_session_info",
    method: str = "POST",
    host: str | None = "127.0.0.1:8000",
    app: str = SERVE,
    variables: dict[str, str] | None = None,
    settings: DoorSettings | None = None,
    **headers: str,
) -> Any:
    """What the app gets of a request, or the status with which it is refused."""
    given = {"host": host, **headers} if host is not None else headers
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()]
    kind = "websocket" if method == WEBSOCKET else "http"
    scope = {"type": kind, "method": "GET" if method == WEBSOCKET else method, "path": path, "headers": raw}
    try:
        return Door(routes_of(app), settings or DoorSettings(), variables or {}).admit(scope)[1]
    except Refusal as refusal:
        return refusal.status


def is_in(*words: Any, **more: Any) -> bool:
    return isinstance(ask(*words, **more), dict)


@pytest.mark.parametrize(
    ("host", "variables", "status"),
    [
        ("127.0.0.1:8000", {}, None),
        ("[::1]:8000", {}, None),
        ("10.1.2.3", {}, None),
        ("localhost:8000", {}, None),
        (socket.gethostname(), {}, None),
        (None, {}, None),
        ("evil.example", {}, 421),
        ("127.0.0.1.evil.example", {}, 421),
        ("localhost.evil.example", {}, 421),
        ("[::1", {}, 421),
        ("", {}, 421),
        ("a-proxy-nobody-knows:8000", AGENT, None),
    ],
)
def test_host_is_known_where_the_app_runs_by_itself(host, variables, status):
    answer = ask(host=host, variables=variables)
    assert isinstance(answer, dict) if status is None else answer == status


def test_names_of_proxies_are_told_by_a_variable():
    settings = DoorSettings.from_environment({"HRDA_ALLOWED_HOSTS": "Cracks.example, other.example"})
    assert is_in(host="cracks.example:8443", settings=settings)
    # nginx sends the name of what it passes on to.
    assert is_in(host="127.0.0.1:8000", origin="https://other.example", settings=settings)
    assert ask(host="third.example", settings=settings) == 421
    assert ask(origin="https://third.example", settings=settings) == 403


EVIL = {"origin": "https://evil.example"}
FOREIGN = [
    EVIL, {"origin": "null"}, {"origin": "http://127.0.0.1:9"}, {"sec_fetch_site": "cross-site"},
    EVIL | {"sec_fetch_site": "cross-site"},
]  # fmt: skip
ASKING_FOR_THE_TOKEN = [
    (SERVE, "/inference_image_id", "POST"), (TRAIN, "/train_from_api", "POST"), (TRAIN, "/stop_training", "POST"),
    (SERVE, "/sly/shutdown", "POST"), (SERVE, "/", "GET"), (SERVE, "/sly/ws", WEBSOCKET), (SERVE, "/metrics", "GET"),
]  # fmt: skip


@pytest.mark.parametrize("variables", [{}, AGENT], ids=["by itself", "under an agent"])
@pytest.mark.parametrize(
    "headers",
    [
        EVIL,
        {"origin": "null"},
        {"sec_fetch_site": "cross-site"},
        EVIL | {"sec_fetch_site": "cross-site"},
        {"origin": "http://127.0.0.1:9"},
    ],
)
def test_foreign_pages_are_refused_at_every_address(variables, headers):
    for route in ROUTES:
        if route.method != "GET" and ("sec_fetch_site" not in headers or route.method != WEBSOCKET):
            path = route.path.replace("{widget}", "Button")
            app = route.apps[0]
            assert ask(path, route.method, app=app, variables=variables, **headers) in (403, 404, 405), route.path
    for method in ("GET", WEBSOCKET):
        path = "/" if method == "GET" else "/sly/ws"
        assert ask(path, method, variables=variables, **{"origin": "https://evil.example", **headers}) == 403


def test_pages_of_the_app_are_let_in():
    assert is_in(origin="http://127.0.0.1:8000")
    assert is_in("/sly/ws", WEBSOCKET, origin="http://127.0.0.1:8000")
    assert is_in("/", "GET", sec_fetch_site="cross-site"), "a link of a chat leads to the page"
    assert is_in("/", "GET", sec_fetch_site="none")


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "app-of-task-5:8000", "origin": "https://instance.example"},
        {"host": "app-of-task-5:8000", "origin": "https://by-another-name.example", "sec_fetch_site": "same-origin"},
        {"host": "app-of-task-5", "origin": "http://10.0.0.7", "x_forwarded_host": "10.0.0.7"},
        {"host": "10.0.0.7", "origin": "http://10.0.0.7"},
    ],
)
def test_the_platforms_proxy_gets_through(headers):
    """It may change the Host; the browser itself says that the page and the address are of one origin."""
    assert is_in("/sly/session-info", variables=AGENT, **headers)
    assert is_in("/sly/ws", WEBSOCKET, variables=AGENT, **headers)
    assert is_in("/train_from_api", app=TRAIN, variables=AGENT, host=headers["host"]), "from the instance, no page"


def test_forwarded_host_counts_under_an_agent_only():
    assert ask(origin="https://evil.example", x_forwarded_host="evil.example") == 403


def test_token_of_the_instance_is_for_the_apps_own_page():
    assert ask("/sly/session-info") == 403
    assert ask("/sly/session-info", host="evil.example", origin="http://evil.example") == 421
    assert is_in("/sly/session-info", origin="http://127.0.0.1:8000")
    assert is_in("/sly/session-info", sec_fetch_site="same-origin")


def basic(password: str) -> str:
    return f"Basic {base64.b64encode(f'any:{password}'.encode()).decode()}"


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (None, 401), (f"Bearer {TOKEN}", None), (f"bearer {TOKEN}", None), (basic(TOKEN), None),
        (f"Bearer {TOKEN}x", 401), (f"Bearer {TOKEN[:-1]}", 401), ("Bearer", 401), (TOKEN, 401), (basic(""), 401),
        ("Basic %%%", 401), ("Bearer \xe9", 401), (f"Digest {TOKEN}", 401),
    ],
)  # fmt: skip
def test_token_is_asked_for_where_one_is_set(authorization, status):
    settings = DoorSettings(api_token=TOKEN)
    headers = {} if authorization is None else {"authorization": authorization}
    for app, path, method in ASKING_FOR_THE_TOKEN:
        answer = ask(path, method, app=app, settings=settings, **headers)
        assert answer == status if status else isinstance(answer, dict), path
    assert is_in("/healthz", "GET", settings=settings, **headers), "who starts containers has no token"


def test_refusal_says_how_to_send_the_token_and_browsers_ask_for_it():
    with pytest.raises(Refusal, match="Authorization: Bearer TOKEN") as refused:
        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        Door(routes_of(SERVE), DoorSettings(api_token=TOKEN), {}).admit(scope)
    assert any(value.startswith("Basic ") for _, value in refused.value.headers)
    assert TOKEN not in repr(DoorSettings(api_token=TOKEN))


def test_control_can_be_switched_off():
    settings = DoorSettings.from_environment({"HRDA_MODEL_CONTROL": "false"})
    for app, path in [(SERVE, "/deploy_from_api"), (SERVE, "/freeze_model"), (SERVE, "/sly/shutdown"),
                      (TRAIN, "/train_from_api"), (TRAIN, "/stop_training"), (TRAIN, "/sly/shutdown")]:  # fmt: skip
        assert ask(path, app=app, settings=settings) == 403
        assert is_in(path, app=app)
    assert is_in("/inference_image_id", settings=settings)


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/debug", "POST", 404), ("/sly/css/nn/training/train_app.py", "GET", 404), ("/sly/docs", "GET", 404),
        ("/sly/css/app/widgets/../style.css", "GET", 404), ("/sly/css/app/widgets/field/style.css", "GET", None),
        ("/tensorboard/data", "GET", 404), ("/inference_image", "GET", 405), ("/healthz", "HEAD", None),
        ("/train_from_api", "POST", 404), ("/a/b/value_changed", "POST", 404), ("/a/value_changed", "POST", None),
        ("/previews/../secret", "GET", 404), ("//debug", "POST", 404), ("/debug/", "POST", 404),
    ],
)  # fmt: skip
def test_what_is_not_in_the_table_is_not_there(path, method, status):
    answer = ask(path, method)
    assert answer == status if status else isinstance(answer, dict)


def test_paths_are_known_under_the_prefix_of_the_platform():
    prefixed = {"SUPERVISELY_SERVER_PATH_PREFIX": "net/abc/"}
    assert is_in("/net/abc/inference_image_id", variables=prefixed)
    assert ask("/net/abc/debug", variables=prefixed) == 404
    assert ask("/net/abc/inference_image_id") == 404


@pytest.mark.parametrize(
    ("path", "media", "status"),
    [
        ("/get_session_info", "application/json", None), ("/get_session_info", "Application/JSON; charset=utf-8", None),
        ("/get_session_info", "text/plain; a=application/json", 415), ("/get_session_info", "application/jsonx", 415),
        ("/get_session_info", "text/plain, application/json", 415), ("/get_session_info", "", 415),
        ("/inference_image", "multipart/form-data; boundary=b", None), ("/inference_image", "application/json", 415),
        ("/inference_image", "application/x-www-form-urlencoded", 415),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "length", [{"content_length": "2"}, {"transfer_encoding": "chunked"}], ids=["length", "chunks"]
)
def test_body_is_of_the_one_kind(path, media, status, length):
    answer = ask(path, content_type=media, **length)
    assert answer == status if status else isinstance(answer, dict)


def test_app_is_told_the_kind_as_the_sdk_looks_for_it():
    """It looks for the text 'application/json' anywhere in the header, in lower case."""
    upper = ask(content_type="APPLICATION/JSON;x=1", content_length="2")
    assert (b"content-type", b"application/json") in upper["headers"]
    for hidden in ("text/plain; a=application/json", "multipart/form-data; a=application/json"):
        assert not any(name == b"content-type" for name, _ in ask(content_type=hidden)["headers"])


@pytest.mark.parametrize("name", ["host", "origin", "content-type", "authorization", "content-length"])
def test_headers_that_decide_come_once(name):
    twice = [(b"host", b"127.0.0.1"), (name.encode(), b"127.0.0.1"), (name.encode(), b"127.0.0.1")]
    scope = {"type": "http", "method": "POST", "path": "/get_session_info", "headers": twice}
    with pytest.raises(Refusal, match=f"header {name} twice"):
        Door(routes_of(SERVE), DoorSettings(), {}).admit(scope)


def test_length_of_a_body_is_said_in_one_way():
    """What follows a body that two programs read differently would pass as a request that nobody checked."""
    headers = [(b"host", b"127.0.0.1"), (b"content-length", b"2"), (b"transfer-encoding", b"chunked")]
    scope = {"type": "http", "method": "POST", "path": "/is_running", "headers": headers}
    with pytest.raises(Refusal, match="in two ways") as refusal:
        Door(routes_of(SERVE), DoorSettings(), {}).admit(scope)
    assert ("Connection", "close") in refusal.value.headers, "nothing behind it is read"


@pytest.mark.parametrize(
    "head",
    [
        {"headers": [(b"host", b"127.0.0.1"), (b"x", b"a" * 2**15)]},
        {"headers": [(b"host", b"127.0.0.1")], "query_string": b"a" * 2**15},
    ],
)
def test_head_that_is_read_whole_at_once_is_bounded_too(head):
    scope = {"type": "http", "method": "GET", "path": "/healthz", **head}
    with pytest.raises(Refusal, match="at most 32 kilobytes") as refusal:
        Door(routes_of(SERVE), DoorSettings(), {}).admit(scope)
    assert refusal.value.status == 431

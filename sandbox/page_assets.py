"""The files of an app's page under the paths of Supervisely's CDN, at ``/assets``: what SLY_ASSETS_URL points to.

The widget bundle that the apps' pages load cannot be had without Supervisely's CDN. Here it is put together from npm
packages, pinned in ``sandbox/page``, and own components. Any version number of the bundle gets the same.
"""

import functools
import json
import re
from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse

from sandbox.errors import ApiError

PAGE = Path(__file__).with_name("page")
_MODULES = PAGE / "node_modules"
# The components need what comes before them.
_SCRIPTS = (
    "vue/dist/vue.min.js", "element-ui/lib/index.js", "element-ui/lib/umd/locale/en.js", "lodash/lodash.min.js",
    "axios/dist/axios.min.js", "apexcharts/dist/apexcharts.min.js", "fast-json-patch/dist/fast-json-patch.min.js",
    "jwt-decode/build/jwt-decode.js", "codemirror/lib/codemirror.js", "codemirror/addon/selection/active-line.js",
    "codemirror/mode/javascript/javascript.js", "codemirror/mode/yaml/yaml.js", "codemirror/mode/python/python.js",
    "codemirror/mode/xml/xml.js",
)  # fmt: skip
_COMPONENTS = ("setup.js", "layout.js", "selectors.js", "editor.js", "charts.js", "table.js")
_STYLES = (
    "element-ui/lib/theme-default/index.css", "codemirror/lib/codemirror.css",
    "material-design-iconic-font/dist/css/material-design-iconic-font.min.css",
)  # fmt: skip
_CSS_ADDRESS = re.compile(r"""url\((['"]?)(?!data:|https?:|#)(.+?)\1\)""")
# Pages are at other ports; modules and fonts of another origin are only taken with this.
_HEADERS = {"Access-Control-Allow-Origin": "*", "Cache-Control": "no-cache"}
_LOADING = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" fill="#2a86ff"><circle cx="6" cy="12" r="2.2"/>'
    '<circle cx="12" cy="12" r="2.2"/><circle cx="18" cy="12" r="2.2"/></svg>'
)
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><rect width="24" height="24" rx="6" fill="#2a86ff"/>'
    '<path d="M4 17l4-6 3 3 3-7 6 4" fill="none" stroke="#fff" stroke-width="2"/></svg>'
)

router = APIRouter(prefix="/assets")


def installed() -> bool:
    """Whether ``npm ci`` was run in ``sandbox/page``, so that there is something to serve."""
    return all((_MODULES / name).is_file() for name in (*_SCRIPTS, *_STYLES))


def _module(name: str) -> Path:
    path = (_MODULES / name).resolve()
    if not path.is_relative_to(_MODULES.resolve()):
        raise ApiError(404, f"There is no package file {name!r}.")
    if not path.is_file():
        reason = "" if installed() else " The page's packages are not installed: run `make page`, which needs Node."
        raise ApiError(404, f"There is no package file {name!r}.{reason}")
    return path


@functools.cache
def _pinned() -> dict[str, str]:
    return json.loads((PAGE / "package.json").read_text())["dependencies"]


def _package(name: str) -> str:
    """``element-ui/lib/a.css`` as ``element-ui@1.4.13/lib/a.css``, the way the CDN for npm names it."""
    package, rest = name.split("/", 1)
    return f"{package}@{_pinned()[package]}/{rest}"


def _style(name: str) -> str:
    """A package's stylesheet, with addresses that are right in the bundle's folder."""
    folder = _package(name).rsplit("/", 1)[0]
    return _CSS_ADDRESS.sub(rf"url(\1../../npm/{folder}/\2\1)", _module(name).read_text())


def _answer(content: str, media_type: str) -> Response:
    return Response(content, media_type=media_type, headers=_HEADERS)


@router.get("/sly-app-bundle/{version}/{name}")
def bundle(version: str, name: str) -> Response:
    """The widget bundle, script or style."""
    if name == f"sly-app-widgets-{version}.bundle.js":
        parts = [_module(script).read_text() for script in _SCRIPTS]
        parts += [(PAGE / "components" / component).read_text() for component in _COMPONENTS]
        # A package's last line may be a comment, or lack its semicolon.
        return _answer("\n;\n".join(parts), "text/javascript")
    if name == f"sly-app-widgets-{version}.bundle.css":
        return _answer("\n".join([*map(_style, _STYLES), (PAGE / "page.css").read_text()]), "text/css")
    raise ApiError(404, f"There is no file {name!r} in the widget bundle.")


@router.get("/sly-app-js/{version}/SlyApp.js")
def client(version: str) -> Response:
    """The page's client."""
    return _answer((PAGE / "client.js").read_text(), "text/javascript")


@router.get("/npm/{package}/{name:path}")
def npm(package: str, name: str) -> FileResponse:
    """A file of a pinned package, ``socket.io-client@2.0.4/dist/socket.io.js``."""
    wanted, _, version = package.partition("@")
    if _pinned().get(wanted) != version:
        known = ", ".join(f"{key}@{value}" for key, value in _pinned().items())
        raise ApiError(404, f"There is no package {package!r}. There are: {known}.")
    return FileResponse(_module(f"{wanted}/{name}"), headers=_HEADERS)


@router.get("/loading.gif")
def loading() -> Response:
    """What turns while the page loads."""
    return _answer(_LOADING, "image/svg+xml")


@router.get("/favicon.ico")
def favicon() -> Response:
    """The page's icon."""
    return _answer(_ICON, "image/svg+xml")

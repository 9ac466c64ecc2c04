"""docs/ as pages of the apps, so that what the cards link to is there without internet too."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from common.web.refusals import Refusal

DOCS = Path(__file__).resolve().parents[2] / "docs"
LINK = '<a href="./guide/guide.md" target="_blank">Guide</a>'
"""What leads from a page of an app to the guide."""
_PICTURES = re.compile(r"!\[[^\]]*\]\([^)]*\)")
_ELSEWHERE = re.compile(r'<a href="\.\./[^"]*">(.*?)</a>', re.S)
"""Links to files of the repository that are no pages here."""
_STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #222; max-width: 900px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; } td, th { padding: .35em .7em; border: 1px solid #ddd; text-align: left;
vertical-align: top; } code { background: #f3f3f3; padding: .1em .3em; } pre code { display: block; padding: .8em;
overflow-x: auto; } blockquote { border-left: 4px solid #ddd; margin-left: 0; padding-left: 1em; }
"""


def add_guide(server: FastAPI) -> None:
    """Have an app answer the pages of docs/ below /guide."""

    @server.get("/guide/{name}")
    def guide(name: str) -> HTMLResponse:
        """A page of docs/ by its file name."""
        pages = {path.name: path for path in DOCS.glob("*.md")}
        if name not in pages:
            raise Refusal(404, "There is no such page. The guide is guide.md.")
        return HTMLResponse(as_html(pages[name].read_text(encoding="utf-8")))


def as_html(text: str) -> str:
    """A page of docs/, Markdown, as HTML of its own; pictures are left out."""
    # A tenth of a second that only readers should cost.
    import markdown

    body = markdown.markdown(_PICTURES.sub("", text), extensions=["tables", "toc", "fenced_code"])
    title = escape(text.lstrip("# ").partition("\n")[0])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"</head><body>{_ELSEWHERE.sub(lambda found: found[1], body)}</body></html>"
    )

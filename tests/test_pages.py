"""What the documents say: links, lines, and the errors of docs/troubleshooting.md."""

from __future__ import annotations

import re

import pytest

from tests.documents import troubleshooting
from tests.documents.place import DOCUMENTS, ROOT


def anchors(document: str) -> set[str]:
    """What a link may name behind `#`: the headings, as GitHub makes addresses of them."""
    text = re.sub(r"(?ms)^ *```.*?^ *```", "", (ROOT / document).read_text(encoding="utf-8"))
    headings = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings_that_are_there(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    for address in re.findall(r"\]\(([^)\s]+)\)", text):
        if address.startswith(("https://", "http://")):
            continue
        path, _, anchor = address.partition("#")
        target = ((ROOT / document).parent / path).resolve() if path else ROOT / document
        assert target.exists(), f"{document} leads to {address}"
        if anchor:
            assert anchor in anchors(str(target.relative_to(ROOT))), f"{document} leads to {address}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_lines_are_as_long_as_in_the_code(document):
    in_block = re.compile(r"(?ms)^ *```.*?^ *```")
    for line in in_block.sub("", (ROOT / document).read_text(encoding="utf-8")).splitlines():
        # A table's row, a heading or a picture is one line, and the commands of troubleshooting are one too.
        assert len(line) <= 120 or line.startswith(("|", "![", "`", ">")), f"{document}: {line}"


def test_troubleshooting_says_what_is_really_said():
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    assert page == troubleshooting.page(), "write it anew, as tests/documents/troubleshooting.py says"

"""Makes the relative addresses of a page absolute: an app's page on an instance is shown without its repository.

usage: absolute_links.py FOLDER OWNER/NAME BRANCH < README.md
"""

import posixpath
import re
import sys

LINK = re.compile(
    r"(?P<is_picture>!?)(?P<text>\[[^\]]*\])\((?!https?:|mailto:|#)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)"
)


def absolute(text: str, folder: str, repository: str, branch: str) -> str:
    """The page with addresses of GitHub.

    Args:
        text: of the page, Markdown.
        folder: in which the page lies in the repository.
        repository: `owner/name`.
        branch: whose files are shown.
    """

    def replace(found: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(folder, found["path"]))
        base = "raw.githubusercontent.com" if found["is_picture"] else "github.com"
        kind = "" if found["is_picture"] else "blob/"
        address = f"https://{base}/{repository}/{kind}{branch}/{path}{found['anchor'] or ''}"
        return f"{found['is_picture']}{found['text']}({address})"

    return LINK.sub(replace, text)


if __name__ == "__main__":
    sys.stdout.write(absolute(sys.stdin.read(), *sys.argv[1:]))

"""index.html of the demo: one file that a browser opens without a server and without internet."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from common.hrda.files import replacing
from sandbox.demo.report import ArmResult

SECTIONS = ("now", "comparison", "first", "curves", "next")
"""Parts of the page in their order. Each is there as soon as it is known."""
NEXT = (
    ("Train on your own folders", "make demo TARGET=photos:unlabelled VAL=photos:checked"),
    ("Open both apps in the browser", "make app"),
    ("Predict photos with the network of this demo", "{python} -m serve predict PHOTOS --model {model} --draw"),
    ("Serve it", "{python} -m serve deploy --model {model}"),
)
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2em; }
img, svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; } td, th { padding: .3em 1em; border-bottom: 1px solid #ddd; text-align: right; }
td:first-child, th:first-child { text-align: left; } tr.ours { font-weight: bold; }
code { background: #f3f3f3; padding: .15em .4em; overflow-wrap: anywhere; }
.now { background: #eef5ff; padding: .6em 1em; border-radius: 6px; }
.curves { display: flex; flex-wrap: wrap; gap: 1em; }
"""
_AGAIN = '<meta http-equiv="refresh" content="20">'
_PICTURE_QUALITY = 90
_COLOURS = {"HRDA": "#d62728", "control": "#1f77b4", "source-only": "#7f7f7f"}


class Page:
    """The file, written anew whenever a part of it is known.

    Args:
        path: of the file.
        title: its heading.
    """

    def __init__(self, path: Path, title: str) -> None:
        self.path = path
        self._title = title
        self._sections: dict[str, str] = {}

    def show(self, *, is_whole: bool, **sections: str) -> None:
        """Write the file.

        Args:
            is_whole: nothing comes any more; until then a browser loads the file again by itself.
            **sections: HTML for parts of the page, by their names in `SECTIONS`.
        """
        self._sections |= sections
        body = "\n".join(self._sections[name] for name in SECTIONS if name in self._sections)
        with replacing(self.path) as file:
            file.write(
                f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
                f"{'' if is_whole else _AGAIN}<title>{escape(self._title)}</title>"
                f"<style>{_STYLE}</style></head>\n<body><h1>{escape(self._title)}</h1>\n{body}\n</body></html>\n".encode()
            )


def now(text: str) -> str:
    """Where the demo stands."""
    return f'<p class="now">{escape(text)}</p>'


def picture(heading: str, text: str, path: Path) -> str:
    """A picture with its heading and a sentence; the picture itself is in the HTML.

    Args:
        path: of a PNG or JPEG file.
    """
    return f"<h2>{escape(heading)}</h2>\n<p>{escape(text)}</p>\n" + _image(path, heading)


def comparison(results: Mapping[str, ArmResult], sentence: str, path: Path) -> str:
    """The arms' figures as a table, what they come to in a sentence, and their predictions side by side."""
    heads = ("", "IoU at 0.5", "IoU at the best threshold", "F1 within 2 px", "precision", "recall")
    rows = []
    for name, r in results.items():
        cells = (
            name,
            f"{r.iou:.1f}",
            f"{r.best_iou:.1f} at {r.best_threshold:.2f}",
            *(f"{value:.1f}" for value in (r.f1_2px, r.precision_2px, r.recall_2px)),
        )
        kind = ' class="ours"' if name == "HRDA" else ""
        rows.append(f"<tr{kind}>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    table = "<table><tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>" + "".join(rows) + "</table>"
    return f"<h2>How good it is</h2>\n<p>{escape(sentence)}</p>\n{table}\n<p></p>\n" + _image(path, "predictions")


def curves(heading: str, charts: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> str:
    """Line charts as SVG.

    Args:
        charts: by title, the points (iteration, value) of each arm's line.
    """
    drawn = "\n".join(_chart(title, lines) for title, lines in charts.items() if any(lines.values()))
    return f'<h2>{escape(heading)}</h2>\n<div class="curves">{drawn}</div>' if drawn else ""


def what_next(python: str, model: Path, guide: Path) -> str:
    """What a person may do with the result."""
    rows = "".join(
        f"<li>{escape(what)}: <code>{escape(command.format(python=python, model=model))}</code></li>"
        for what, command in NEXT
    )
    return (
        f"<h2>What next</h2>\n<ul>{rows}<li>When adaptation pays, how many photos it takes, what to do when it did not "
        f"help: <code>{escape(str(guide))}</code></li></ul>"
    )


def _image(path: Path, name: str) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.open(path).convert("RGB").save(file, "JPEG", quality=_PICTURE_QUALITY)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{escape(name)}" src="data:image/jpeg;base64,{data}">'


def _chart(title: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    # No pyplot: it keeps figures, and may look for a screen.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.add_subplot()
    for name, points in lines.items():
        if points:
            axes.plot(
                *zip(*points, strict=True), marker="." if len(points) < 5 else None, color=_COLOURS[name], label=name
            )
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("iteration")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    text = io.StringIO()
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]

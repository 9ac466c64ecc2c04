"""An app with every kind of widget that the pages use: `python -m uvicorn gallery:app --app-dir tests/browser`.

Every control that has a handler says in the text "heard" what Python heard.
"""

import os

import supervisely as sly
from supervisely.app import widgets as w
from supervisely.nn.experiments import ExperimentInfo

from common.web.assets import use_assets

PIXEL = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' width='96' height='64'%3E"
    "%3Crect width='96' height='64' fill='%237a9'/%3E"
    "%3Cpath d='M4 60 40 20 60 40 92 6' stroke='%23c22' fill='none'/%3E%3C/svg%3E"
)

api = sly.Api()
project_id = int(os.environ["PROJECT_ID"])
project = api.project.get_info_by_id(project_id)

heard = w.Text("nothing yet", widget_id="heard")


def hear(what: str) -> None:
    heard.set(what, "info")


button = w.Button("Press", icon="zmdi zmdi-play", widget_id="press")
checkbox = w.Checkbox("Tick me", widget_id="tick")
select = w.Select(
    [w.Select.Item(f"value {i}", f"Option {i}") for i in range(1, 4)], filterable=True, widget_id="choice"
)
entry = w.Input("typed text", widget_id="entry")
number = w.InputNumber(0.5, min=0, max=10, step=0.5, precision=2, widget_id="number")
slider = w.Slider(3, min=1, max=9, show_input=True, show_stops=True, widget_id="slider")
switch = w.Switch(switched=True, widget_id="switch")
editor = w.Editor(
    "# settings\niterations: 100 # steps\nmodel:\n  encoder: mit_b0\n",
    height_lines=12,
    language_mode="yaml",
    widget_id="yaml",
)
add = w.Button("Add to the YAML", widget_id="add_to_yaml", plain=True)
Node = w.TreeSelect.Item
tree = w.TreeSelect(
    [Node(1, "summer", [Node(2, "june"), Node(3, "july")]), Node(4, "winter")],
    multiple_select=True,
    flat=True,
    width=320,
    placeholder="Choose datasets",
    widget_id="tree",
)
one_of_tree = w.TreeSelect([Node(1, "red"), Node(2, "green")], placeholder="Choose one", widget_id="one_of_tree")
datasets = w.SelectDatasetTree(project_id=project_id, multiselect=True, select_all_datasets=True, widget_id="datasets")
device = w.SelectCudaDevice(include_cpu_option=True, widget_id="device")
dropdown = w.DropdownCheckboxSelector(
    [w.DropdownCheckboxSelector.Item(name, name.title()) for name in ("hrda", "other")], "Framework", widget_id="filter"
)
controls = w.Card(
    "Controls",
    "Each says below what Python heard",
    content=w.Container(
        [
            w.Flexbox([button, checkbox, switch], widget_id="row_1"),
            w.Grid(
                [
                    w.Field(select, "A select", "With three options"),
                    w.Field(entry, "An input"),
                    w.Field(number, "A number"),
                    w.Field(slider, "A slider"),
                    w.Field(tree, "A tree", "Several of it"),
                    w.Field(one_of_tree, "A tree", "One of it"),
                    w.Field(datasets, "Datasets"),
                    w.Field(
                        w.Container([device, dropdown]), "Device and filter", icon=w.Field.Icon("zmdi zmdi-memory")
                    ),
                ],
                columns=2,
                gap=20,
            ),
            editor,
            add,
        ]
    ),
    collapsable=True,
    widget_id="controls",
)

chart = w.LineChart("Losses", xaxis_title="iteration", height=220)
chart.add_series("source", [0, 10, 20], [1.0, 0.7, 0.5])
chart.add_series("target", [0, 10, 20], [1.4, 1.1, 0.6])
point = w.Button("Add a point", plain=True, widget_id="add_point")
progress = w.Progress("Downloading", show_percents=True, hide_on_finish=False, widget_id="progress")
advance = w.Button("Advance", plain=True, widget_id="advance")
table = w.Table(
    [["crack", 12, 0.5], ["spalling", 3, 12.25], ["background", 20, 87.25]],
    ["class", "photos", "share %"],
    widget_id="plain_table",
)
fast = w.FastTable([["crack", 12], ["spalling", 3]], ["class", "photos"], is_selectable=True, widget_id="fast_table")
classes = w.ClassesTable(project_id=project_id, widget_id="classes")
shown = w.Card(
    "What is shown",
    "Charts, tables, pictures",
    content=w.Container(
        [
            w.Flexbox([point, advance]),
            chart,
            progress,
            classes,
            table,
            fast,
            w.Flexbox(
                [w.Image(PIXEL, width=192, widget_id="picture"), w.Image(PIXEL, width=96, widget_id="picture_2")]
            ),
            w.ProjectThumbnail(project, widget_id="project"),
            w.FileThumbnail(widget_id="file"),
            w.FolderThumbnail(widget_id="folder"),
            w.ReportThumbnail(widget_id="report"),
            *(
                w.NotificationBox(f"A {kind}", "With a sentence.", kind)
                for kind in ("success", "info", "warning", "error")
            ),
        ]
    ),
    widget_id="shown",
)

models = w.PretrainedModelsSelector(
    [
        {
            "Model": name,
            "Parameters": size,
            "meta": {"task_type": "semantic segmentation", "model_name": name, "model_files": {"checkpoint": "x"}},
        }
        for name, size in (("mit_b0", "7 M"), ("mit_b5", "85 M"))
    ],
    widget_id="models",
)
experiments = w.ExperimentSelector(
    api,
    experiment_infos=[
        ExperimentInfo(
            experiment_name=f"cracks {number}",
            framework_name="HRDA",
            model_name="mit_b0",
            task_type="semantic segmentation",
            project_id=project_id,
            task_id=number,
            model_files={},
            checkpoints=["checkpoints/best.pth", "checkpoints/last.pth"],
            best_checkpoint="best.pth",
            artifacts_dir=f"/experiments/{number}/",
            datetime="2026-01-01 12:00:00",
            hyperparameters="hyperparameters.yaml",
            model_meta="model_meta.json",
        )
        for number in (1, 2)
    ],
    widget_id="experiments",
)
tabs = w.RadioTabs(["Pretrained", "Ours"], [models, experiments], ["Of others", "Trained here"], widget_id="source")
collapse = w.Collapse(
    [
        w.Collapse.Item("more", "More settings", w.Text("Hidden until opened")),
        w.Collapse.Item("most", "Even more", w.Text("And more")),
    ],
    widget_id="collapse",
)
plain_tabs = w.Tabs(["First", "Second"], [w.Text("in the first tab"), w.Text("in the second tab")], widget_id="tabs")
locked = w.Card(
    "Locked",
    "Until something else is done",
    content=w.Text("cannot be reached"),
    lock_message="Do the first step",
    widget_id="locked",
)
locked.lock()
hidden = w.Card("Closed", content=w.Text("inside the closed card"), collapsable=True, widget_id="closed")
hidden.collapse()
fail = w.Button("Fail", "danger", widget_id="fail")
ask = w.Button("Show a dialog", "warning", widget_id="ask")
wait = w.Button("Wait", "info", widget_id="wait")
waiting = w.Card("Waiting", content=w.Text("shown while nothing is loaded"), widget_id="waiting")
states = w.Container([w.Flexbox([fail, ask, wait]), waiting, locked, hidden], widget_id="states")

choices = w.Card("Models", content=w.Container([tabs, collapse, plain_tabs]), widget_id="choices")
stepper = w.Stepper(widgets=[controls, shown, choices, states], active_step=2)
app = sly.Application(layout=w.Container([heard, stepper]))
use_assets(app.get_server())


@button.click
def pressed() -> None:
    hear("press")


@checkbox.value_changed
def ticked(value: bool) -> None:
    hear(f"tick {value}")


@select.value_changed
def chosen(value: str) -> None:
    hear(f"select {value}")


@entry.value_changed
def typed(value: str) -> None:
    hear(f"input {value}")


@number.value_changed
def counted(value: float) -> None:
    hear(f"number {value}")


@slider.value_changed
def slid(value: int) -> None:
    hear(f"slider {value}")


@switch.value_changed
def switched(value: bool) -> None:
    hear(f"switch {value}")


@tree.value_changed
def picked(items: list) -> None:
    hear(f"tree {[item.id for item in items]}")


@one_of_tree.value_changed
def picked_one(item: Node) -> None:
    hear(f"one {item.id}")


@dropdown.value_changed
def filtered(items: list) -> None:
    hear(f"filter {[item.id for item in items]}")


@add.click
def added() -> None:
    editor.set_text(editor.get_text() + "seed: 1\n", "yaml")
    hear(f"editor has {len(editor.get_text().splitlines())} lines")


@point.click
def pointed() -> None:
    chart.add_to_series("source", {"x": 30, "y": 0.25})
    hear("point")


@advance.click
def advanced() -> None:
    with progress(message="Downloading", total=4) as bar:
        bar.update(4)
        hear("advanced")


@table.click
def cell(clicked: w.Table.ClickedDataPoint) -> None:
    hear(f"cell {clicked.column_name} {clicked.row['class']}")


@collapse.value_changed
def opened(value: list) -> None:
    hear(f"collapse {value}")


@tabs.value_changed
def turned(value: str) -> None:
    hear(f"tab {value}")


@fail.click
def failing() -> None:
    raise RuntimeError("on purpose")


@ask.click
def asking() -> None:
    sly.app.show_dialog("A question", "With a sentence", "warning")


@wait.click
def waits() -> None:
    waiting.loading = not waiting.loading
    hear(f"loading {waiting.loading}")

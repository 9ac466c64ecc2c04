"""What the encoder of a new network starts from: a list on the model card, which shows the setting `pretrained`."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from supervisely.app import DataJson, StateJson
from supervisely.app.widgets import Container, Field, Input, Text, Widget

from common.hrda import SettingsError
from common.hrda.catalogue import is_non_commercial
from common.hrda.network.downloads import DownloadError, RemoteFile, find_kept, require_reachable, weights_folder
from common.hrda.network.encoder_weights import published_origin, require_published
from common.paths import at_home, is_file
from train.page.settings_form import OpenSelect
from train.run.initial_weights import unasked_weights
from train.settings.training import AUTO, IMAGENET, RANDOM, TrainSettings

OWN = "own"
"""In the list, for a file that is yet to be named; no value of the setting."""
_USUAL = {
    AUTO: "Published, unless non-commercial",
    IMAGENET: "Published, whatever their licence",
    RANDOM: "Random",
    OWN: "A file of my own",
}
_RANDOM = "Random weights: no licence but this app's; the network needs more photos and iterations."


class EncoderWeightsChoice:
    """The list and a sentence on what is chosen. Ids: `encoder_weights`, `encoder_weights_text`."""

    def __init__(self) -> None:
        self._select = OpenSelect(_USUAL, _label, size="small", width_px=300, widget_id="encoder_weights")
        self._path = Input(
            placeholder="/path/on/this/machine.pth, or https://…", size="small", widget_id="encoder_weights_path"
        )
        self._path.hide()
        self._text = Text("", widget_id="encoder_weights_text", font_size=13)
        self._shown = RANDOM
        choice = Container([self._select, self._path], gap=4)
        self.container = Container(
            [Field(choice, "Encoder's weights", "What the new network starts from"), self._text], gap=4
        )

    @property
    def widgets(self) -> list[Widget]:
        """What a person can change."""
        return [self._select, self._path]

    def on_change(self, callback: Callable[[str], None]) -> None:
        """Call `callback` with the setting `pretrained` when a person has chosen; it may raise SettingsError."""
        self._select.value_changed(lambda value: self.choose(value, callback))
        self._path.value_changed(lambda path: self.name_file(path, callback))

    def choose(self, value: str, callback: Callable[[str], None]) -> None:
        """Take an item of the list: one that stands for the setting, or that a file is to be named."""
        # Browsers also report values that were not chosen there but sent to them.
        if value == self._shown:
            return
        self._shown = value
        if value == OWN:
            self._text.set("Name the file with weights of the encoder, or a checkpoint with them.", "info")
            self._path.show()
        else:
            self._begin_with(value, callback)

    def name_file(self, path: str, callback: Callable[[str], None]) -> None:
        """Take the path or address of a file."""
        if path.strip():
            self._begin_with(path.strip(), callback)

    def _begin_with(self, pretrained: str, callback: Callable[[str], None]) -> None:
        try:
            callback(pretrained)
        except SettingsError as error:
            self._text.set(escape(str(error), quote=False), "error")

    def show(self, settings: TrainSettings, encoder: str, millions: float) -> None:
        """Show the setting and what it means.

        Args:
            settings: of the run.
            encoder: the chosen one.
            millions: of parameters that it has.
        """
        self._path.hide()
        self._select.offer(settings.pretrained)
        self._shown = settings.pretrained
        StateJson()[self._select.widget_id]["value"] = settings.pretrained
        self._text.set(*_meaning(settings.pretrained, encoder, millions))
        StateJson().send_changes()
        DataJson().send_changes()


def describe_weights(settings: TrainSettings, encoder: str, *, ask: bool) -> tuple[str, str]:
    """What a new network starts from.

    Args:
        settings: of the run.
        encoder: of the network.
        ask: ask the server whether it has the weights, which may take seconds.

    Returns:
        How a sentence that says what is started from ends, and its kind: 'success', 'warning' or 'error'.
    """
    pretrained = settings.pretrained
    if pretrained == RANDOM:
        return "from random weights.", "success"
    is_published = pretrained in (AUTO, IMAGENET)
    try:
        if pretrained == AUTO and (unasked := unasked_weights(encoder)):
            return f"from random weights. {unasked}", "warning"
        if is_published or "://" in pretrained:
            _require_at_hand(None if is_published else RemoteFile.from_url(pretrained), encoder, ask=ask)
        elif not is_file(at_home(pretrained)):
            return f"but there is no file {pretrained} with weights to start from.", "error"
    except (DownloadError, SettingsError) as error:
        if pretrained == AUTO and isinstance(error, DownloadError):
            return f"from random weights, because the published weights cannot be had. {error}", "warning"
        return f"but the weights to start from cannot be had. {error}", "error"
    if is_published:
        condition = "" if ask or pretrained == IMAGENET else ", if they can be had"
        origin = published_origin(encoder)
        return f"from {origin.source}{condition}. Licence of these weights: {origin.licence}.", "success"
    return f"from the weights in {pretrained}.", "success"


def _require_at_hand(remote: RemoteFile | None, encoder: str, *, ask: bool) -> None:
    """Ask for the weights at an address, or for the published ones, unless they are on this machine."""
    if not ask:
        return
    if remote is None:
        require_published(encoder)
    elif find_kept(remote, weights_folder()) is None:
        require_reachable(remote, weights_folder())


def _meaning(pretrained: str, encoder: str, millions: float) -> tuple[str, str]:
    if pretrained == RANDOM:
        return _RANDOM, "info"
    if pretrained in (AUTO, IMAGENET):
        if pretrained == AUTO and (unasked := unasked_weights(encoder)):
            return f"Random weights. {unasked}", "warning"
        origin = published_origin(encoder)
        return (
            f"Published weights of {encoder} ({origin.source}): about {4 * millions:.0f} MB, downloaded when the "
            f"training starts unless they are here. Licence: {origin.licence}; it holds for the trained model too.",
            "warning" if is_non_commercial(origin.licence) else "info",
        )
    if "://" not in pretrained and not is_file(at_home(pretrained)):
        return f"There is no file {escape(pretrained, quote=False)} on this machine. Choose another.", "error"
    return f"{escape(_label(pretrained), quote=False)}. Its licence may hold for the trained model too.", "info"


def _label(pretrained: str) -> str:
    return f"As the YAML says: {pretrained}"

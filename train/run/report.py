"""What a run leaves for people besides its checkpoints: the photos with the most errors, and the model card."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import torch

from common.data.images import ImageError
from common.data.reading import Patience
from common.data.validation import to_measure
from common.hrda import load_checkpoint
from common.hrda.checks import CheckpointError
from common.hrda.files import replacing
from common.hrda.out_of_memory import is_out_of_memory
from train.run.card import CardData, model_card
from train.run.errors import draw_errors
from train.run.folder import RunFolder
from train.run.preparation import PreparedData
from train.run.request import RunRequest
from train.run.scores import Scores
from train.run.state import RunResult


def report(
    request: RunRequest,
    data: PreparedData,
    result: RunResult,
    device: torch.device,
    say: Callable[[str], None],
) -> None:
    """Write pictures and model card. All is saved before: what goes wrong here is said and costs nothing else.

    Args:
        request: of the run, with what it started from.
        data: what it trained and measured on.
        result: what it left behind.
        device: where to predict.
        say: gets what went wrong.
    """
    folder = RunFolder(request.out)
    scores = Scores.read(folder.scores)
    try:
        shutil.rmtree(folder.errors, ignore_errors=True)
        bundle = load_checkpoint(result.best)
        if scores is not None and result.best == folder.best:
            measured = to_measure(data.validation, request.settings.validation.max_images)
            draw_errors(folder.errors, bundle, scores.photos, measured, device, Patience(say))
        card = model_card(request, CardData.of(request, data), result, scores, bundle.metadata.weights_origin)
        with replacing(folder.card) as file:
            file.write(card.encode())
    except (OSError, ImageError, CheckpointError) as error:
        say(f"The pictures of errors or the model card could not be written: {error}")
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        say("The pictures of errors could not be drawn, as memory has run out. The checkpoints are whole.")

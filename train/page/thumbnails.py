"""Small pictures of a domain's photos with their labels in colour, as training would read them."""

from __future__ import annotations

import requests
from supervisely import Api, ImageInfo, ProjectMeta

from common.data.choice import UNCHOSEN_IS_BACKGROUND, label_indices
from common.data.images import decode_image
from common.data.labels import resize_labels
from common.data.project import draw_mask
from common.hrda.pixels import IGNORE_LABEL
from train.instance.domains import FoundDomain
from train.instance.facts import DomainFacts
from train.page.samples import data_url
from train.run.previews import overlay

_STRENGTH = 0.65
_IGNORED_COLOUR = (128, 128, 128)
_LIMIT_S = 20


def preview(api: Api, info: ImageInfo, height: int) -> str:
    """Where the instance has a photo made small."""
    return api.image.preview_url(info.full_storage_url, width=0, height=height, method="fit")


def labelled_previews(api: Api, domain: FoundDomain, facts: DomainFacts, height: int) -> list[str]:
    """The samples of a domain, those with labels as addresses of data in which they are drawn.

    Args:
        api: of the instance; not to be used by another thread meanwhile.
        domain: whose photos they are.
        facts: of the domain.
        height: of the pictures in pixels.

    Raises:
        requests.RequestException: the instance does not answer.
        ProjectError, ImageError: a label or a photo cannot be read.
    """
    meta = ProjectMeta.from_json(api.project.get_meta(domain.project.id))
    names = list(facts.classes)[: IGNORE_LABEL - 1]
    indices = label_indices((one.name for one in meta.obj_classes), names, UNCHOSEN_IS_BACKGROUND)
    colours = [(0, 0, 0)] + [_IGNORED_COLOUR] * IGNORE_LABEL
    for index, name in enumerate(names, start=1):
        colours[index] = tuple(meta.get_obj_class(name).color)
    urls = []
    for info in facts.samples:
        url = preview(api, info, height)
        [annotation] = api.annotation.download_json_batch(info.dataset_id, [info.id])
        if not annotation["objects"]:
            urls.append(url)
            continue
        answer = requests.get(url, timeout=_LIMIT_S)
        answer.raise_for_status()
        photo = decode_image(answer.content, info.name)
        size = annotation["size"]["height"], annotation["size"]["width"]
        mask = resize_labels(draw_mask(annotation, meta, indices, size, name=info.name), photo.shape[:2])
        urls.append(data_url(overlay(photo, mask, colours, _STRENGTH)))
    return urls

"""Where Supervisely's SDK is bent: the only package of the app that touches private names of it."""

from common.hrda.network import torchvision_operators

# The SDK's mode `iou_merge`, of requests and of collections, imports torchvision.
torchvision_operators.ensure_importable()

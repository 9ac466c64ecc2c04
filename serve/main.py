"""Entry of the app on an instance: `python -m uvicorn serve.main:model.app`."""

from common.allocator import share_arenas
from common.processors import share_processors

share_processors()
share_arenas()

from serve.server import HRDAServer

model = HRDAServer(use_gui=True, use_serving_gui_template=True)
model.serve()

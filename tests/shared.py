"""Where fixtures and photos that do not belong to the project may lie: a folder `shared` beside it."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[1].parent / "shared"

needs_shared = pytest.mark.skipif(
    not (SHARED / "reference").is_dir(),
    reason=f"the reference fixtures are not here: expected in {SHARED / 'reference'}",
)
needs_photos = pytest.mark.skipif(
    not (SHARED / "data" / "cracks_real").is_dir(),
    reason=f"the real crack photos are not here: expected in {SHARED / 'data' / 'cracks_real'}",
)

"""The table of presets, on a tiny network and two photos."""

import torch

from benchmarks.presets import main
from common.hrda import CheckpointBundle, ModelSettings, build_segmentor, save_checkpoint
from common.hrda.settings import PRESETS
from sandbox.synthetic.projects import write_project


def test_every_preset_is_compared_with_exact_at_one_threshold(tmp_path, capsys):
    tiny = ModelSettings(encoder="mit_b0", num_classes=2, crop_size=(64, 64), decoder_channels=8, attention_channels=8)
    torch.manual_seed(0)
    bundle = CheckpointBundle(
        student=build_segmentor(tiny).eval(),
        classes=("__bg__", "crack"),
        palette=((0, 0, 0), (220, 20, 60)),
        settings={"model": tiny.to_dict()},
    )
    save_checkpoint(tmp_path / "tiny.pth", bundle)
    write_project(tmp_path / "photos", "real_like", 2, size=(96, 128), workers=1)
    asked = ["--checkpoint", str(tmp_path / "tiny.pth"), "--labelled", str(tmp_path / "photos")]
    assert main([*asked, "--also", "wide,beside,0.3,gaussian"]) == 0
    first, _, _, _, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("2 photos, threshold 0.")
    cells = {row.split(" | ")[0].strip("| "): row.strip("| ").split(" | ")[1:] for row in rows}
    assert list(cells) == [*PRESETS, "wide,beside,0.3,gaussian"]
    assert cells["exact"][0] == "1.00" and cells["exact"][4] == "100.00%"
    # 3 rows of 2 windows and 5 of 7 at high resolution, of two photos.
    assert cells["exact"][5] == f"0% of {2 * (2 * 3 + 5 * 7)}"
    assert all(0 < float(row[4].rstrip("%")) <= 100 for row in cells.values())

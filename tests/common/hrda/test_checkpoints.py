"""Checkpoints: what is written comes back, what is foreign is read without being run, what is wrong is named."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.hrda import CheckpointBundle, ModelSettings, build_segmentor, load_checkpoint, save_checkpoint
from common.hrda.checks import CheckpointError
from common.hrda.network.reference_weights import convert_reference_state_dict, infer_model_settings
from common.hrda.network.segmentor import HRDASegmentor

SETTINGS = ModelSettings(encoder="mit_b0", num_classes=2, crop_size=(64, 64), decoder_channels=16, attention_channels=8)


def bundle(**kwargs) -> CheckpointBundle:
    torch.manual_seed(0)
    return CheckpointBundle(
        student=build_segmentor(SETTINGS),
        teacher=build_segmentor(SETTINGS),
        classes=("__bg__", "crack"),
        palette=((0, 0, 0), (220, 20, 60)),
        settings={"model": SETTINGS.to_dict(), "input": {"short_edge": 64, "long_edge": 96}},
        metrics={"student/iou/crack": 0.5},
        iteration=7,
        **kwargs,
    )


def to_reference_names(model: HRDASegmentor) -> dict[str, Tensor]:
    """Our weights under the reference's names, by the plain reverse of each rule."""
    state = {}
    for name, value in model.state_dict().items():
        if not name.startswith("backbone."):
            state[name] = value
            continue
        _, _, stage, kind, *rest = name.split(".")
        number = int(stage) + 1
        if kind == "0":
            state[f"backbone.patch_embed{number}." + ".".join(rest).replace("projection", "proj")] = value
        elif kind == "2":
            state[f"backbone.norm{number}.{rest[0]}"] = value
        else:
            index, *parts = rest
            part = ".".join(parts)
            lead = f"backbone.block{number}.{index}."
            if part.startswith("attn.attn.in_proj_"):
                third = len(value) // 3
                suffix = part.removeprefix("attn.attn.in_proj_")
                state[f"{lead}attn.q.{suffix}"], state[f"{lead}attn.kv.{suffix}"] = value[:third], value[third:]
                continue
            for ours, theirs in (
                ("attn.attn.out_proj", "attn.proj"),
                ("ffn.layers.0", "mlp.fc1"),
                ("ffn.layers.1", "mlp.dwconv.dwconv"),
                ("ffn.layers.4", "mlp.fc2"),
            ):
                part = part.replace(ours, theirs)
            state[lead + part] = value[..., 0, 0] if part in ("mlp.fc1.weight", "mlp.fc2.weight") else value
    return state


def former_checkpoint(path: Path, student: HRDASegmentor, teacher: HRDASegmentor, **meta) -> Path:
    state = {f"model.{n}": v for n, v in to_reference_names(student).items()}
    state |= {f"ema_model.{n}": v for n, v in to_reference_names(teacher).items()}
    torch.save({"meta": meta, "state_dict": state}, path)
    return path


@pytest.mark.parametrize("serve_teacher", [False, True])
def test_everything_written_comes_back(tmp_path: Path, serve_teacher: bool) -> None:
    written = bundle(serve_teacher=serve_teacher)
    save_checkpoint(tmp_path / "sub" / "model.pth", written)
    read = load_checkpoint(tmp_path / "sub" / "model.pth")
    for ours, theirs in ((read.student, written.student), (read.teacher, written.teacher)):
        for name, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], value)
    assert read.model is (read.teacher if serve_teacher else read.student)
    assert (read.classes, read.palette, read.iteration) == (written.classes, written.palette, 7)
    assert read.metrics == written.metrics
    assert read.settings == written.settings
    assert read.input_scale == (64, 96)
    assert not read.model.training


def test_keys_that_supervisely_adds_are_tolerated(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    save_checkpoint(path, bundle())
    content = torch.load(path, weights_only=True)
    content |= {"model_info": {"model_name": "mit_b0"}, "model_meta": {}, "model_files": {"config": {"name": "c"}}}
    torch.save(content, path)
    assert load_checkpoint(path).classes == ("__bg__", "crack")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    save_checkpoint(path, bundle())
    before = path.read_bytes()
    broken = bundle()
    broken.metrics = {"unwritable": open(__file__)}  # noqa: SIM115, PTH123
    with pytest.raises(TypeError):
        save_checkpoint(path, broken)
    broken.metrics["unwritable"].close()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.pth"]


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_code_in_a_file_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "meta": Harmful()}, "model.pth")
    with pytest.raises(CheckpointError, match="not a checkpoint of tensors and plain data"):
        load_checkpoint("model.pth")
    assert not Path("executed").exists()


def test_former_apps_checkpoint_is_read_with_classes_palette_and_sizes(tmp_path: Path) -> None:
    original = bundle()
    config = "crop_size = (64, 64)\nimg_scale=(128, 96)\nimport os; os.mkdir('executed')\n"
    path = former_checkpoint(
        tmp_path / "iter_20.pth",
        original.student,
        original.teacher,
        CLASSES=["__bg__", "crack"],
        PALETTE=[[0, 0, 0], [255, 0, 0]],
        config=config,
        iter=20,
    )
    read = load_checkpoint(path)
    assert read.classes == ("__bg__", "crack")
    assert read.palette == ((0, 0, 0), (255, 0, 0))
    assert read.iteration == 20
    assert read.input_scale == (96, 128)
    assert ModelSettings.from_dict(read.settings["model"]) == SETTINGS
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(read.model.crop_logits(x), original.student.eval().crop_logits(x))
        torch.testing.assert_close(read.teacher.crop_logits(x), original.teacher.eval().crop_logits(x))


def test_checkpoint_without_meta_gets_names_and_colours(tmp_path: Path) -> None:
    original = bundle()
    path = former_checkpoint(tmp_path / "latest.pth", original.student, original.teacher)
    read = load_checkpoint(path)
    assert read.classes == ("class_0", "class_1")
    assert len(set(read.palette)) == 2


def test_prefixes_choose_the_part_and_nothing_is_left_over() -> None:
    original = bundle()
    plain = to_reference_names(original.student)
    prefixed = {f"module.model.{n}": v for n, v in plain.items()}
    prefixed |= {f"module.ema_model.{n}": v for n, v in to_reference_names(original.teacher).items()}
    for state, prefix, model in (
        (plain, None, original.student),
        (prefixed, None, original.student),
        (prefixed, "ema_model.", original.teacher),
    ):
        converted = convert_reference_state_dict(state, prefix)
        assert set(converted) == set(model.state_dict())
        assert all(torch.equal(converted[n], v) for n, v in model.state_dict().items())
    with pytest.raises(KeyError, match="auxiliary_head"):
        convert_reference_state_dict({**plain, "auxiliary_head.conv_seg.weight": torch.zeros(1)})
    with pytest.raises(KeyError, match="no part 'imnet_model.'"):
        convert_reference_state_dict(prefixed, "imnet_model.")
    without_query = {n: v for n, v in plain.items() if n != "backbone.block1.0.attn.q.weight"}
    with pytest.raises(KeyError, match="no query"):
        convert_reference_state_dict(without_query)


def test_settings_follow_from_the_weights() -> None:
    assert infer_model_settings(bundle().student.state_dict()) == replace(SETTINGS, crop_size=(512, 512))
    single = ModelSettings(
        **{**SETTINGS.to_dict(), "attention_classwise": False, "num_classes": 4, "encoder": "mit_b2"}
    )
    assert infer_model_settings(build_segmentor(single).state_dict()) == replace(single, crop_size=(512, 512))


def test_wrong_files_are_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no file at .*missing.pth"):
        load_checkpoint(tmp_path / "missing.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match="text.pth is not a checkpoint"):
        load_checkpoint(tmp_path / "text.pth")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(CheckpointError, match="pickle.pth is not a checkpoint"):
        load_checkpoint(tmp_path / "pickle.pth")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="holds no 'state_dict'"):
        load_checkpoint(tmp_path / "other.pth")
    save_checkpoint(tmp_path / "model.pth", bundle())
    content = torch.load(tmp_path / "model.pth", weights_only=True)
    torch.save(content | {"metrics": None}, tmp_path / "metrics.pth")
    with pytest.raises(CheckpointError, match="metrics.pth does not fit"):
        load_checkpoint(tmp_path / "metrics.pth")
    content["settings"]["model"]["decoder_channels"] = 32
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="does not fit the network it describes"):
        load_checkpoint(tmp_path / "model.pth")
    whole = (tmp_path / "model.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cut.pth is not a checkpoint"):
        load_checkpoint(tmp_path / "cut.pth")

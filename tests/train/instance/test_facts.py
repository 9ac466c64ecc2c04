"""Facts of domains, asked of a sandbox: exact where they say so, like training's own counts, and in bounded time."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import supervisely as sly

from common.data.project import open_project, prepare_labelled
from sandbox.testing import Sandbox, running_sandbox
from train.instance.domains import Domain, FoundDomain, download, find_domain
from train.instance.facts import DomainFacts, Superseded, domain_facts

HEIGHT, WIDTH = 20, 40
META = sly.ProjectMeta([
    sly.ObjClass("joint", sly.Polygon), sly.ObjClass("crack", sly.Bitmap), sly.ObjClass("axis", sly.Polyline),
    sly.ObjClass("any", sly.AnyGeometry), sly.ObjClass("soft", sly.AlphaMask), sly.ObjClass("__bg__", sly.Bitmap),
])  # fmt: skip


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory) -> Iterator[Sandbox]:
    with running_sandbox(tmp_path_factory.mktemp("state")) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.env(SUPERVISELY_PUBLIC_API_RETRIES=1).items():
            patch.setenv(name, value)
        yield running


@pytest.fixture(scope="module")
def api(sandbox) -> sly.Api:
    return sly.Api(sandbox.address, sandbox.token, ignore_task_id=True)


def bitmap(rows: slice, columns: slice) -> sly.Bitmap:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[rows, columns] = True
    return sly.Bitmap(mask)


def upload(api: sly.Api, dataset_id: int, name: str, shapes: dict[str, object], size=(HEIGHT, WIDTH)) -> None:
    image = api.image.upload_np(
        dataset_id, name, np.random.default_rng(len(name)).integers(0, 99, (*size, 3), np.uint8)
    )
    labels = [sly.Label(shape, META.get_obj_class(title)) for title, shape in shapes.items()]
    if labels:
        api.annotation.upload_ann(image.id, sly.Annotation(size, labels))


@pytest.fixture(scope="module")
def project_id(api, sandbox) -> int:
    """Dataset `road` with `night` nested in it, and `other`; four images with labels and two without."""
    project = api.project.create(sandbox.workspace_id, "labelled")
    api.project.update_meta(project.id, META)
    road = api.dataset.create(project.id, "road")
    night = api.dataset.create(project.id, "night", parent_id=road.id)
    other = api.dataset.create(project.id, "other")
    # The crack lies over half of the joint: a quarter of the photo is joint, a quarter crack.
    left_half = sly.Polygon([[0, 0], [0, 19], [19, 19], [19, 0]])
    upload(api, road.id, "both.png", {"joint": left_half, "crack": bitmap(slice(None), slice(0, 10))})
    upload(api, road.id, "nothing.png", {})
    upload(
        api, night.id, "axis.png", {"axis": sly.Polyline([[0, 0], [9, 9]]), "crack": bitmap(slice(0, 2), slice(0, 4))}
    )
    upload(api, night.id, "soft.png", {"soft": sly.AlphaMask(np.full((HEIGHT, WIDTH), 200, np.uint8))})
    upload(api, other.id, "any.png", {"any": sly.Point(3, 4)})
    upload(api, other.id, "large.png", {}, (60, 30))
    return project.id


def found(api: sly.Api, project_id: int, *names: str) -> FoundDomain:
    paths = find_domain(api, "source", Domain(project_id)).datasets
    ids = tuple(paths[name].id for name in names)
    return find_domain(api, "source", Domain(project_id, ids or None))


@pytest.fixture
def asked(api, monkeypatch) -> Counter:
    """How often each method of the instance was asked."""
    counter: Counter = Counter()
    post = api.post
    monkeypatch.setattr(
        api, "post", lambda method, *given, **named: (counter.update([method]), post(method, *given, **named))[1]
    )
    return counter


def test_numbers_and_sizes_are_those_of_the_whole_project(api, project_id):
    facts = domain_facts(api, found(api, project_id))
    assert (facts.images, facts.labelled_images, facts.sized_images) == (6, 4, 6)
    assert (facts.smallest, facts.largest, facts.median_long_edge) == ((40, 20), (30, 60), 40)
    assert list(facts.classes) == ["joint", "crack", "any", "soft"], "neither the background nor a class without area"
    assert [(one.images, one.objects) for one in facts.classes.values()] == [(1, 1), (2, 2), (1, 1), (1, 1)]


def test_nested_dataset_is_counted_by_itself(api, project_id):
    facts = domain_facts(api, found(api, project_id, "road"))
    assert (facts.images, facts.labelled_images, facts.counted_images) == (2, 1, 2)
    assert {name: one.images for name, one in facts.classes.items()} == {"joint": 1, "crack": 1, "any": 0, "soft": 0}
    facts = domain_facts(api, found(api, project_id, "road", "road/night"))
    assert {name: one.images for name, one in facts.classes.items()} == {"joint": 1, "crack": 2, "any": 0, "soft": 1}


def test_overlapping_labels_count_once_and_unlabelled_images_as_background(api, project_id):
    facts = domain_facts(api, found(api, project_id, "road"))
    assert {name: one.pixel_share for name, one in facts.classes.items()} == {
        "joint": pytest.approx(0.125), "crack": pytest.approx(0.125), "any": 0, "soft": 0,
    }  # fmt: skip
    assert not any(one.is_rare for one in facts.classes.values())


def test_shares_are_those_that_training_counts(api, project_id, tmp_path):
    domain = found(api, project_id, "road", "road/night")
    download(api, domain, tmp_path / "project", use_cache=False, progress=lambda _: None)
    names = ["joint", "crack", "soft"]
    trained = prepare_labelled(open_project(tmp_path / "project"), names, tmp_path / "masks")
    facts = domain_facts(api, domain)
    assert [facts.classes[name].pixel_share for name in names] == pytest.approx(trained.class_shares[1:].tolist())


def test_image_that_training_would_refuse_is_named(api, project_id):
    facts = domain_facts(api, found(api, project_id, "other"))
    [sentence] = facts.undrawable
    assert "Label 1 of any.png, class 'any', is a point, which has no area" in sentence
    assert facts.counted_images == 1


def test_labels_of_a_target_are_not_downloaded(api, project_id, asked):
    facts = domain_facts(api, found(api, project_id), drawn=0)
    assert "annotations.bulk.info" not in asked
    assert {one.pixel_share for one in facts.classes.values()} == {None}
    assert facts.counted_images == 0


def test_images_to_show_have_addresses_of_the_instance(api, sandbox, project_id):
    samples = domain_facts(api, found(api, project_id)).samples
    assert len(samples) == 4
    assert all(image.preview_url.startswith(f"{sandbox.address}/previews/") for image in samples)


def test_long_list_is_not_read_whole(api, sandbox, asked):
    """Images of one content in two datasets, as many as two pages of the list; the last ones are larger."""
    project = api.project.create(sandbox.workspace_id, "long")
    api.project.update_meta(project.id, META)
    dataset = api.dataset.create(project.id, "ds")
    for prefix, side in (("a", 8), ("b", 16)):
        first = api.image.upload_np(dataset.id, f"{prefix}.png", np.zeros((side, side, 3), np.uint8))
        names = [f"{prefix}{number}.png" for number in range(599)]
        api.image.upload_hashes(dataset.id, names, [first.hash] * len(names), batch_size=600)
    for chosen in ([], ["ds"]):
        domain = found(api, project.id, *chosen)
        asked.clear()
        facts = domain_facts(api, domain)
        assert facts.images == 1200
        assert 90 <= facts.sized_images <= 110
        assert (facts.smallest, facts.largest) == ((8, 8), (16, 16)), "picked from beginning to end"
        assert 8 <= facts.median_long_edge <= 16
        assert sum(asked.values()) < 35


def test_reading_ends_early_when_nobody_waits_for_it(api, project_id, asked):
    with pytest.raises(Superseded):
        domain_facts(api, found(api, project_id), is_stale=lambda: asked["images.list"] >= 1)
    assert asked["images.list"] == 1
    assert "annotations.bulk.info" not in asked


def test_unlabelled_project_has_no_shares(api, sandbox):
    project = api.project.create(sandbox.workspace_id, "unlabelled")
    upload(api, api.dataset.create(project.id, "ds").id, "one.png", {})
    facts = domain_facts(api, found(api, project.id))
    assert isinstance(facts, DomainFacts)
    assert (facts.images, facts.labelled_images, facts.counted_images, dict(facts.classes)) == (1, 0, 0, {})

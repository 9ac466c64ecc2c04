"""What is asked of the app before a model is deployed: a sentence at once, and not an error that is asked again."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import supervisely as sly
from requests import HTTPError
from supervisely.nn.inference import SessionJSON
from supervisely.nn.model.model_api import ModelAPI

from tests.serve.conftest import serving
from tests.serve.requests_of_clients import deploy, encoded, post, refused, upload

SENTENCE = "No model is deployed. Choose one in the app, or call deploy_from_api."


@pytest.fixture(scope="module")
def bare(checkpoint, no_instance) -> Iterator[SimpleNamespace]:
    """The app after its model was shut down."""
    with serving(checkpoint) as running:
        running.server.shutdown_model()
        yield running


@pytest.mark.parametrize(
    "route",
    ["get_session_info", "get_output_classes_and_tags", "get_model_meta", "get_deploy_info", "get_tracking_settings"],
)
def test_what_describes_a_model_is_refused_with_the_remedy(bare, route):
    refused(post(bare, route), SENTENCE)


def test_prediction_is_refused_with_the_same_sentence(bare, image):
    refused(upload(bare, encoded(image)), SENTENCE)
    refused(upload(bare, encoded(image), route="predict_probabilities"), SENTENCE)
    refused(upload(bare, encoded(image), route="measure"), SENTENCE)
    refused(upload(bare, encoded(image), {"format": "masks"}), SENTENCE)
    assert post(bare, "is_ready").status_code == 503


def test_sdks_clients_learn_it_at_once_and_go_on_after_the_deployment(bare, checkpoint):
    api = sly.Api("http://127.0.0.1:9", "no token", retry_count=5)
    with pytest.raises(ValueError, match="Can't connect to the model"):
        SessionJSON(api, session_url=bare.url)
    model = ModelAPI(url=bare.url)
    for ask in (model.get_info, model.get_model_meta):
        with pytest.raises(HTTPError, match="400 Client Error"):
            ask()
    assert deploy(bare, checkpoint).status_code == 200
    try:
        info = SessionJSON(api, session_url=bare.url).get_session_info()
        assert info["max_batch_size"] == bare.server.limits.max_batch_size
        assert (info["tracking_algorithms"], info["tracking_on_videos_support"]) == ([], False)
        assert model.get_classes() == ["__bg__", "crack", "stain"]
        assert model.get_info()["checkpoint_name"] == "model.pth"
        assert post(bare, "get_tracking_settings").json() == {}
    finally:
        bare.server.shutdown_model()

"""`python -m serve deploy|predict|export`: the app without a page, with the arguments of Supervisely's SDK.

`python -m serve batch` has its own, see `serve.batch.command`.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serve.batch.command import Instance
    from serve.limits import Limits

from common.allocator import share_arenas
from common.paths import is_file, is_folder
from common.ports import port
from common.processors import share_processors

DEVICES = ("cpu", "cuda", "cuda:0", "cuda:1", "cuda:2", "cuda:3")
RUNTIMES = ("PyTorch", "ONNXRuntime", "TensorRT")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
OUTPUTS = ("format", "tolerance", "mm_per_pixel")
"""Arguments about what is written of images on this machine."""
INSTANCE_VARIABLES = ("SERVER_ADDRESS", "API_TOKEN", "TEAM_ID")
EPILOG = """\
examples:
  python -m serve predict photo.jpg --model model.pth --draw --output predictions
  python -m serve predict photos --model model.pth --settings preset=balanced
  python -m serve predict photos --model model.pth --settings stride=256 window=512 flip=true
  python -m serve predict photos --model model.pth --format masks,coco,csv --output results
  python -m serve batch --model model.pth --input photos --output results --format masks,csv --workers 2
  python -m serve deploy --model model.pth --port 8001
  python -m serve deploy --model model.pth --host 0.0.0.0 --no-model-control
  python -m serve export --model model.pth --output model.onnx
  python -m serve predict photo.jpg --model model.onnx --runtime ONNXRuntime

To let other machines in, set HRDA_API_TOKEN to a secret of 16 characters or more; they send it as
"Authorization: Bearer TOKEN". All settings and bounds are in serve/README.md.
"""


def devices(text: str) -> str:
    """The device or devices that an argument names, such as 'cuda:0,cuda:1'."""
    named = [word.strip() for word in text.split(",")]
    for word in named:
        if word not in DEVICES:
            raise argparse.ArgumentTypeError(
                f"expected {', '.join(DEVICES)}, or several with commas, got {text[:80]!r}"
            )
    return ",".join(named)


def build_parser() -> argparse.ArgumentParser:
    """The SDK's arguments, and ours about the server."""
    parser = argparse.ArgumentParser(
        prog="python -m serve",
        description="deploy: answer inference requests until stopped. predict: predict images and stop.\n"
        "export: write the network of a checkpoint as ONNX, which the other runtimes serve.\n"
        "batch: predict whole collections of photos; see python -m serve batch --help.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("mode", choices=("deploy", "predict", "export"), help="what to do")
    parser.add_argument("input", nargs="?", help="predict: an image or a folder with images on this machine")
    parser.add_argument("--model", required=True, help="checkpoint: path on this machine, or in Team Files")
    parser.add_argument(
        "--device",
        type=devices,
        help="where to compute: cpu or cuda:N, for deploy also several, cuda:0,cuda:1 (default: the first GPU, if any)",
    )
    parser.add_argument("--runtime", choices=RUNTIMES, default="PyTorch", help="what the network runs on (%(default)s)")
    parser.add_argument("--project_id", type=int, help="predict: a project on the instance")
    parser.add_argument("--dataset_id", help="predict: datasets on the instance, e.g. 505,506")
    parser.add_argument("--image_id", type=int, help="predict: an image on the instance")
    parser.add_argument(
        "--output", default="./predictions", help="predict: folder for the results; export: file to write (%(default)s)"
    )
    parser.add_argument("--upload", action="store_true", help="predict: upload predictions to the instance")
    parser.add_argument(
        "--settings", nargs="*", help="predict: a YAML or JSON file, or KEY=VALUE pairs as in inference_settings.yaml"
    )
    parser.add_argument("--draw", action="store_true", help="predict: also write images with the areas drawn in")
    parser.add_argument("--bands", help="predict: of a TIFF, those that are red, green, blue, such as 4,3,2")
    parser.add_argument(
        "--range", metavar="LOW,HIGH", help="predict: of a TIFF, samples that become 0 and 255 (percentiles)"
    )
    parser.add_argument(
        "--format",
        metavar="NAMES",
        help="predict: what to write of images on this machine, each into a folder of its name, with commas between: "
        "masks, supervisely, coco, coco-polygons, yolo, pascal, geojson, overlay, probabilities, csv, parquet; "
        "docs/outputs.md shows each (without: annotations in Supervisely's format)",
    )
    parser.add_argument(
        "--tolerance",
        metavar="PIXELS",
        help="predict: how far polygons may run beside the border that was predicted (0.5)",
    )
    parser.add_argument(
        "--mm-per-pixel",
        metavar="MM",
        help="predict: millimetres that a pixel shows, for lengths and widths in csv and parquet",
    )
    parser.add_argument(
        "--host", help="deploy: address to listen on (127.0.0.1, or every one where HRDA_API_TOKEN is set)"
    )
    parser.add_argument("--port", type=port, default=8000, help="deploy: port to listen on (%(default)s)")
    parser.add_argument(
        "--no-model-control",
        dest="model_control",
        action="store_false",
        help="deploy: requests may neither deploy another model nor freeze it nor end the service",
    )
    parser.add_argument("--parent", type=int, metavar="PID", help="deploy: end when this parent process has ended")
    return parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read and check the arguments; a wrong one ends the program with a line that says what to do."""
    parser = build_parser()
    args = parser.parse_intermixed_args(argv)
    remote = [args.project_id, args.dataset_id, args.image_id]
    if args.mode != "deploy" and "," in (args.device or ""):
        parser.error(f"{args.mode} takes one device; several are for deploy. Received: {args.device}")
    if args.mode == "deploy" and args.input is not None:
        parser.error(f"deploy takes no input: give the checkpoint as --model. Received: {args.input}")
    if args.mode == "export" and (args.input is not None or not is_file(args.model)):
        parser.error(f"export needs a checkpoint on this machine as --model, and --output. Received: {args.model}")
    if args.mode == "predict":
        if args.input is None and not any(remote):
            parser.error("predict needs an image or a folder, or --project_id, --dataset_id or --image_id")
        if args.input is not None and not (is_file(args.input) or is_folder(args.input)):
            parser.error(f"there is no image or folder at {args.input}")
        written = [f"--{name.replace('_', '-')}" for name in OUTPUTS if getattr(args, name) is not None]
        if written and (any(remote) or not is_file(args.model)):
            parser.error(f"{written[0]} is for images and a checkpoint on this machine: download them first")
    missing = [name for name in INSTANCE_VARIABLES if not os.environ.get(name)]
    if missing and not is_file(args.model):
        parser.error(
            f"there is no checkpoint at {args.model}; one in Team Files needs {', '.join(missing)} in the environment"
        )
    if missing and any(remote):
        parser.error(f"data on an instance needs {', '.join(missing)} in the environment")
    return args


def sdk_arguments(args: argparse.Namespace) -> list[str]:
    """`args` as the SDK reads them from `sys.argv`: it takes positions only before options."""
    words = [args.mode]
    if args.input is not None:
        words.append(args.input)
    for name in ("model", "device", "runtime", "project_id", "dataset_id", "image_id", "output"):
        value = getattr(args, name)
        if value is not None:
            # The SDK knows one device; the server gets all of them besides.
            words += [f"--{name}", str(value).partition(",")[0] if name == "device" else str(value)]
    words += [f"--{name}" for name in ("upload", "draw") if getattr(args, name)]
    return words + (["--settings", *args.settings] if args.settings else [])


def needs_sdk(args: argparse.Namespace) -> bool:
    """Whether Supervisely's SDK has to run the command: not for local images and a local checkpoint."""
    remote = args.project_id, args.dataset_id, args.image_id
    # As the SDK has it, an id counts whatever its value.
    return args.mode != "predict" or remote != (None, None, None) or not is_file(args.model)


def run_server(args: argparse.Namespace) -> None:
    """`python -m serve deploy`, or `predict` of what is on an instance."""
    from supervisely import logger

    from serve.batch.local import settings_of_words
    from serve.limits import Limits
    from serve.model.settings import read_settings
    from serve.server import HRDAServer
    from serve.terminal import speak_in_lines

    # The SDK's own reader ends in a traceback at a mistake.
    read_settings(settings_of_words(args.settings or []))
    limits = Limits.from_environment()
    # Nobody waits beside who predicts on the command line.
    limits = replace(limits, allow_compile=limits.allow_compile or args.mode == "predict")
    if not args.model_control:
        limits = replace(limits, model_control=False)
    sys.argv[1:] = sdk_arguments(args)
    host = host_of(args, limits)
    if args.mode == "deploy":
        require_address(host, args.port)
    else:
        speak_in_lines(logger)
    HRDAServer(host, args.port, limits, devices=args.device).serve()


def host_of(args: argparse.Namespace, limits: Limits) -> str:
    """The address to listen on: this machine's own where nobody is asked for a token, unless it is given."""
    from supervisely import logger

    host = args.host or ("0.0.0.0" if limits.api_token else "127.0.0.1")
    if args.mode == "deploy" and limits.api_token is None:
        others = "" if args.host else " Set it, or give --host, to let other machines in."
        who = "Only this machine reaches it." if host in LOOPBACK else f"Whoever reaches {host} may use it."
        logger.warning(
            f"The service at {host}:{args.port} asks for no token, as HRDA_API_TOKEN is not set. {who}{others}"
        )
    return host


def require_address(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on, before a model is loaded for it.

    Raises:
        RequestError: it says what to choose instead.
    """
    from serve.errors import RequestError

    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except (OSError, UnicodeError) as error:
        reason = (getattr(error, "strerror", None) or "it is no address").lower()
        raise RequestError(
            f"The service cannot listen at {host}:{port}: {reason}. Choose another --port, or another --host."
        ) from error


def predict_here(args: argparse.Namespace) -> None:
    """`python -m serve predict` of an image or a folder on this machine."""
    from common.plain_yaml import read_field
    from serve.batch.local import make_folder, predict_local, settings_of_words
    from serve.batch.outputs import chosen_formats
    from serve.batch.outputs.format import OutputOptions
    from serve.batch.tiff import raster_options
    from serve.batch.worker import Worker

    settings = settings_of_words(args.settings or [])
    formats = () if args.format is None else chosen_formats(args.format)
    given = {name: getattr(args, name) for name in ("tolerance", "mm_per_pixel")}
    options = {name: read_field(name, text) for name, text in given.items() if text is not None}
    OutputOptions.from_dict(options)
    raster = raster_options(args.bands, args.range)
    output = Path(args.output)
    make_folder(output)
    worker = Worker.from_file(args.model, args.device, args.runtime, settings)
    predict_local(worker, Path(args.input), output, draw=args.draw, formats=formats, options=options, raster=raster)


def run_batch(words: Sequence[str]) -> int:
    """`python -m serve batch`; the exit status."""
    share_processors()
    from common.hrda.files import WriteError
    from serve.batch.command import main as batch
    from serve.errors import CLIENT_ERRORS

    try:
        return batch(words, instance_of_environment)
    except CLIENT_ERRORS as error:
        return failed(str(error))
    except WriteError as error:
        return failed(f"{error} {error.remedy.capitalize()}.")


def instance_of_environment() -> Instance:
    """The instance that the environment names.

    Raises:
        RequestError: it names none.
    """
    from serve.errors import RequestError
    from serve.sdk.projects import instance

    missing = [name for name in ("SERVER_ADDRESS", "API_TOKEN") if not os.environ.get(name)]
    if missing:
        raise RequestError(f"A project on an instance needs {' and '.join(missing)} in the environment.")
    return instance()


def export_model(checkpoint: Path, output: Path) -> int:
    """`python -m serve export`; the exit status."""
    from serve.errors import CLIENT_ERRORS
    from serve.model.exports import export

    path = output if output.suffix == ".onnx" else output / f"{checkpoint.stem}.onnx"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        export(checkpoint, path)
    except CLIENT_ERRORS as error:
        return failed(str(error))
    except OSError as error:
        return failed(f"{path} cannot be written: {error.strerror}. Choose another --output.")
    print(f"Exported to {path}. Serve it with: python -m serve deploy --model {path} --runtime ONNXRuntime")
    return 0


def failed(sentence: str) -> int:
    """Say what went wrong; the exit status."""
    print(f"error: {sentence}", file=sys.stderr)
    return 2


def end_with(parent: int, interval_s: float = 1.0) -> None:
    """End this process, as a signal would, when `parent` is its parent no longer."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(interval_s)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, or 2 after an error that the user can mend.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        # Names of files may be no text.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if words[:1] == ["batch"]:
        return run_batch(words[1:])
    args = parse_arguments(words)
    share_processors()
    share_arenas()
    if args.parent is not None:
        end_with(args.parent)
    if args.mode == "export":
        return export_model(Path(args.model), Path(args.output))
    # Seconds of imports, so not before the arguments are known to be right.
    from common.hrda.files import WriteError
    from serve.errors import CLIENT_ERRORS
    from serve.model.deployment import default_device

    args.device = args.device or default_device()
    try:
        if needs_sdk(args):
            run_server(args)
        else:
            predict_here(args)
    except CLIENT_ERRORS as error:
        return failed(str(error))
    except WriteError as error:
        return failed(f"{error} {error.remedy.capitalize()}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

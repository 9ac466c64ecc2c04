"""Draw crack photos as a project: `python -m sandbox.synthetic --out synthetic --domain source --count 300`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sandbox.synthetic.projects import DOMAINS, write_project


def main(arguments: Sequence[str] | None = None) -> None:
    """Write one dataset of generated photos.

    Args:
        arguments: in place of those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m sandbox.synthetic",
        description="Draw photos of cracks as a project in Supervisely's format.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the project's folder")
    parser.add_argument("--domain", choices=DOMAINS, default="source", help="look of the photos (default: %(default)s)")
    parser.add_argument("--count", type=int, default=100, help="number of photos (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other photos (default: %(default)s)")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(256, 256),
        metavar=("HEIGHT", "WIDTH"),
        help="(default: 256 256)",
    )
    parser.add_argument("--dataset", default="ds0", help="name of the dataset (default: %(default)s)")
    parser.add_argument("--unlabelled", action="store_true", help="leave the annotations empty")
    given = parser.parse_args(arguments)
    try:
        write_project(
            given.out,
            given.domain,
            given.count,
            seed=given.seed,
            size=tuple(given.size),
            labelled=not given.unlabelled,
            dataset=given.dataset,
        )
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{given.out} could not be written: {error.strerror or error}.")
    print(f"{given.count} photos are in {given.out}, dataset {given.dataset}.")


if __name__ == "__main__":
    main()

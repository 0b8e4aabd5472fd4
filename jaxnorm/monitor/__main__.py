"""python -m jaxnorm.monitor CHECKPOINT: what its stored statistics tell.

Exits with 0 where all is healthy, with 1 where something was found, and with 2 where it cannot be read.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

import jax

from jaxnorm.monitor.checkpoint import read


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table of a checkpoint, and returns how to exit.

    Args:
      arguments: of the command line; None: those of this process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m jaxnorm.monitor",
        description="Reports what the statistics in an orbax checkpoint tell. Exits with 0 where all is "
        "healthy, with 1 where something was found, and with 2 where the checkpoint cannot be read.",
    )
    parser.add_argument("checkpoint", help="the folder that orbax wrote")
    parser.add_argument("--epsilon", type=float, default=1e-5, help="of the norms, default: %(default)s")
    parser.add_argument("--plot", metavar="PNG", help="draw the statistics, too")
    options = parser.parse_args(arguments)
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax warns of files that it can do without
    try:
        report = read(options.checkpoint, epsilon=options.epsilon)
        print(report.table())
        if options.plot:
            report.plot(options.plot)
    except (ImportError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 1 if report.findings else 0


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # an accelerator may be busy with the training
    sys.exit(main())

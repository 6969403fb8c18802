"""Measures the parts that decide the speed of a run, on the machine at hand.

`python -m lsrjax.bench head` compares the fused vocabulary projection and max with the
plain one, and with PyTorch if it is installed; `step` does so within a whole training
step; `attention` compares attention within a window in blocks and by a mask; `data`
measures the speed of the loader; `encode` compares encoding a file of texts with
SparseEncoder of sentence-transformers; `corpus` compares search engines, and measures
mining by BM25; `chip` measures the others on an accelerator, against the machine's
ceilings and PyTorch.
"""

import argparse
from collections.abc import Sequence

import jax

from lsrjax.bench import attention, chip, corpus, data, encode, head, step
from lsrjax.cli import exits
from lsrjax.cli.parsing import Parser
from lsrjax.distributed import processes


@exits.on_input_error()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark named on the command line."""
    args = _parser().parse_args(argv)
    try:
        processes.check_devices()
        args.run(args)
    except jax.errors.JaxRuntimeError as error:
        # Not foreseen by an estimate; other errors are bugs and show their traceback.
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        exits.stop("The device ran out of memory. Take a smaller --batch or --length.")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="lsrjax bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (head, attention, step, data, encode, corpus, chip):
        command.add_command(commands)
    return parser


if __name__ == "__main__":
    main()

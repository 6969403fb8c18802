"""`lsrjax COMMAND …` and `python -m lsrjax COMMAND …`: all commands."""

import sys

from lsrjax.cli.importing import command
from lsrjax.errors import nearest

COMMANDS = {
    "train": "train and evaluate what a config describes",
    "doctor": "look for what would make a run fail, before it starts",
    "evaluate": "measure a retriever on benchmarks or on data of your own",
    "encode": "encode texts with a trained retriever, for an index",
    "index": "index vectors or texts for a search engine",
    "search": "search an index, from a file of queries or at a prompt",
    "report": "write a page about runs: curves, results, examples, configs",
    "serve": "a page to search an index on, and the same as JSON",
    "mine": "mine hard negatives for training rows from a corpus",
    "score": "score training rows with a teacher, or join scores of others",
    "translate": "translate a corpus into Parquet files, one for each language",
    "convert": "write a retriever for another program, or read one of its",
    "checkpoint": "list, verify and compare checkpoints",
    "bench": "measure the parts that decide the speed of a run",
}
USAGE = (
    "lsrjax COMMAND …\n\n"
    + "\n".join(f"  {name:12}{text}" for name, text in COMMANDS.items())
    + "\n\nlsrjax COMMAND --help says more."
)


def main() -> None:
    """Starts the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("-h", "--help", "help"):
        print(USAGE)
        return
    if not name:
        print(f"Error: A command is missing.\n\n{USAGE}", file=sys.stderr)
        sys.exit(2)
    if name not in COMMANDS:
        near = nearest(name, COMMANDS)
        meant = f"Did you mean {near}?" if near else f"Known: {', '.join(COMMANDS)}."
        print(f"Error: {name} is no command. {meant}", file=sys.stderr)
        sys.exit(2)
    del sys.argv[1]
    sys.argv[0] = f"lsrjax {name}"
    if name == "bench":  # above the commands, some of which it measures
        command("lsrjax.bench.__main__").main()
    else:
        command(f"lsrjax.cli.{name}").start()


if __name__ == "__main__":
    main()

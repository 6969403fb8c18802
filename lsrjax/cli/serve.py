"""Serves a page to search an index on, and the same as JSON.

    lsrjax serve --index docs.index --model runs/demo

Open the address that it prints, type in any language, and press enter. The page shows
the documents, the strongest terms of the query in each view, the terms that each
document was found by, and the time that encoding and searching took. The same as JSON:

    curl 'http://127.0.0.1:8000/api/search?q=boot+loader&depth=3'

Only this machine reaches it; --host 0.0.0.0 opens it to others, without any login,
under the names of --allow_host. --rank, --fusion, --feedback and --engine.FIELD=VALUE
are those of lsrjax search. Ctrl-C ends it.
"""

import argparse
import socket
import sys
from collections.abc import Sequence

from lsrjax.cli import entry_flags, exits, search
from lsrjax.cli.parsing import Parser
from lsrjax.distributed import safe_output
from lsrjax.errors import InputError

_HERE = ("127.0.0.1", "localhost")
_AT_ONCE = 64  # requests; further ones get status 503


@exits.on_input_error()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with these arguments."""
    given = sys.argv[1:] if argv is None else argv
    values, rest = entry_flags.take(given, "engine", "fusion", "feedback")
    args = _parser().parse_args(rest)
    try:
        import uvicorn

        from lsrjax.cli import search_page
    except ModuleNotFoundError as error:
        raise InputError(
            f"lsrjax serve needs the package {error.name}: pip install 'lsrjax[serve]'."
        ) from error
    with (
        _bound(args.host, args.port) as place,
        search.opened(args, values, batch_size=1) as session,
    ):
        page = search_page.SearchPage(session)
        page.answer("warm", 1)  # compiles, which a user would wait for
        app = page.app([*_HERE, args.host, *args.allow_host])
        place.listen()  # before it is said
        host, port = place.getsockname()[:2]
        print(f"{len(session.index):,} documents on http://{host}:{port}", flush=True)
        config = uvicorn.Config(
            app, log_level="warning", server_header=False, limit_concurrency=_AT_ONCE
        )
        uvicorn.Server(config).run(sockets=[place])


def _bound(host: str, port: int) -> socket.socket:
    """A socket at an address, which is tried before anything is read."""
    made = socket.socket()
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except (OSError, OverflowError) as error:
        made.close()
        raise InputError(
            f"--host {host} --port {port} cannot be used ({error}). Name another port;"
            " 0 takes a free one."
        ) from error
    return made


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="lsrjax serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    search.add_shared(parser)
    add = parser.add_argument
    add("--host", default=_HERE[0], help=f"the address to listen on ({_HERE[0]})")
    add("--port", type=int, default=8000, help="0 takes a free one (8000)")
    add(
        "--allow_host",
        action="append",
        default=[],
        metavar="NAME",
        help="also answer requests to this name; may be repeated",
    )
    parser.set_defaults(queries=None)  # of lsrjax search
    return parser


def start() -> None:
    """Runs the command."""
    safe_output.harden()
    main()

"""Entry of the worker process: ``python -m llama_magic.worker``. Started by `llama_magic.engine.process`."""

from __future__ import annotations

import argparse
import sys

__all__ = ["main"]


def main() -> None:
    """Connect to the kernel that started this process, and serve it."""
    parser = argparse.ArgumentParser(description="Worker process of llama_magic; not to be started by hand.")
    parser.add_argument("--fd", type=int, help="inherited file descriptor of the channel (POSIX)")
    parser.add_argument("--address", help="named pipe of the channel (Windows); its key is read from standard input")
    parser.add_argument("--early", action="store_true", help="import what may be needed before it is asked for")
    arguments = parser.parse_args()
    from llama_magic.engine.framing import Wire, wire

    if arguments.fd is not None:
        channel = wire(arguments.fd)
    elif arguments.address is not None:
        from multiprocessing.connection import Client

        connection = Client(arguments.address, authkey=sys.stdin.buffer.read(32))
        channel = Wire(connection.recv_bytes, connection.send_bytes, connection.poll)
    else:
        parser.error("give --fd or --address")
    from llama_magic.engine.host import serve

    serve(channel, early=arguments.early)


if __name__ == "__main__":
    main()

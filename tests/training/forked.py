"""`python forked.py COUNTS OUTPUT ARGV`: `allosr2 ARGV --output OUTPUT/N` in N processes, for each N of COUNTS.

They are forked from one process that has imported everything, which takes most of the time that torchrun takes.
"""

from __future__ import annotations

import os
import socket
import sys

from allosr2.cli import main
from allosr2.training import loop  # noqa: F401 - imported before the forks


def train_in(count: int, argv: list[str]) -> int:
    """Run a command in `count` processes that train together; returns the worst of their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children: list[int] = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            os.environ.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(count),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            )
            os._exit(main(argv))
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    counts, output, *arguments = sys.argv[1:]
    for count in map(int, counts.split(",")):
        status = train_in(count, [*arguments, "--output", f"{output}/{count}"])
        if status:
            sys.exit(status)

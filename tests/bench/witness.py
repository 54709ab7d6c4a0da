"""A second count of what a server was asked and answered, by a program that stands before it and passes everything on.

`python -m tests.bench.witness PORT SERVER_PORT`: each connection is one request. For each line on its standard input it prints how many
were asked and how many answers were passed on whole since the last one; it ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress

END = b"data: [DONE]"
counts = {"asked": 0, "answered": 0}


async def pass_on(client: asyncio.StreamReader, to_client: asyncio.StreamWriter, port: int) -> None:
    """One connection, for as long as both its ends are there."""
    counts["asked"] += 1
    try:
        server, to_server = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        to_client.close()
        return
    asking = asyncio.create_task(pump(client, to_server))
    tail = b""
    with suppress(OSError):
        while piece := await server.read(1 << 16):
            to_client.write(piece)
            await to_client.drain()
            tail = (tail + piece)[-64:]
            if END in tail:
                counts["answered"] += 1
                tail = b""
    asking.cancel()
    for end in (to_client, to_server):
        end.close()


async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while piece := await source.read(1 << 16):
            target.write(piece)
            await target.drain()


async def main(port: int, server_port: int) -> None:
    loop = asyncio.get_running_loop()
    async with await asyncio.start_server(lambda r, w: pass_on(r, w, server_port), "127.0.0.1", port):
        while await loop.run_in_executor(None, sys.stdin.readline):
            print(json.dumps(counts), flush=True)
            counts.update(asked=0, answered=0)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))

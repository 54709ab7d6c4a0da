"""Put on PYTHONPATH, this refuses and notes every connection or name look-up beyond the loopback interface, in every process."""

import os
import sys


def _watch(event, arguments):
    if event == "socket.connect":
        address = arguments[1]
        where = address[0] if isinstance(address, tuple) else "127.0.0.1"  # a path: a socket file
    elif event == "socket.getaddrinfo":
        where = arguments[0] or "localhost"
    else:
        return
    where = where.decode() if isinstance(where, bytes) else str(where)
    if where.startswith("127.") or where in ("localhost", "::1", "0.0.0.0", "::"):
        return
    with open(os.environ["QLAB_AUDIT_LOG"], "a") as log:
        log.write(f"{event} {where} {sys.argv[:3]}\n")
    raise OSError(f"refused by the test: {event} {where}")


if "QLAB_AUDIT_LOG" in os.environ:
    sys.addaudithook(_watch)

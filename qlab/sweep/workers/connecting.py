"""From an address to a Ray cluster that runs jobs, or to one message that says why there is none."""

from __future__ import annotations

import importlib.util
import re
import signal
import socket
from pathlib import Path

from qlab.support.errors import UserError
from qlab.sweep.workers.cluster import Cluster

AUTO, ADDRESS = "auto", re.compile(r"([\w.-]+|\[[0-9a-fA-F:]+\]):(\d{1,5})")
ANSWERS = 10.0  # seconds that a cluster has to answer


def connect(address: str, logs: Path, lock: Path, threads: int, device: str) -> Cluster:
    """The Ray cluster at `address`, HOST:PORT, or "auto" for the one that this machine is part of.

    Raises:
        UserError: Ray is not installed, no cluster answers there, or no machine of it can take a job.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("Ray is not installed in this environment: 'make cluster' installs it; without --ray the jobs run on this machine")
    match = ADDRESS.fullmatch(address)
    if address != AUTO and not match:
        raise UserError(f"--ray {address[:60]!r}: expected auto, or the HOST:PORT that 'ray start --head' prints")
    import ray

    try:
        if match:  # Ray itself would try for minutes, and then end this process
            socket.create_connection((match[1].strip("[]"), int(match[2])), ANSWERS).close()
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(address=address, log_to_driver=False, configure_logging=False, logging_level="ERROR")
        signal.signal(signal.SIGTERM, handler)  # Ray sets its own, which ends this process before its jobs have ended
    except (OSError, OverflowError, RuntimeError, ValueError, ray.exceptions.RayError) as error:  # the last: a token that is wrong
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(
            f"no Ray cluster at {address} that this environment can join ({said}): 'ray start --head' starts one, and "
            "'ray start --address=HOST:PORT' on each further machine, with the same versions of Ray and Python; one that asks for a token "
            "wants RAY_AUTH_MODE=token here too, and the token in ~/.ray/auth_token"
        ) from error
    found = Cluster(logs, lock, threads, 0 if device == "cpu" else 1, own=ray.get_runtime_context().get_node_id())
    if not found.nodes:
        found.close()
        raise UserError(
            f"no machine of the Ray cluster has {found.needs} for a job: set 'threads' in the file's limits lower, or add machines"
        )
    return found

"""Joins the processes of a run, which JAX then treats as one machine with all their devices.

They find each other by what the user gives, by the variables that torchrun sets, or by JAX's own
detection of SLURM, Open MPI and Kubernetes.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import Any

import jax

from lcjax.config.parallel.cluster import Cluster
from lcjax.errors import InputError

TIMEOUT_S = 60
"""Seconds to wait for the coordinator, and for all processes to arrive."""

HEARTBEAT_S = 20
"""Seconds without a sign of life after which a process counts as dead, and the others end."""

SHUTDOWN_S = 15
"""Seconds that a process waits for the others before it ends."""

# A launcher sets one of these in every process that it starts; jax.distributed then knows the rest.
_DETECTED_BY_JAX = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_OF_JAX = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def meeting(cluster: Cluster) -> dict[str, Any] | None:
    """The arguments of `jax.distributed.initialize` for this process; None if it is alone."""
    found = _arguments(cluster, os.environ)
    return None if found is None or found.get("num_processes") == 1 else found


def unmet(arguments: dict[str, Any]) -> str:
    """The message if the processes do not find each other, for which JAX itself ends a process."""
    where = arguments.get("coordinator_address", "the coordinator")
    return (
        f"the processes of the run did not meet at {where} within {TIMEOUT_S} s; start every one of them, with the "
        "same address, and with the numbers 0, 1, 2, ..., each once"
    )


def join(arguments: dict[str, Any]) -> None:
    """Connects this process with the others. Call it before JAX starts its devices.

    If another process is missing, JAX ends this one after `TIMEOUT_S` seconds.

    Raises:
      InputError: the coordinator does not answer, or this process is to be the coordinator and its
        port is in use.
    """
    if arguments.get("process_id"):
        _wait_for(arguments["coordinator_address"], arguments)
    elif "process_id" in arguments:
        _require_free_port(arguments["coordinator_address"])
    jax.distributed.initialize(
        **arguments,
        initialization_timeout=TIMEOUT_S,
        heartbeat_timeout_seconds=HEARTBEAT_S,
        shutdown_timeout_seconds=SHUTDOWN_S,
    )


def _wait_for(address: str, arguments: dict[str, Any]) -> None:
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise InputError(f"{unmet(arguments)} ({error.strerror or error})") from None
        time.sleep(0.2)


def _require_free_port(address: str) -> None:
    """Two processes can have the number 0 by mistake. JAX lets both listen, and both would wait."""
    with socket.socket() as listener:
        # Also right after a former run, whose connections the system still remembers.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", int(address.rpartition(":")[2])))
        except OSError as error:
            raise InputError(
                f"process 0 cannot listen at {address} ({error.strerror or error}); give every process its own number, "
                "or choose another port"
            ) from None


def _arguments(cluster: Cluster, variables: Mapping[str, str]) -> dict[str, Any] | None:
    if cluster.coordinator is not None:
        return {
            "coordinator_address": cluster.coordinator,
            "num_processes": cluster.num_processes,
            "process_id": cluster.process_id,
        }
    if all(name in variables for name in _OF_JAX):
        coordinator, count, process = (variables[name] for name in _OF_JAX)
        return {"coordinator_address": coordinator, "num_processes": int(count), "process_id": int(process)}
    if int(variables.get("WORLD_SIZE", 1)) > 1 and "MASTER_ADDR" in variables:
        return _of_torchrun(variables)
    if any(int(variables.get(name, 1)) > 1 for name in _DETECTED_BY_JAX):
        return {}
    return None


def _of_torchrun(variables: Mapping[str, str]) -> dict[str, Any]:
    """torchrun starts one process for each GPU, and listens at MASTER_PORT itself."""
    return {
        "coordinator_address": f"{variables['MASTER_ADDR']}:{int(variables['MASTER_PORT']) + 1}",
        "num_processes": int(variables["WORLD_SIZE"]),
        "process_id": int(variables["RANK"]),
        "local_device_ids": [int(variables["LOCAL_RANK"])],
    }

"""Rungs of an exploration (levels at a width) side by side: processes of this machine, or a Ray cluster.

What a worker finds is handed to the one process that writes the file, candidate by candidate.
"""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from fxfactor.errors import FxfactorError, PreconditionError
from fxfactor.exploration.rung import RungWalk, Setup
from fxfactor.exploration.state_file import Candidate

if TYPE_CHECKING:
    from fxfactor.exploration.rung import Progressed, Task


def run_local(setup: Setup, tasks: list[Task], workers: int) -> Iterator[Progressed]:
    """Walk the rungs in `workers` processes, each with one thread. Raises FxfactorError where a process dies."""
    context = multiprocessing.get_context("spawn")
    data, left = _pickled(setup), list(tasks)
    processes: dict[Any, Any] = {}
    try:
        for _ in range(min(workers, len(tasks))):
            mine, theirs = context.Pipe()
            # the data comes later: a process that dies while it starts leaves `start` waiting for more than a pipe holds
            process = context.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
            theirs.close()  # so that a worker that dies ends the connection, whatever it was about to say
            processes[mine] = process
        for pipe, process in processes.items():
            _send(pipe, process, data)
        working = set(processes)
        while working:
            for ready in wait(list(working)):
                connection: Any = ready
                message = _receive(connection, processes[connection])
                if message is not None:
                    yield message
                elif left:
                    _send(connection, processes[connection], pickle.dumps(left.pop(0)))
                else:
                    _send(connection, processes[connection], pickle.dumps(None))
                    working.remove(connection)
    finally:
        for connection, process in processes.items():
            process.terminate()
            process.join()
            connection.close()


def _send(connection: Any, process: Any, data: bytes) -> None:
    """Hand something pickled to a worker."""
    try:
        connection.send_bytes(data)
    except (BrokenPipeError, ConnectionResetError):
        raise _ended(process) from None


def _ended(process: Any) -> FxfactorError:
    process.join()
    return FxfactorError(
        f"a worker process ended with exit code {process.exitcode} (-9: killed, often for memory); every candidate so "
        "far is kept: call explore again with the same arguments, with fewer workers perhaps"
    )


def _receive(connection: Any, process: Any) -> Any:
    """A step that a worker has to report, or None where it asks for a rung."""
    try:
        message = connection.recv()
    except (EOFError, ConnectionResetError):
        raise _ended(process) from None
    if isinstance(message, BaseException):
        raise message
    return message


def _work(connection: Any) -> None:
    """What a process does: take the setup, then ask for rungs until there is none left."""
    import torch

    torch.set_num_threads(1)
    try:
        walk = RungWalk(pickle.loads(connection.recv_bytes()))
        connection.send(None)
        for task in iter(connection.recv, None):
            for step in _steps(walk, task):
                connection.send(step)
            connection.send(None)
    except Exception as error:  # handed over, so that it is raised where explore was called
        connection.send(error)


def _steps(walk: RungWalk, task: Task) -> Iterator[tuple[str, Candidate | None, bytes | None]]:
    walk.previous = None  # which rung was here before is chance
    for candidate, changed in walk.rung(task.rung, task.bits, task.snapshot):
        yield task.rung.name, candidate, changed


def _pickled(setup: Setup) -> bytes:
    try:
        import cloudpickle as pickler
    except ModuleNotFoundError:
        pickler = pickle
    try:
        return bytes(pickler.dumps(setup))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise PreconditionError(
            f"workers need copies of the model, the data, the metric and the fine-tuning, and one of them cannot be "
            f"pickled: {error}; define it at the top of a module, or use workers=1"
        ) from error


def run_ray(setup: Setup, tasks: list[Task], workers: int) -> Iterator[Progressed]:
    """Walk the rungs on a Ray cluster, `workers` of them at a time: the one that RAY_ADDRESS names, or a local one."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise PreconditionError('engine="ray" needs Ray, which is not installed; run pip install ray') from error
    if not ray.is_initialized():
        ray.init(num_cpus=None, include_dashboard=False, log_to_driver=False)
    data = ray.put(_pickled(setup))

    def walk_rung(pickled: bytes, task: Task) -> Iterator[Any]:
        import torch

        torch.set_num_threads(1)
        yield from _steps(RungWalk(pickle.loads(pickled)), task)

    remote = ray.remote(num_cpus=1, max_retries=0)(walk_rung)
    left = list(tasks)
    running: dict[Any, Any] = {}
    while left or running:
        while left and len(running) < workers:
            stream = remote.options(num_returns="streaming").remote(data, left.pop(0))
            running[stream] = True
        ready, _ = ray.wait(list(running), num_returns=1, timeout=None)
        for stream in ready:
            try:
                yield ray.get(next(stream))
            except StopIteration:
                del running[stream]
            except ray.exceptions.RayError as error:
                raise FxfactorError(
                    f"a Ray worker failed: {str(error).splitlines()[-1]}; every candidate so far is kept: call explore "
                    "again with the same arguments"
                ) from error

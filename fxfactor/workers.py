"""Tasks side by side: in processes of this machine, or on a Ray cluster; one code path for whoever has tasks.

What is common to all tasks goes to every worker once. What a worker finds comes back step by step to the one process that
writes it down.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Literal, Protocol, get_args

from fxfactor.errors import FxfactorError, PreconditionError
from fxfactor.progress import hidden

Engine = Literal["local", "ray"]
"""Processes of this machine, or a Ray cluster: the one that RAY_ADDRESS names, or a local one."""


class Worker(Protocol):
    """Does one task after the other."""

    def steps(self, task: Any) -> Iterator[Any]:
        """What comes of a task, as it comes; it must not depend on the tasks before it."""


class Common(Protocol):
    """What all tasks have in common; can be pickled."""

    def worker(self) -> Worker:
        """A worker that is ready to begin, in the process where it is to work."""


@dataclass(frozen=True)
class Crew:
    """Who does the tasks: this process, as many processes of this machine, or a Ray cluster."""

    workers: int = 1
    engine: Engine = "local"

    def __post_init__(self) -> None:
        require_workers(self.workers, self.engine)

    def steps(self, common: Common, tasks: Sequence[Any], caller: str) -> Iterator[Any]:
        """The steps of all tasks; those of one task in their order, the tasks in any. `caller`: see `side_by_side`."""
        if self.engine == "ray" or (self.workers > 1 and len(tasks) > 1):
            yield from side_by_side(common, tasks, self.workers, self.engine, caller)
            return
        worker = common.worker()
        for task in tasks:
            yield from worker.steps(task)


def require_workers(workers: int, engine: str) -> None:
    """Raise PreconditionError on values out of range."""
    if workers < 1:
        raise PreconditionError(f"workers must be at least 1, found {workers!r}")
    if engine not in get_args(Engine):
        raise PreconditionError(f'engine must be "local" or "ray", found {engine!r}')


ALONE = Crew()
"""This process."""


def side_by_side(common: Common, tasks: Sequence[Any], workers: int, engine: Engine, caller: str) -> Iterator[Any]:
    """The steps of all tasks, those of one task in their order, with `workers` tasks at a time and a thread for each.

    `caller`: whom to call again where a worker dies. Raises what a worker raises, FxfactorError where one dies, and
    PreconditionError where `common` cannot be pickled and where Ray is asked for and not there.
    """
    run = _on_ray if engine == "ray" else _locally
    yield from run(
        common, list(tasks), workers, f"what was found so far is kept: call {caller} again with the same arguments"
    )


# ---- this machine ----


def _locally(common: Common, left: list[Any], workers: int, remedy: str) -> Iterator[Any]:
    context = multiprocessing.get_context("spawn")
    data = _pickled(common)
    processes: dict[Any, Any] = {}
    try:
        for _ in range(min(workers, len(left))):
            mine, theirs = context.Pipe()
            # the data comes later: a process that dies while it starts leaves `start` waiting for more than a pipe holds
            process = context.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
            theirs.close()  # so that a worker that dies ends the connection, whatever it was about to say
            processes[mine] = process
        for pipe, process in processes.items():
            _send(pipe, process, data, remedy)
        working = set(processes)
        while working:
            for ready in wait(list(working)):
                connection: Any = ready
                message = _receive(connection, processes[connection], remedy)
                if message is not None:
                    yield message
                elif left:
                    _send(connection, processes[connection], pickle.dumps(left.pop(0)), remedy)
                else:
                    _send(connection, processes[connection], pickle.dumps(None), remedy)
                    working.remove(connection)
    finally:
        for connection, process in processes.items():
            process.terminate()
            process.join()
            connection.close()


def _send(connection: Any, process: Any, data: bytes, remedy: str) -> None:
    """Hand something pickled to a worker."""
    try:
        connection.send_bytes(data)
    except (BrokenPipeError, ConnectionResetError):
        raise _ended(process, remedy) from None


def _receive(connection: Any, process: Any, remedy: str) -> Any:
    """A step that a worker has to report, or None where it asks for a task."""
    try:
        message = connection.recv()
    except (EOFError, ConnectionResetError):
        raise _ended(process, remedy) from None
    if isinstance(message, BaseException):
        raise message
    return message


def _ended(process: Any, remedy: str) -> FxfactorError:
    process.join()
    return FxfactorError(
        f"a worker process ended with exit code {process.exitcode} (-9: killed, often for memory); {remedy}, with fewer "
        "workers perhaps"
    )


def _work(connection: Any) -> None:
    """What a process does: take what is common, then ask for tasks until there is none left."""
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with hidden():
            worker = pickle.loads(connection.recv_bytes()).worker()
            connection.send(None)
            for task in iter(connection.recv, None):
                for step in worker.steps(task):
                    connection.send(step)
                connection.send(None)
    except Exception as error:  # handed over, so that it is raised where the tasks come from
        connection.send(error)


def _end_with_parent() -> None:
    """A worker whose parent was killed would train on for nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _pickled(common: Common) -> bytes:
    try:
        import cloudpickle as pickler
    except ModuleNotFoundError:
        pickler = pickle
    try:
        return bytes(pickler.dumps(common))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise PreconditionError(
            f"workers need copies of the model, the data, the metric and the fine-tuning, and one of them cannot be "
            f"pickled: {error}; define it at the top of a module, or use workers=1"
        ) from error


# ---- Ray ----


def _on_ray(common: Common, left: list[Any], workers: int, remedy: str) -> Iterator[Any]:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise PreconditionError(
            'engine="ray" needs Ray, which is not installed; run pip install fxfactor[ray]'
        ) from error
    if not ray.is_initialized():
        ray.init(num_cpus=None, include_dashboard=False, log_to_driver=False)
    data = ray.put(_pickled(common))

    def do(pickled: bytes, task: Any) -> Iterator[Any]:
        import torch

        torch.set_num_threads(1)
        with hidden():
            yield from pickle.loads(pickled).worker().steps(task)

    remote: Any = ray.remote(num_cpus=1, max_retries=0)(do)
    running: dict[Any, Any] = {}
    while left or running:
        while left and len(running) < workers:
            stream: Any = remote.options(num_returns="streaming").remote(data, left.pop(0))
            running[stream] = True
        ready, _ = ray.wait(list(running), num_returns=1, timeout=None)
        for stream in ready:
            try:
                yield ray.get(next(stream))
            except StopIteration:
                del running[stream]
            except ray.exceptions.RayError as error:
                raise FxfactorError(f"a Ray worker failed: {str(error).splitlines()[-1]}; {remedy}") from error

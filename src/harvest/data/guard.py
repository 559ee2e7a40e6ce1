"""Calls that may hang or crash run in a process of their own: what is lost is one call, never the caller.

Decoders are C libraries fed with files from the web. A broken file can end the process that reads it, or keep it
busy for ever. `Guard` forks a child that does the reading, gives it a limit, and forks another when it is gone.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import select
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import Queue
from typing import Any, NoReturn

from harvest.errors import HarvestError

with suppress(ImportError):  # not on Windows
    import resource

_START_S = 10.0  # a child that is not up by then was forked at an unlucky moment
_STARTS = 5
MAX_BYTES = 2**31  # a decoder's memory for pictures of 8K


class Lost(Exception):
    """The call did not come back; its argument is the reason, for reports."""


class Guard:
    """`guard(*args)` is `function(*args)`, computed in a child process that is replaced when it hangs or dies.

    Arguments and results are pickled, so that results are best numpy arrays. The child is forked at the first
    call and sees everything as it was then. It ends with its parent, and is replaced after `max_calls` calls,
    since decoders leak: PyAV's side data keeps 2 kB a clip. HarvestErrors of the function are raised here as they are.

    With `max_bytes` the child may take so much more memory than the parent has, and no more.

    Raises Lost, with the reason, for a call that took longer than `limit_s` or ended its process.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        limit_s: float,
        max_calls: int = 1000,
        max_bytes: int | None = None,
    ) -> None:
        self.function, self.limit_s, self.max_calls, self.max_bytes = function, limit_s, max_calls, max_bytes
        self._child: int | None = None
        self._pipe: Connection | None = None
        self._calls = 0

    def __call__(self, *args: Any) -> Any:
        if self._calls >= self.max_calls:
            self.close()
        if self._pipe is None:
            self.start()
        assert self._pipe is not None
        self._calls += 1
        try:
            self._pipe.send_bytes(pickle.dumps(args, protocol=5))
            if not self._pipe.poll(self.limit_s):
                self._end()
                raise Lost(f"reading took longer than {self.limit_s:g} s")
            value, error = pickle.loads(self._pipe.recv_bytes())
        except (EOFError, ConnectionError):
            raise Lost(_cause_of_death(self._end(), self.limit_s)) from None
        if isinstance(error, HarvestError):
            raise error
        if error is not None:
            raise RuntimeError(f"in the process that reads videos:\n{error}")
        return value

    @property
    def is_running(self) -> bool:
        return self._pipe is not None

    def start(self) -> None:
        """Fork the child now: best done before this process has threads."""
        for _ in range(_STARTS):
            ours, theirs = Pipe()
            parent = os.getpid()
            child = os.fork()
            if child == 0:
                ours.close()
                _serve(self.function, theirs, parent=parent, limit_s=self.limit_s, max_bytes=self.max_bytes)
            theirs.close()
            self._child, self._pipe, self._calls = child, ours, 0
            if ours.poll(_START_S):
                with suppress(EOFError, ConnectionError):
                    ours.recv_bytes()
                    return
            self._end()
        raise HarvestError(f"the process that reads videos did not start in {_STARTS} tries")

    def close(self) -> None:
        if self._pipe is not None:
            self._end()

    def _end(self) -> int | None:
        """Kill the child, if it still is; how it ended, None if it cannot be killed (it waits for a dead disk)."""
        assert self._child is not None and self._pipe is not None
        child, self._child = self._child, None
        pipe, self._pipe = self._pipe, None
        status = None
        with suppress(ChildProcessError):  # somebody else collected it: its number may be another's by now
            status = _wait(child, 0.2)  # its pipe closes a moment before it is gone
            if status is None:
                os.kill(child, signal.SIGKILL)
                status = _wait(child, 2.0)
        pipe.close()
        return status


def _wait(child: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        if time.monotonic() >= end:
            return None
        select.select([], [], [], 0.005)


def _cause_of_death(status: int | None, limit_s: float) -> str:
    if status is None:
        return "the decoder's process is gone"
    if not os.WIFSIGNALED(status):
        return f"the decoder ended its process (exit code {os.WEXITSTATUS(status)})"
    number = os.WTERMSIG(status)
    if number == signal.SIGALRM:
        return f"reading took longer than {limit_s:g} s"
    name = signal.Signals(number).name if number in signal.Signals.__members__.values() else str(number)
    return f"the decoder crashed ({name})" + ("; out of memory?" if number == signal.SIGKILL else "")


def _serve(
    function: Callable[..., Any], pipe: Connection, *, parent: int, limit_s: float, max_bytes: int | None
) -> NoReturn:
    """The child: one answer a question, until its parent is gone."""
    code = 1
    try:
        faulthandler.disable()  # a crash is told in the report
        # Ctrl-C, and SIGTERM to a whole process group, are for the training process.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        # The threads that the parent computes with are not forked: they would be waited for.
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        if max_bytes is not None and sys.platform == "linux":
            with open("/proc/self/statm") as file:
                most = int(file.read().split()[0]) * resource.getpagesize() + max_bytes
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        pipe.send_bytes(b"here")
        while True:
            while not pipe.poll(5.0):
                if os.getppid() != parent:
                    os._exit(0)
            args = pickle.loads(pipe.recv_bytes())
            # Should the parent be gone when a decoder hangs, the child ends itself.
            signal.setitimer(signal.ITIMER_REAL, limit_s + 5)
            try:
                answer = pickle.dumps((function(*args), None), protocol=5)
            except HarvestError as error:
                answer = pickle.dumps((None, error), protocol=5)
            except (EOFError, ConnectionError):
                raise
            except Exception:
                answer = pickle.dumps((None, traceback.format_exc()), protocol=5)
            signal.setitimer(signal.ITIMER_REAL, 0)
            pipe.send_bytes(answer)
    except (EOFError, ConnectionError):
        code = 0
    finally:
        os._exit(code)  # never back into the parent's stack, nor its exit handlers


def guarded_map(
    function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], *, workers: int, limit_s: float
) -> Iterator[Any]:
    """`function(*args)` for each of `arguments`, in their order, on `workers` guarded processes.

    In place of a call that was lost, or raised a HarvestError, comes that error.
    """
    guards: Queue[Guard] = Queue()
    for _ in range(max(1, workers)):
        guard = Guard(function, limit_s=limit_s)
        guard.start()
        guards.put(guard)

    def call(args: tuple[Any, ...]) -> Any:
        guard = guards.get()
        try:
            return guard(*args)
        except (Lost, HarvestError) as error:
            return error
        finally:
            guards.put(guard)

    ahead: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            for args in arguments:
                ahead.append(pool.submit(call, args))
                if len(ahead) > 4 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
    while not guards.empty():
        guards.get().close()

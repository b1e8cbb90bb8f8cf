"""Which node reaches which, tried before any GPU waits for another.

Ranks meet in the same way later: rank 0 listens on one of a few ports that follow from the job, the others call it
there, and then all connect to all on ports that the kernel chooses. So every node calls the head node, which tells all
of them where the others listen, as it saw them; then each calls each. No name but the head node's has to be known.

On the wire are single lines of JSON. A visitor of the head node says {job, node, port}; the head node answers {job} at
once (another program on that port would not), and {nodes: {name: [address, port]}} when all have called or the time is
up; the visitor says {done} after its calls, and the head node hangs up when all have said so: until then every node
answers the others.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

from distill_engine.cluster.facts import ClusterFacts

MEETING_SECONDS = 300.0  # until the last node has started its Python: a slow node, or a busy file system, is no fault
SAID_AFTER_SECONDS = 30.0  # who is waited for is told, then each time that twice as long has passed
CALL_SECONDS = 5.0
_PAUSE_SECONDS = 0.2
_CALLERS = 32
_LONGEST_LINE, _CHUNK = 2**20, 2**16

Connect = Callable[[tuple[str, int], float], socket.socket]


def unreached_nodes(
    facts: ClusterFacts,
    node: str,
    asked: Sequence[str],
    seconds: float = MEETING_SECONDS,
    connect: Connect = socket.create_connection,
    tell: Callable[[Sequence[str], float], None] | None = None,
) -> dict[str, str]:
    """Names of the nodes that this one cannot connect to, each with the reason; collective, one process on each node.

    node   name of this node
    asked  those of all, the one with rank 0 first
    tell   on that one, hears now and then which nodes have not called yet, and for how many seconds

    A node that nobody hears of is missing from the answer: it could not call the head node, and says so itself. Takes
    at most about twice `seconds`.
    """
    if facts.world_size == 1:
        return {}
    deadline = time.monotonic() + seconds
    with socket.create_server(("", 0), backlog=facts.world_size) as listener:
        threading.Thread(target=_answer_calls, args=(listener, facts.job), name="called", daemon=True).start()
        me = {"job": facts.job, "node": node, "port": listener.getsockname()[1]}
        if facts.rank == 0:
            return _host(facts, me, _Waiting(asked, deadline, tell), connect)
        return _visit(facts, me, asked[0], seconds, connect)


class _Waiting:
    """The head node's patience: until when it waits, and when it says for whom."""

    def __init__(
        self, asked: Sequence[str], deadline: float, tell: Callable[[Sequence[str], float], None] | None
    ) -> None:
        self._asked, self._deadline, self._tell = asked, deadline, tell
        self._begun = time.monotonic()
        self._next = SAID_AFTER_SECONDS

    def left(self, here: Collection[str]) -> float:
        """Seconds to wait now, 0 when the time is up; tells who is missing when it is time for that."""
        now = time.monotonic()
        if self._tell is not None and now - self._begun >= self._next:
            self._next *= 2
            self._tell([name for name in self._asked if name not in here], now - self._begun)
        return max(0.0, min(self._deadline, self._begun + self._next) - now) if now < self._deadline else 0.0


def _host(facts: ClusterFacts, me: dict[str, Any], waiting: _Waiting, connect: Connect) -> dict[str, str]:
    server = _first_free(facts)
    if server is None:
        tried = ", ".join(map(str, facts.ports))
        return {me["node"]: f"no port is free here for the others to call; tried {tried}. Set MASTER_PORT"}
    nodes: dict[str, tuple[str, int]] = {}
    with server, ExitStack() as visitors:
        lines: list[socket.socket] = []
        while len(nodes) < facts.world_size - 1 and (left := waiting.left({me["node"], *nodes})) > 0:
            server.settimeout(left)
            with suppress(OSError, ValueError, KeyError, TypeError):
                line, address = server.accept()
                said = _read(line, CALL_SECONDS)
                if said.get("job") == facts.job:
                    _write(line, {"job": facts.job})
                    lines.append(visitors.enter_context(line))
                    nodes[str(said["node"])] = (address[0], int(said["port"]))
                else:
                    line.close()
        for line in lines:
            with suppress(OSError):
                _write(line, {"nodes": nodes})
        unreached = _call_all(nodes, facts.job, connect)
        end = time.monotonic() + CALL_SECONDS * (2 + len(nodes) / _CALLERS)
        for line in lines:
            with suppress(OSError, ValueError):
                _read(line, end - time.monotonic())
    return unreached


def _visit(facts: ClusterFacts, me: dict[str, Any], head: str, seconds: float, connect: Connect) -> dict[str, str]:
    problem, deadline = "the time was up", time.monotonic() + seconds
    while True:
        for port in facts.ports:
            try:
                with connect((facts.master_addr, port), CALL_SECONDS) as line:
                    _write(line, me)
                    if _read(line, CALL_SECONDS).get("job") != facts.job:
                        raise ValueError("another program")
                    nodes = _read(line, seconds + CALL_SECONDS)["nodes"]  # the head node may have begun just now
                    others = {name: tuple(place) for name, place in nodes.items() if name != me["node"]}
                    unreached = _call_all(others, facts.job, connect)
                    _write(line, {"done": True})
                    with suppress(OSError, ValueError):
                        _read(line, CALL_SECONDS * (2 + len(nodes) / _CALLERS))
                    return unreached
            except (OSError, ValueError, KeyError, TypeError) as error:
                why = getattr(error, "strerror", None) or error
                problem = f"{facts.master_addr} port {port}: {why}"
        if time.monotonic() > deadline:
            return {head: problem}
        time.sleep(_PAUSE_SECONDS)


def _call_all(nodes: dict[str, Any], job: str, connect: Connect) -> dict[str, str]:
    def call(name: str) -> str:
        address, port = nodes[name]
        try:
            with connect((address, port), CALL_SECONDS) as line:
                return "" if _read(line, CALL_SECONDS).get("job") == job else f"{address} port {port}: another program"
        except (OSError, ValueError) as error:
            return f"{address} port {port}: {getattr(error, 'strerror', None) or error}"

    with ThreadPoolExecutor(_CALLERS) as pool:
        answers = zip(nodes, pool.map(call, nodes), strict=True)
        return {name: problem for name, problem in answers if problem}


def _answer_calls(listener: socket.socket, job: str) -> None:
    """Say the job's name to whoever calls, until the listener is closed."""
    while True:
        try:
            line, _ = listener.accept()
        except OSError:
            return
        with line, suppress(OSError):
            _write(line, {"job": job})


def _first_free(facts: ClusterFacts) -> socket.socket | None:
    for port in facts.ports:
        with suppress(OSError):
            return socket.create_server(("", port), backlog=facts.world_size)
    return None


def _write(line: socket.socket, content: dict[str, Any]) -> None:
    line.sendall(json.dumps(content).encode() + b"\n")


def _read(line: socket.socket, seconds: float) -> dict[str, Any]:
    """One line. Raises OSError when nothing comes in time or the other side hangs up, ValueError for no JSON object."""
    end = time.monotonic() + seconds
    received = b""
    while not received.endswith(b"\n"):
        line.settimeout(max(0.01, end - time.monotonic()))
        # no byte beyond this line is taken: the next line may be there already
        waiting = line.recv(_CHUNK, socket.MSG_PEEK)
        part = line.recv(waiting.find(b"\n") + 1 or len(waiting))
        received += part
        if not part or len(received) > _LONGEST_LINE:
            raise OSError(None, "it hung up")
    content = json.loads(received)
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content

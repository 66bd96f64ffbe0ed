"""The channel between a rank's process and its shell: lines of JSON over a socket pair."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

from tuner.messages import Message, encode

__all__ = ["STOP", "PipeChannel", "answer_line"]

STOP = b'{"stop": true}\n'
"""What the shell writes when the rank is asked to stop."""


def answer_line(question: int, value: Any, error: str) -> bytes:
    """An answer as the shell writes it to its child."""
    return json.dumps({"id": question, "value": value, "error": error}).encode() + b"\n"


class PipeChannel:
    """The rank's end; see :class:`tuner.channel.Channel`. Threads of an objective may share it."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sending = threading.Lock()
        self._reading = threading.Lock()  # held from a question to its answer
        self._buffer = b""
        self._questions = 0
        self._stop = False
        self._answers: dict[int, dict[str, Any]] = {}

    def send(self, message: Message) -> None:
        line = encode(message).encode() + b"\n"
        with self._sending:
            self._socket.sendall(line)

    def ask(self, kind: type[Message], **fields: Any) -> Any:
        question: Any = kind  # every Question has an id
        with self._reading:
            self._questions += 1
            number = self._questions
            self.send(question(id=number, **fields))
            while number not in self._answers:
                self._read(block=True)
            answer = self._answers.pop(number)
        if answer["error"]:
            raise RuntimeError(answer["error"])
        return answer["value"]

    def stop_requested(self) -> bool:
        if not self._stop and self._reading.acquire(blocking=False):  # else another thread reads
            try:
                self._read(block=False)
            finally:
                self._reading.release()
        return self._stop

    def _read(self, *, block: bool) -> None:
        try:
            data = self._socket.recv(65536, 0 if block else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionError("the shell of this rank is gone")
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "stop" in message:
                self._stop = True
            else:
                self._answers[message["id"]] = message

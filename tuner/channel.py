"""The way from a rank to the driver, as the rank sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from tuner.messages import Message

__all__ = ["Channel", "Place"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """A rank's place among the processes of its trial.

    Attributes:
        rank: 0 to ``world_size`` - 1.
        local_rank: the rank's index among those on its node.
        host, port: where rank 0's TCPStore listens; "" and 0 with one rank.
        listen_fd: on rank 0, the socket that is already bound to ``port``; else -1.
        one_node: all ranks run on one node, so that the loopback interface serves gloo.
        devices: physical ids of the GPUs that Ray gave to this rank.
        folder: where the ranks of this node work; "" for where the process is.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    host: str = ""
    port: int = 0
    listen_fd: int = -1
    one_node: bool = True
    devices: tuple[str, ...] = ()
    folder: str = ""


class Channel(Protocol):
    """Carries messages to the driver in order, answers back, and the wish to stop."""

    def send(self, message: Message) -> None:
        """Hand over a message; returns within microseconds and acknowledges nothing."""

    def ask(self, kind: type[Message], **fields: Any) -> Any:
        """Send a question of type ``kind`` (the channel numbers it) and wait for its answer's value.

        Raises:
            RuntimeError: the driver answered with an error; its text is the message.
        """

    def stop_requested(self) -> bool:
        """True from the moment the rank was asked to stop. Never blocks."""

"""What a rank has said, numbered, until the driver says that it is durable."""

from __future__ import annotations

from collections import deque

from tuner.messages import Message, Question, decode

__all__ = ["Outbox"]


class Outbox:
    """The messages of one attempt of one rank. Its owner lets one thread in at a time.

    Attributes:
        last: number of the newest message; 0 before the first.
    """

    def __init__(self) -> None:
        self.last = 0
        self._waiting: deque[tuple[int, str]] = deque()
        self._asked: Question | None = None  # a rank asks one thing at a time
        self._unheard: set[int] = set()  # questions that were answered, and of which no driver knows

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, message: Message | None, line: str) -> None:
        """Number a message; ``line`` is its JSON, from which nobody need make a report again."""
        self.last += 1
        self._waiting.append((self.last, line))
        if isinstance(message, Question):
            self._asked = message

    def forget(self, up_to: int) -> None:
        """Messages up to this number are durable."""
        while self._waiting and self._waiting[0][0] <= up_to:
            self._waiting.popleft()

    def above(self, seen: int) -> tuple[tuple[int, str], ...]:
        """The messages with a higher number, in order."""
        return tuple(one for one in self._waiting if one[0] > seen)

    @property
    def question(self) -> Question | None:
        """What the rank waits for, or None."""
        return self._asked

    def answered(self, question: int, *, by_driver: bool = True) -> bool:
        """The rank gets the answer to a question; False if it has had one, or never asked."""
        if self._asked is None or self._asked.id != question:
            return False
        self._asked = None
        if not by_driver:
            self._unheard.add(question)
        return True

    def drop_answered(self) -> None:
        """For another driver: the one before it answered these questions, and recorded what that took."""
        kept = [(seq, line, decode(line)) for seq, line in self._waiting]
        self._waiting = deque((seq, line) for seq, line, message in kept if self._is_open(message))

    def _is_open(self, message: Message) -> bool:
        return not isinstance(message, Question) or message == self._asked or message.id in self._unheard

"""What was said so far. Knows no terminal and no model."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Turn:
    question: str
    answer: str
    stopped: bool = False
    """Whether the person stopped the answer; what there was of it is kept."""


@dataclass(slots=True)
class Conversation:
    system: str | None = None
    thinking: bool | None = None
    """Whether a model that can do both should think first; None leaves it to the model."""
    turns: list[Turn] = field(default_factory=list)

    def messages(self, question: str) -> list[dict[str, str]]:
        """All of it and one more question, in OpenAI's shape."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": turn.answer})
        return [*messages, {"role": "user", "content": question}]

"""A model of a few honest lines that programs of several calls can ask: its replies are a function of the prompt and the number
of the sample."""

from collections.abc import Callable
from dataclasses import dataclass, field

from minidist.types import Finish, Reply


@dataclass
class Asked:
    """`reply(prompt, sample)` answers; `prompts` are those asked, in their order."""

    reply: Callable[[str, int], str]
    sample: int = 0
    prompts: list[str] = field(default_factory=list)

    async def __call__(self, text: str) -> Reply:
        self.prompts.append(text)
        found = self.reply(text, self.sample)
        return Reply(found, len(found.split()) + 1, Finish.STOP)

"""The flags of `lcjax generate`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from lcjax.cli.model_arguments import ModelArguments
from lcjax.errors import InputError
from lcjax.generate.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class GenerateArguments(ModelArguments):
    """Continue a text, or hold a conversation, with a model and an optional adapter.

    Without --prompt and --prompt-file it is a conversation: one turn per line of standard input.
    The GPUs of the machine share the keys and values of the text. To use only some of them, set
    CUDA_VISIBLE_DEVICES.
    Examples:

      lcjax generate --model DIR_OR_HUB_ID --prompt "The capital of France is"
      lcjax generate --model DIR_OR_HUB_ID --adapter runs/x/adapter --prompt-file book.txt
      lcjax generate --model DIR_OR_HUB_ID
    """

    prompt: str | None = None
    """The text to continue."""
    prompt_file: Path | None = None
    """A file with the text to continue; - is standard input."""
    chat: bool = False
    """Put the prompt into the tokenizer's chat template, as the user's turn."""
    system: str | None = None
    """The system message that begins the chat; if not given, the template's own."""
    max_new_tokens: int = 256
    """The most tokens to generate; an end-of-sequence token ends the text earlier."""
    temperature: float = 0.0
    """0 selects the most likely token each time; higher values sample more evenly."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens whose probabilities sum to at least this much."""
    seed: int = 0
    """The same seed samples the same tokens."""
    max_seq_length: int | None = None
    """The most tokens of prompt and continuation together.
    If not given, what the prompt needs; in a conversation the trained context, at most 8,192.
    """

    def __post_init__(self):
        super().__post_init__()
        self.sampling()
        if self.prompt is not None and self.prompt_file is not None:
            raise InputError("--prompt and --prompt-file contradict each other; give one")
        if self.prompt == "":
            raise InputError("--prompt is empty; give the text to continue, or omit it for a conversation")
        if self.system is not None and not self.chats:
            raise InputError("--system needs a chat; add --chat, or omit it")
        for name, text in (("--prompt", self.prompt), ("--system", self.system)):
            if text is not None and not _is_unicode(text):
                raise InputError(f"{name} is not UTF-8; give text, or a file with --prompt-file")
        if self.max_new_tokens < 1:
            raise InputError(f"--max-new-tokens {self.max_new_tokens} is out of range; it must be at least 1")
        if self.max_seq_length is not None and self.max_seq_length < 1:
            raise InputError(f"--max-seq-length {self.max_seq_length} is out of range; it must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed {self.seed} is out of range; it must be from 0 to 2^32 - 1")

    @property
    def is_conversation(self) -> bool:
        """Whether turns come from standard input."""
        return self.prompt is None and self.prompt_file is None

    @property
    def chats(self) -> bool:
        """Whether the chat template is applied to the text."""
        return self.chat or self.is_conversation

    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        return Sampling(self.temperature, self.top_p)

    def text(self) -> str:
        """The prompt, from the flag or its file.

        Raises:
          InputError: the file cannot be read, or has no text.
        """
        if self.prompt is not None:
            return self.prompt
        assert self.prompt_file is not None
        try:
            content = sys.stdin.read() if str(self.prompt_file) == "-" else self.prompt_file.read_text("utf-8")
        except OSError as error:
            raise InputError(
                f"--prompt-file {self.prompt_file} cannot be read ({error.strerror}); check the path"
            ) from None
        except UnicodeDecodeError as error:
            raise InputError(
                f"--prompt-file {self.prompt_file} is not UTF-8 (byte {error.start}); give a text file"
            ) from None
        if not content:
            raise InputError(f"--prompt-file {self.prompt_file} is empty; give the text to continue")
        return content


def _is_unicode(text: str) -> bool:
    """Whether the text has no bytes that the shell passed on undecoded."""
    return not any("\ud800" <= character <= "\udfff" for character in text)

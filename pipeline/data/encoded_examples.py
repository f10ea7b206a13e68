"""Examples as token ids: pairs of prompt and completion, of the data set or of a replay file."""
import copy
from typing import Any

import numpy as np

from pipeline.model.padding import IGNORED_LABEL
from pipeline.model.tokenizers import encode_pairs


class EncodedExamples:
    """Token ids of examples, kept in one flat int32 array: 4 bytes a token, whatever their number."""

    def __init__(self, prompts: list[list[int]], completions: list[list[int]]):
        rows = [np.array(p + c, dtype=np.int32) for p, c in zip(prompts, completions, strict=True)]
        self.ids = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int32)
        self.ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        self.prompt_lengths = np.array([len(p) for p in prompts], dtype=np.int64)
        self.lengths = np.diff(self.ends, prepend=0)
        self.marks: frozenset[int] = frozenset()  # tokens that are no labels anywhere

    @classmethod
    def of_rows(cls, rows: list[np.ndarray], prompt_lengths: list[int],
                marks: frozenset[int] = frozenset()) -> "EncodedExamples":
        """Return the examples whose ids are `rows`, the first `prompt_lengths` of each without a label, and
        the tokens `marks` wherever they stand."""
        examples = cls([], [])
        examples.marks = marks
        examples.ids = np.concatenate(rows).astype(np.int32, copy=False) if rows else examples.ids
        examples.ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        examples.prompt_lengths = np.array(prompt_lengths, dtype=np.int64)
        examples.lengths = np.diff(examples.ends, prepend=0)
        return examples

    def followed_by(self, other: "EncodedExamples") -> "EncodedExamples":
        """Return these examples and then the others."""
        joined = EncodedExamples([], [])
        joined.ids = np.concatenate([self.ids, other.ids])
        joined.ends = np.concatenate([self.ends, other.ends + len(self.ids)])
        joined.prompt_lengths = np.concatenate([self.prompt_lengths, other.prompt_lengths])
        joined.lengths = np.concatenate([self.lengths, other.lengths])
        joined.marks = self.marks | other.marks
        return joined

    def with_rows(self, rows: list[np.ndarray], prompt_lengths: list[int]) -> "EncodedExamples":
        """Return the same examples with other ids, the first `prompt_lengths` of each without a label."""
        examples, others = copy.copy(self), self.of_rows(rows, prompt_lengths)
        for name in ("ids", "ends", "prompt_lengths", "lengths"):
            setattr(examples, name, getattr(others, name))
        return examples

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        """Return {"input_ids", "labels"}: the labels of the prompt and of marks are IGNORED_LABEL."""
        end, length, prompt = self.ends[index], self.lengths[index], self.prompt_lengths[index]
        ids = self.ids[end - length:end].tolist()
        labels = ids[prompt:]
        if self.marks:
            labels = [IGNORED_LABEL if token in self.marks else token for token in labels]
        return {"input_ids": ids, "labels": [IGNORED_LABEL] * prompt + labels}


def encode_examples(tokenizer: Any, prompts: list[str], completions: list[str], max_length: int,
                    ends: list[bool] | None = None) -> EncodedExamples:
    """Tokenize prompts with their completions (`encode_pairs`); behind a completion that `ends` something
    (None: every one) comes the end-of-text token.

    An example of more than `max_length` tokens loses the start of its prompt, which is farthest from the
    completion, and then the end of its completion, where nothing ends then.
    """
    prompt_ids, completion_ids = encode_pairs(tokenizer, prompts, completions)
    room = max_length - 2
    completion_ids = [[*ids[:room], *[tokenizer.eos_token_id] * (end and len(ids) <= room)]
                      for ids, end in zip(completion_ids, ends or [True] * len(completions), strict=True)]
    prompt_ids = [p[-max(1, max_length - len(c)):] for p, c in zip(prompt_ids, completion_ids, strict=True)]
    return EncodedExamples(prompt_ids, completion_ids)



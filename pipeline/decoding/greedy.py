"""Batched greedy decoding."""
import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, StoppingCriteria
from transformers.cache_utils import DynamicLayer

from pipeline.decoding.kv_cache import batch_cache, drop_columns, rows_can_leave, select_rows
from pipeline.model.device import MemoryMayEnd, check_tokens_known, max_positions, release_memory, to_device
from pipeline.model.padding import left_padded, masks_without_waiting
from pipeline.model.tokenizers import decode_behind
from pipeline.run.errors import PipelineError
from pipeline.tasks.task import Task

# Columns of a batch's cache in all its rows, prompts and new tokens together: 6 GB with phi-1.5 in 16 bits.
BATCH_TOKENS = 32_768
PREFILL_PADDING = 512  # tokens of padding from which on a prompt begins another part of its batch


@dataclass
class Continuation:
    """What a model writes after one prompt, token by token."""
    tokenizer: Any
    task: Task
    ends: set[int]  # tokens that end a text
    prompt: list[int]  # the tokens before; some of its last are decoded with the first new ones
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    text: str = ""  # of the tokens before `settled`, for the stop rule
    settled: int = 0  # tokens from here on may end within a character
    # tokens from here to `settled` are decoded again, for tokenizers that drop a space at the beginning
    context: int = 0
    taken: int = 0  # characters that `block` has taken

    def __post_init__(self) -> None:
        stop = self.task.stop
        self.block = stop.block() if stop and stop.block else None
        self.closing = tokens_with(self.tokenizer, self.block.LAST) if self.block else frozenset()

    def add(self, token: int) -> bool:
        """Take the next token; return whether this is over: an end token, the stop rule or the budget."""
        if token in self.ends:
            self.ended = True
        else:
            self.tokens.append(token)
            self.ended = self._stops(token)
        return self.ended or len(self.tokens) >= self.task.max_new_tokens

    def _stops(self, token: int) -> bool:
        """Return whether the task's rule finds the end in the text up to `token`, the last."""
        if self.block is None:
            return bool(self.task.stop) and self.task.stop.end(self._text_so_far()) is not None
        if token not in self.closing:  # nothing is decoded until it can matter
            return False
        whole = self._text_so_far().rstrip("\ufffd")  # what may become another character waits
        new, self.taken = whole[self.taken:], max(self.taken, len(whole))
        return self.block.feed(new) is not None

    def _text_so_far(self) -> str:
        """Return the text of all tokens; only the last few are decoded."""
        before = self.tokens[self.context:self.settled] if self.settled else self.prompt
        text = self.text + decode_behind(self.tokenizer, before, self.tokens[self.settled:])
        if not text.endswith("\ufffd"):
            self.text, self.context, self.settled = text, self.settled, len(self.tokens)
        return text

    def result(self) -> dict[str, Any]:
        """Return {"text", "tokens", "ended"}, the text cut where the stop rule ends it."""
        text = decode_behind(self.tokenizer, self.prompt, self.tokens)
        end = self.task.stop.end(text) if self.task.stop else None
        return {"text": text[:end], "tokens": len(self.tokens), "ended": self.ended}


@functools.lru_cache(maxsize=4)
def tokens_with(tokenizer: Any, character: str) -> frozenset[int]:
    """Return the tokens whose text holds an ASCII character, which no token holds a part of."""
    tokens = tokenizer.get_vocab()
    whole = frozenset(number for token, number in tokens.items() if character in token)
    # and that of the byte, if a vocabulary has such tokens
    return whole | {tokens[name] for name in [f"<0x{ord(character):02X}>"] if name in tokens}


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Return the tokens that end a text: the tokenizer's and those of the model's generation settings."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    if not isinstance(configured, list):
        configured = [] if configured is None else [configured]
    return {tokenizer.eos_token_id, *configured}


def masks_of(plain: bool, padded: bool) -> contextlib.AbstractContextManager:
    """Within the block, masks are made without asking the device, where every layer sees every column."""
    return masks_without_waiting(padded) if plain else contextlib.nullcontext()


def prefill(model: Any, prompts: list[list[int]], pad_token: int, columns: int) -> tuple[Any, Any, bool]:
    """Return each prompt's logits (rows, vocabulary), the cache, and whether columns of it can be dropped.

    Prompts come sorted by length.  They pass through the model in parts of like length, so that little of it
    is padding.
    """
    plain = all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)
    parts: list[list[list[int]]] = [[]]
    for prompt in prompts:
        if plain and parts[-1] and len(parts[-1]) * (len(parts[-1][0]) - len(prompt)) > PREFILL_PADDING:
            parts.append([])
        parts[-1].append(prompt)
    logits, caches = [], []
    for part in parts:
        caches.append(DynamicCache(config=model.config))
        with masks_of(plain, padded=len(part[-1]) < len(part[0])):
            logits.append(model(**left_padded(part, pad_token, model.device), past_key_values=caches[-1],
                                use_cache=True, logits_to_keep=1).logits[:, -1])
    return torch.cat(logits), batch_cache(caches, columns), plain


def close_gaps(staying: list[int]) -> list[int]:
    """Return the places of the rows that stay in an order that moves few: those at the end fill the gaps."""
    kept, last = set(staying), (place for place in staying if place >= len(staying))
    return [place if place in kept else next(last) for place in range(len(staying))]


def fit_context(prompts: list[list[int]], model: Any, task: Task) -> list[list[int]]:
    """Return the prompts, each with as many of its last tokens as the context holds before the new ones."""
    context = max_positions(model.config) or sys.maxsize
    if context <= task.max_new_tokens:
        # that flag is for the data set alone
        smaller = "give a smaller --max_new_tokens or " if task.source.language else ""
        raise PipelineError(f"{task.name}: a budget of {task.max_new_tokens} new tokens leaves no room for "
                            f"a prompt in the model's context of {context}; {smaller}use a model with a "
                            "longer context")
    return [prompt[-(context - task.max_new_tokens):] for prompt in prompts]


class EndedRows(StoppingCriteria):
    """Tells `generate` which of its rows are over, token by token."""

    def __init__(self, rows: list[Continuation]):
        self.rows, self.over = rows, [False] * len(rows)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        tokens = input_ids[:, -1].tolist()
        self.over = [over or row.add(token)
                     for over, row, token in zip(self.over, self.rows, tokens, strict=True)]
        return torch.tensor(self.over, device=input_ids.device)


@contextlib.contextmanager
def plain_settings(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Generate with these settings alone: the library would fill in what the model's own have besides (a
    penalty, beams), which our decoding does not have."""
    own, model.generation_config = model.generation_config, settings
    try:
        yield
    finally:
        model.generation_config = own


def generate_by_library(model: Any, prompts: list[list[int]], written: list[Continuation], task: Task,
                        pad_token: int) -> None:
    """Decode greedily with the library's `generate`, for models whose batches cannot be padded or cut.

    Prompts of one length are decoded together, so that nothing is padded.
    """
    ends = sorted(end for end in written[0].ends if end is not None)
    settings = GenerationConfig(do_sample=False, num_beams=1, max_new_tokens=task.max_new_tokens,
                                pad_token_id=pad_token, eos_token_id=ends)
    by_length = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for _, part in itertools.groupby(by_length, key=lambda i: len(prompts[i])):
        part = list(part)
        ids = torch.tensor([prompts[i] for i in part], device=model.device)
        with plain_settings(model, settings):
            model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings,
                           stopping_criteria=[EndedRows([written[i] for i in part])])


def generate_batch(model: Any, tokenizer: Any, prompts: list[list[int]], task: Task,
                   stops: frozenset[int] = frozenset()) -> list[dict[str, Any]]:
    """Decode greedily; return for each prompt {"text", "tokens", "ended"}, the new text only.

    `stops`: tokens that end a text, beside the model's own.

    Prompts are padded on the left, so that every row goes on at the same column.  A row that has ended leaves
    the batch, and its part of the cache with it; so do the columns that are padding in all rows that are
    left.  If the model's cache does not allow that, the library's `generate` decodes.
    """
    prompts, device = fit_context(prompts, model, task), model.device
    check_tokens_known(model, tokenizer, max((max(prompt, default=0) for prompt in prompts), default=0))
    ends = end_tokens(model, tokenizer) | stops
    written = [Continuation(tokenizer, task, ends, prompt) for prompt in prompts]
    if not rows_can_leave(model):
        generate_by_library(model, prompts, written, task, tokenizer.eos_token_id)
        return [row.result() for row in written]
    by_length = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    # what the rows that are in the batch have written, and the lengths of their prompts
    rows, lengths = [written[i] for i in by_length], [len(prompts[i]) for i in by_length]
    longest = lengths[0]
    columns = longest + task.max_new_tokens
    logits, cache, droppable = prefill(model, [prompts[i] for i in by_length],
                                       tokenizer.eos_token_id, columns)
    mask = to_device(torch.tensor([[0] * (longest - length) + [1] * (length + task.max_new_tokens)
                                   for length in lengths]), device)
    positions, begin = to_device(torch.tensor(lengths)[:, None], device), 0
    for column in range(longest + 1, columns + 1):
        # the first of equal ones, as argmax finds; on a CPU in bf16, four times as fast
        chosen = logits.max(dim=-1).indices
        staying = [place for place, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True))
                   if not row.add(token)]
        if not staying:
            break
        if len(staying) < len(rows):
            order = close_gaps(staying)
            rows, lengths = [rows[place] for place in order], [lengths[place] for place in order]
            keep = select_rows(cache, order, device)
            chosen, mask, positions = chosen[keep], mask[keep], positions[keep]
            if droppable:
                begin = longest - max(lengths)
                drop_columns(cache, begin)
        with masks_of(droppable, padded=min(lengths) < longest - begin):
            logits = model(input_ids=chosen[:, None], attention_mask=mask[:, begin:column],
                           position_ids=positions, past_key_values=cache, use_cache=True,
                           logits_to_keep=1).logits[:, -1]
        positions = positions + 1
    return [row.result() for row in written]


def generate_within_memory(generate: Callable[[list[list[int]]], list[dict[str, Any]]],
                           prompts: list[list[int]], at_most: int) -> tuple[list[dict[str, Any]], int]:
    """Return the results of all prompts, `at_most` decoded together, and how many of them the memory holds.

    If it holds fewer, the batch is halved, as often as needed.  Each result also has the number of "rows" of
    its batch.
    """
    results: list[dict[str, Any]] = []
    while len(results) < len(prompts):
        part = prompts[len(results):len(results) + at_most]
        with MemoryMayEnd():
            results += [result | {"rows": len(part)} for result in generate(part)]
            continue
        if len(part) == 1:
            raise PipelineError(f"out of memory with a single prompt of {len(part[0])} tokens; "
                                "free memory, give a smaller --max_new_tokens or a --precision of "
                                "16 bits, or use a smaller model")
        at_most = (len(part) + 1) // 2
        release_memory()
        print(f"out of memory with {len(part)} prompts at once; going on with {at_most}", file=sys.stderr)
    return results, at_most


def plan_batches(lengths: list[int], batch_size: int, new_tokens: int) -> list[list[int]]:
    """Return the examples in batches of like length, the longest first: what does not fit shows at once.

    A batch has at most `batch_size` rows and BATCH_TOKENS tokens.  The plan depends on nothing else: a rerun
    repeats it.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fits = batches and (len(batches[-1]) + 1) * (lengths[batches[-1][0]] + new_tokens) <= BATCH_TOKENS
        if not fits or len(batches[-1]) == batch_size:
            batches.append([])
        batches[-1].append(i)
    return batches

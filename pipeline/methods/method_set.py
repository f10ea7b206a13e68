"""The set of Kotlin methods, the counterpart of CodeXGLUE's in Python: the body, given documentation and
signature."""
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from pipeline.data.datasets import draw, load_files, load_methods
from pipeline.methods.block_end import BlockEnd, block_end
from pipeline.prompts.contexts import FileTexts
from pipeline.prompts.prompter import CHARACTERS_KEPT, Place, PromptTokens
from pipeline.run.errors import PipelineError
from pipeline.tasks.codexglue import CODEXGLUE_MAX_NEW_TOKENS
from pipeline.tasks.task import (
    Cursor,
    DataSource,
    Example,
    StopRule,
    Task,
    first_line,
    fold_white_space,
    show_prompts,
)

# after the name of the set, the part of it whose methods have documentation
WITH_DOCUMENTATION = {"Kotlin": "with KDoc", "Java": "with Javadoc"}
FEWEST_DOCUMENTED = 10  # fewer give no meaningful score
STOP_FORMAT = "2"  # of the stop rule: predictions made under another one are not reused


def place_of(row: dict[str, Any], text: str) -> tuple[int, int] | None:
    """Return the offsets in its file's text of a method's documentation, and of its body, after the opening
    brace; None if the file does not hold the method."""
    start, opened = row["start"], row["start"] + len(row["signature"])
    if text[start:opened + len(row["body"])] != row["signature"] + row["body"]:
        return None
    head = text[:start].rstrip()
    if not row["docstring"]:
        return start, opened
    return (len(head) - len(row["docstring"]), opened) if head.endswith(row["docstring"]) else None


def methods_task(dataset: str, sample: int, seed: int, max_new_tokens: int = 0, context_tokens: int = 0,
                 tokenizer: Any = None) -> Task | None:
    """Return the task of the methods of the data set's test split, or None, with a note, if it has none.

    The prompt is at most so many tokens of the file before the method, in whole lines (`tokenizer` counts
    those that reports show), then its documentation and its signature, up to the opening brace; the
    completion is the rest, up to the closing brace.  `max_new_tokens` 0: as for CodeXGLUE.
    """
    methods, files = load_methods(dataset, "test"), load_files(dataset, ("test",))
    if methods is None or files is None:
        print(f"note: --dataset {dataset}: holds no methods of its test split; they are left out "
              "(preprocess_data.py writes them for languages with a grammar)", file=sys.stderr)
        return None
    chosen, texts = draw(len(methods), sample, seed), FileTexts(files["test"])
    examples, documented = [], []
    for number, row in zip(chosen, methods.select(chosen), strict=True):
        text = texts.text(row["source_line"]) or ""
        if (place := place_of(row, text)) is None:
            raise PipelineError(f"--dataset {dataset}: method {number} of its test split is not in its "
                                "file; run preprocess_data.py again")
        examples.append(example_of(str(number), row, text, place, context_tokens))
        documented.append(bool(row["docstring"]))
    language = texts.language()
    name, dataset_name = f"{language} methods", Path(dataset).name if Path(dataset).is_dir() else dataset
    task = Task(name, examples, max_new_tokens or CODEXGLUE_MAX_NEW_TOKENS, fold_white_space,
                StopRule(block_end, BlockEnd), settings_of(examples, context_tokens),
                DataSource(dataset_name, language, texts), PromptTokens(context_tokens),
                parts=documented_part(name, language, documented), methods=True)
    show_prompts(task, tokenizer)
    return task


def example_of(number: str, row: dict[str, Any], text: str, place: tuple[int, int],
               context_tokens: int) -> Example:
    """Return the example of a method that begins and opens at `place` of its file's `text`; without context,
    only the indentation of its first line is kept of the text before it."""
    first, opened = place
    margin = text[text.rfind("\n", 0, first) + 1:first]
    before = text[:first][-CHARACTERS_KEPT * context_tokens:] if context_tokens else \
        margin if margin.isspace() else ""
    return Example(number, before + text[first:opened], fold_white_space(row["body"]),
                   first_line(row["body"], fold_white_space), row["source_line"], row["body"],
                   place=Place(before, head=text[first:opened]), chunk=row["signature"],
                   cursor=Cursor(row["source_line"], opened))


def settings_of(examples: list[Example], context_tokens: int) -> dict[str, Any]:
    """Return the settings of the set: what its predictions depend on."""
    texts = json.dumps([[example.place.before, example.place.head, example.completion]
                        for example in examples])
    context = f"{context_tokens} tokens of context, " if context_tokens else ""
    return {"data_hash": hashlib.sha256(texts.encode()).hexdigest(), "format": STOP_FORMAT,
            "prompt": f"{context}KDoc, signature", "stop": "end of method"}


def documented_part(name: str, language: str, documented: list[bool]) -> dict[str, list[int]]:
    """Return the part of the set `name` whose methods are `documented`; none, with a note, if these are too
    few, or all."""
    positions = [i for i, known in enumerate(documented) if known]
    if len(positions) < FEWEST_DOCUMENTED:
        print(f"note: {name}: {len(positions)} of {len(documented)} have documentation, too few for scores "
              "of their own", file=sys.stderr)
        return {}
    part = f"{name}, {WITH_DOCUMENTATION.get(language, 'with documentation')}"
    return {part: positions} if len(positions) < len(documented) else {}

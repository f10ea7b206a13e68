"""The set of Kotlin methods, the twin of CodeXGLUE's in Python: signature and documentation, and then the
body."""
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from pipeline.data.datasets import draw, load_files, load_methods
from pipeline.methods.block_end import BlockEnd, block_end
from pipeline.prompts.contexts import FileTexts
from pipeline.run.errors import PipelineError
from pipeline.tasks.codexglue import CODEXGLUE_MAX_NEW_TOKENS
from pipeline.tasks.task import CHARACTERS_KEPT, Example, Task, first_line, fold_white_space, show_prompts

# behind the name of the set, the part of it whose methods have documentation
WITH_DOCUMENTATION = {"Kotlin": "with KDoc", "Java": "with Javadoc"}
FEWEST_DOCUMENTED = 10  # of which fewer say nothing
STOP_FORMAT = "2"  # of the stop rule: what was written under another one is not taken up again


def place_of(row: dict[str, Any], text: str) -> tuple[int, int] | None:
    """Return where in its file's text a method's documentation begins, and its body, behind the opening
    brace; None where the file does not hold the method."""
    start, opened = row["start"], row["start"] + len(row["signature"])
    if text[start:opened + len(row["body"])] != row["signature"] + row["body"]:
        return None
    head = text[:start].rstrip()
    if not row["docstring"]:
        return start, opened
    return (len(head) - len(row["docstring"]), opened) if head.endswith(row["docstring"]) else None


def methods_task(dataset: str, sample: int, seed: int, max_new_tokens: int = 0, context_tokens: int = 0,
                 tokenizer: Any = None) -> Task | None:
    """Return the task of the methods of the data set's test split, or None, with a note, where it has none.

    The prompt is so many tokens of the file before the method, in whole lines (`tokenizer` counts those that
    are shown), then its documentation and its signature, to the opening brace; what is to be written is the
    rest, to the brace that closes it.  `max_new_tokens` 0: as for CodeXGLUE.
    """
    methods, files = load_methods(dataset, "test"), load_files(dataset, ("test",))
    if methods is None or files is None:
        print(f"note: --dataset {dataset}: holds no methods of its test split; they are left out "
              "(preprocess_data.py writes them, where it has a grammar)", file=sys.stderr)
        return None
    chosen, texts = draw(len(methods), sample, seed), FileTexts(files["test"])
    examples = []
    for number, row in zip(chosen, methods.select(chosen), strict=True):
        text = texts.text(row["source_line"]) or ""
        if (place := place_of(row, text)) is None:
            raise PipelineError(f"--dataset {dataset}: method {number} of its test split does not stand in "
                                "its file; run preprocess_data.py again")
        first, opened = place
        before = text[:first]
        margin = before[before.rfind("\n") + 1:]
        examples.append(Example(
            str(number), (margin if margin.isspace() else "") + text[first:opened],
            fold_white_space(row["body"]), first_line(row["body"], fold_white_space), row["source_line"],
            row["body"], before=before[-CHARACTERS_KEPT * context_tokens:] if context_tokens else "",
            chunk=row["signature"], place=(row["source_line"], opened), head=text[first:opened],
            documented=bool(row["docstring"])))
    language = texts.language()
    name = f"{language} methods"
    task = Task(name, examples, max_new_tokens or CODEXGLUE_MAX_NEW_TOKENS, fold_white_space, block_end,
                settings_of(examples, context_tokens),
                Path(dataset).name if Path(dataset).is_dir() else dataset, context_tokens,
                stop_rule=BlockEnd, texts=texts, file_name=f"{language.lower()}-methods",
                parts=documented_part(name, language, examples), language=language, methods=True)
    show_prompts(task, tokenizer)
    return task


def settings_of(examples: list[Example], context_tokens: int) -> dict[str, Any]:
    """Return the settings of the set: what its predictions depend on."""
    texts = json.dumps([[example.before, example.head, example.completion] for example in examples])
    context = f"{context_tokens} tokens of the file, " if context_tokens else ""
    return {"data_hash": hashlib.sha256(texts.encode()).hexdigest(), "format": STOP_FORMAT,
            "prompt": f"{context}KDoc, signature", "stop": "end of method"}


def documented_part(name: str, language: str, examples: list[Example]) -> dict[str, list[int]]:
    """Return the part of the set `name` whose methods have documentation; none, with a note, where these are
    too few, or all."""
    documented = [i for i, example in enumerate(examples) if example.documented]
    if len(documented) < FEWEST_DOCUMENTED:
        print(f"note: {name}: {len(documented)} of {len(examples)} have documentation, too few for scores "
              "of their own", file=sys.stderr)
        return {}
    part = f"{name}, {WITH_DOCUMENTATION.get(language, 'with documentation')}"
    return {part: documented} if len(documented) < len(examples) else {}

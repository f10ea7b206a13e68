"""Methods as examples: behind the file up to the signature the body, and behind that the end of text."""
from typing import Any

from pipeline.contexts import FileTexts
from pipeline.datasets import draw
from pipeline.training.examples import EncodedExamples, encode_examples

CHARACTERS_A_TOKEN = 8  # of a prompt that is tokenized: more than code has, as a rule


def method_examples(tokenizer: Any, methods: Any, files: Any, number: int, max_length: int,
                    seed: int) -> EncodedExamples:
    """Return `number` methods of a split, or all of fewer, drawn with the seed, of at most `max_length`
    tokens each.

    The prompt is the file up to the brace that opens the body, from the start of a line on as far as there is
    room; the labels are the body's tokens, to the brace that closes it, and the end of text.  A method that
    its file does not hold is left out.
    """
    texts, prompts, bodies = FileTexts(files), [], []
    for row in methods.select(draw(len(methods), number, seed)):
        text, opened = texts.text(row["source_line"]) or "", row["start"] + len(row["signature"])
        if text[row["start"]:opened + len(row["body"])] == row["signature"] + row["body"]:
            prompts.append(last_part(text[:opened], CHARACTERS_A_TOKEN * max_length))
            bodies.append(row["body"])
    return encode_examples(tokenizer, prompts, bodies, max_length)


def last_part(text: str, characters: int) -> str:
    """Return the last `characters` of a text, from the start of a line on where one begins there."""
    if len(text) <= characters:
        return text
    part = text[-characters:]
    return part[part.find("\n") + 1:]

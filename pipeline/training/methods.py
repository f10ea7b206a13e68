"""Methods and declarations as examples: behind the file up to the signature the body, and behind that the end
of text."""
import itertools
from collections.abc import Iterator
from typing import Any

from pipeline.data.datasets import draw
from pipeline.data.encoded_examples import EncodedExamples, encode_examples
from pipeline.fim.syntax_units import declarations_of
from pipeline.prompts.contexts import FileTexts
from pipeline.training.sequences import files_in_random_order

CHARACTERS_A_TOKEN = 8  # of a prompt that is tokenized: more than code has, as a rule
# Of these examples, one in so many is another top-level declaration, as often as JetBrains/kotlin has those
# that are short enough beside its methods.
DECLARATION_EVERY = 5
DECLARATION_CHARACTERS = 1000  # of its body, at most: about as long as methods are (256 tokens)


def method_examples(tokenizer: Any, methods: Any, files: Any, number: int, max_length: int,
                    seed: int) -> EncodedExamples:
    """Return `number` methods of a split and other declarations, or all of fewer, drawn with the seed, of at
    most `max_length` tokens each.

    The prompt is the file up to the brace that opens the body, from the start of a line on as far as there is
    room; the labels are the body's tokens, to the brace that closes it, and the end of text.  A method that
    its file does not hold is left out.  Only as many files are parsed as it takes.
    """
    room = CHARACTERS_A_TOKEN * max_length
    others = declarations(files, seed)
    places = [(last_part(before, room), body)
              for before, body in itertools.islice(others, number // DECLARATION_EVERY)]
    texts = FileTexts(files)
    for row in methods.select(draw(len(methods), number - len(places), seed)):
        text, opened = texts.text(row["source_line"]) or "", row["start"] + len(row["signature"])
        if text[row["start"]:opened + len(row["body"])] == row["signature"] + row["body"]:
            places.append((last_part(text[:opened], room), row["body"]))
    return encode_examples(tokenizer, [before for before, _ in places], [body for _, body in places],
                           max_length)


def declarations(files: Any, seed: int) -> Iterator[tuple[str, str]]:
    """Yield the top-level declarations of files, which are in an order drawn with the seed: the file up to
    the opening brace, and the rest."""
    columns = (files_in_random_order(files, seed, column) for column in ("text", "path"))
    for text, path in zip(*columns, strict=True):
        for begin, end in declarations_of(text, path):
            if end - begin <= DECLARATION_CHARACTERS:
                yield text[:begin], text[begin:end]


def last_part(text: str, characters: int) -> str:
    """Return the last `characters` of a text, from the start of a line on where one begins there."""
    if len(text) <= characters:
        return text
    part = text[-characters:]
    return part[part.find("\n") + 1:]

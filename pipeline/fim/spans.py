"""Which part of a text is its middle: whole lines, the rest of a line, or a syntactic unit."""
from typing import Any

# Longest middle.  Mellum was tuned on middles below 700 characters that end where a syntactic unit does
# (arXiv 2510.05788); IBM on scopes of 50 to 1,000 bytes (arXiv 2602.05780).
MIDDLE_CHARACTERS = 700
MOST_LINES = 10  # of a middle of whole lines
# How often each kind is tried first (docs/infilling.md); where a text has none of a kind, another is taken.
SHARES = {"lines": 0.25, "rest": 0.25, "unit": 0.5}
TRIES = 8  # of one kind in one text

Span = tuple[int, int]  # begin and end of a part, in characters


def draw_middle(text: str, first: int, last: int, generator: Any,
                units: list[Span] | None = None) -> tuple[str, int, int] | None:
    """Return (kind, begin, end) of a middle within text[first:last], drawn with numpy's `generator`; None
    where there is none.

    `units`: the syntactic units of the text, where there is a grammar.  A middle holds more than white space
    and at most MIDDLE_CHARACTERS.
    """
    kinds = {"lines": whole_lines, "rest": rest_of_line}
    if units is not None:
        kinds["unit"] = lambda text, first, last, generator: one_of(units, first, last, generator)
    weights = [SHARES[kind] for kind in kinds]
    shares = [weight / sum(weights) for weight in weights]
    for kind in generator.choice(list(kinds), size=len(kinds), replace=False, p=shares).tolist():
        for _ in range(TRIES):
            begin, end = kinds[kind](text, first, last, generator) or (0, 0)
            if 0 < end - begin <= MIDDLE_CHARACTERS and text[begin:end].strip():
                return kind, begin, end
    return None


def line_begins(text: str, first: int, last: int) -> list[int]:
    """Return where the lines begin that begin in text[first:last]."""
    begins = [0] if first == 0 else []
    place = text.find("\n", max(0, first - 1), last)
    while 0 <= place < last - 1:
        begins.append(place + 1)
        place = text.find("\n", place + 1, last)
    return begins


def whole_lines(text: str, first: int, last: int, generator: Any) -> Span | None:
    """Return one to MOST_LINES whole lines, half of the time with the last one's line end: the cursor stood
    on an empty line, or before the next."""
    begins = line_begins(text, first, last)
    if not begins:
        return None
    place = int(generator.integers(len(begins)))
    behind = place + int(generator.integers(1, MOST_LINES + 1))
    end = begins[behind] if behind < len(begins) else last
    if end > begins[place] and text[end - 1] == "\n" and generator.integers(2):
        end -= 1
    return begins[place], end


def rest_of_line(text: str, first: int, last: int, generator: Any) -> Span | None:
    """Return a line from a place behind its first character to its end, without the line end."""
    begins = line_begins(text, first, last)
    if not begins:
        return None
    begin = begins[int(generator.integers(len(begins)))]
    end = text.find("\n", begin, last)
    end = last if end < 0 else end
    line = text[begin:end]
    inside = len(line) - len(line.lstrip()) + 1  # behind the first character that is not white space
    if inside >= len(line.rstrip()):
        return None
    return begin + int(generator.integers(inside, len(line.rstrip()))), end


def one_of(units: list[Span], first: int, last: int, generator: Any) -> Span | None:
    """Return one of the units that lie in [first, last) and are short enough."""
    inside = [(begin, end) for begin, end in units
              if first <= begin < end <= last and end - begin <= MIDDLE_CHARACTERS]
    return inside[int(generator.integers(len(inside)))] if inside else None

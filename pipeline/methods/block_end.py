"""The stop rule of languages with braces: where the block that the prompt opened is closed, during
decoding."""
import copy
import re

# What the text before a place leaves open: code up to its brace, or a string, a comment or a name.
CODE, STRING, RAW, CHARACTER, NAME, COMMENT, LINE = range(7)
# What matters within each; all else is passed over.
_PASSED = {CODE: re.compile(r"[^{}\"'`/$]+"), STRING: re.compile(r'[^\\"$\n]+'), RAW: re.compile(r'[^"$]+'),
           CHARACTER: re.compile(r"[^\\'\n]+"), NAME: re.compile(r"[^`\n]+"), COMMENT: re.compile(r"[^*/]+"),
           LINE: re.compile(r"[^\n]+")}
_DOLLARS, _QUOTES = re.compile(r"\$+"), re.compile('"+')
_ENDS = {STRING: '"\n', CHARACTER: "'\n", NAME: "`\n", LINE: "\n"}  # a line's end ends what is broken


class BlockEnd:
    """Finds the brace that closes a block of Kotlin, in a text that is given in parts.

    The text begins after the block's opening brace.  Braces do not count in strings (but in the code of a
    template, `"${…}"`), raw strings, characters, names in backticks, and comments, which nest.  So does
    Kotlin's lexer (JetBrains/kotlin, compiler/psi/src/org/jetbrains/kotlin/lexer/Kotlin.flex): a string or
    character that a line end breaks off ends there, and of a run of quotes the last three end a raw string.
    Time: linear in the text, however it is split.  Memory: what is open, and a few characters.
    """

    LAST = "}"

    def __init__(self, braces: int = 1) -> None:
        # what is open, the innermost last, and with it a number: of code the braces, of a comment the
        # comments, of a string the dollars of a template in it
        self.open: list[list[int]] = [[CODE, braces]]
        self.held = ""  # the last characters, where what follows decides what they are
        self.read = 0  # characters
        self.dollars = 0  # at the end, in code: of a string that may follow
        self.end: int | None = None  # where the text ended: after the brace

    def copy(self) -> "BlockEnd":
        """Return an independent copy."""
        other = copy.copy(self)
        other.open = [part.copy() for part in self.open]
        return other

    def closing(self, text: str) -> str:
        """Return what closes the string, character, name or comment that is open at the end of `text`, the
        last part; nothing if that is in code."""
        kind, number = self.open[-1]
        if kind == CODE:
            return '"' if self.held == '"' else ""
        if kind == CHARACTER and text.endswith("'"):
            return "a'"  # none is empty
        escaped = "\\" if self.held == "\\" else ""
        return escaped + {STRING: '"', RAW: '"""', CHARACTER: "'", NAME: "`", COMMENT: " */" * number,
                          LINE: "\n"}[kind]

    def feed(self, part: str) -> int | None:
        """Take the next part; return the offset in the whole text at which the block has ended, or None while
        it goes on."""
        if self.end is not None:
            return self.end
        text, self.held = self.held + part, ""
        self.read += len(part)
        place: int | None = 0
        while place is not None and place < len(text) and self.end is None:
            kind = self.open[-1][0]
            if passed := _PASSED[kind].match(text, place):
                place, self.dollars = passed.end(), 0
                continue
            before = place
            place = self._in_code(text, place) if kind == CODE else self._within(kind, text, place)
            if place is None:
                self.held = text[before:]
        if self.end is not None:
            self.end += self.read - len(text)
        return self.end

    def _in_code(self, text: str, place: int) -> int | None:
        """Return the place after the token at `place` in code; None if it is not yet decided."""
        character, dollars, self.dollars = text[place], self.dollars, 0
        if character in "{}":
            self.open[-1][1] += 1 if character == "{" else -1
            if not self.open[-1][1]:
                self.open.pop()
                self.end = None if self.open else place + 1
            return place + 1
        if character == "$":
            self.dollars = dollars + 1
            return place + 1
        if character == '"':
            quotes = text[place:place + 3]
            if len(quotes) < 3 and quotes == '"' * len(quotes):  # a third may follow
                self.dollars = dollars
                return None
            if quotes[:2] == '""' and quotes[2] != '"':
                return place + 2  # an empty string
            raw = quotes == '"""'
            self.open.append([RAW if raw else STRING, max(1, dollars)])
            return place + (3 if raw else 1)
        if character == "/":
            if place + 1 == len(text):
                return None
            opens = {"*": COMMENT, "/": LINE}.get(text[place + 1])
            if opens is not None:
                self.open.append([opens, 1])
            return place + (1 if opens is None else 2)
        self.open.append([CHARACTER if character == "'" else NAME, 1])
        return place + 1

    def _within(self, kind: int, text: str, place: int) -> int | None:
        """Return the place after the token at `place` in what is open; None if it is not yet decided."""
        character = text[place]
        if character == "\\":  # an escape
            return place + 2 if place + 1 < len(text) else None
        if character == "$":
            return self._template(text, place)
        if kind == COMMENT:
            pair = text[place:place + 2]
            if len(pair) < 2:
                return None
            self.open[-1][1] += {"/*": 1, "*/": -1}.get(pair, 0)
            if not self.open[-1][1]:
                self.open.pop()
            return place + (2 if pair in ("/*", "*/") else 1)
        if kind == RAW:
            end = _QUOTES.match(text, place).end()
            if end == len(text):
                return None if end - place <= 3 else self._hold(text, 3)
            if end - place >= 3:
                self.open.pop()
            return end
        if character in _ENDS[kind]:
            self.open.pop()
        return place + 1

    def _template(self, text: str, place: int) -> int | None:
        """Return the place after the dollars at `place`, and after the brace of the template that they
        open."""
        end, wanted = _DOLLARS.match(text, place).end(), self.open[-1][1]
        if end == len(text):
            return None if end - place <= wanted else self._hold(text, wanted)
        if end - place >= wanted and text[end] == "{":
            self.open.append([CODE, 1])
            return end + 1
        return end

    @staticmethod
    def _hold(text: str, number: int) -> int:
        """Return the place from which a run that is not over is looked at again: its last `number`
        characters decide as much as all of it."""
        return len(text) - number


def block_end(text: str) -> int | None:
    """Return the offset in a text at which the block that was opened before it ends, or None."""
    return BlockEnd().feed(text)

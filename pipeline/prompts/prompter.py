"""What a model is prompted with at a place of a file: context, text after it and repository context, as token
ids.

Training's contexts and sequences with repository context, the benchmark's predictions and losses, and
demo/complete.py all compose them here.
"""
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.model.tokenizers import encode_pairs, encode_prompts
from pipeline.prompts.contexts import contexts_of, first_lines
from pipeline.prompts.fim_formats import InfillingFormat, encode_beginnings, encode_within
from pipeline.prompts.repository_form import COMMENTED, Prefix, Prefixes, RepositoryPrompt, Snippet, form_for

CHARACTERS_KEPT = 40  # kept of a file for each token of context: more than any language has
CONTEXTS_KEPT = 1024  # of the last places: predictions and losses look for the same ones


class Place(NamedTuple):
    """A place in a file, and what is known of its surroundings."""
    before: str  # the text before it, from which the context is taken
    after: str | None = None  # the text after the completion; None: unknown
    head: str = ""  # follows the context in every prompt, whatever its length
    path: str | None = None  # of the file
    repository: str = ""  # its name
    snippets: Sequence[Snippet] = ()  # of the repository's other files, the best first


NOWHERE = Place("")


class PromptTokens(NamedTuple):
    """How many tokens of each part a prompt has at most."""
    context: int = 0  # of the file before the place, in whole lines; 0: all of `Place.before`
    suffix: int = 0  # of the text after the completion, in whole lines, in FIM form
    repository: int = 0  # of snippets of other files and the file's path


WHOLE_TEXT = PromptTokens()


class PromptForms(NamedTuple):
    """How a model is prompted beyond plain text."""
    fim: InfillingFormat | None = None  # None: the text before the place alone
    repository: RepositoryPrompt = COMMENTED

    def describe_fim(self) -> str:
        """Return in a few words how the model is prompted for a FIM middle."""
        return f"{self.fim.order} with {' '.join(self.fim.tokens)}" if self.fim else "text before the cut"


PLAIN_FORMS = PromptForms()


class Prompter:
    """Composes the prompts of one model, as token ids of its tokenizer.

    In order: the tokens that the tokenizer puts before every text, repository context, FIM tokens, context
    (and the text after the completion).  `repository` falls back to the form of the tokenizer's own family
    where the tokenizer lacks the form's tokens.
    """

    def __init__(self, tokenizer: Any, tokens: PromptTokens = WHOLE_TEXT, forms: PromptForms = PLAIN_FORMS):
        self.tokenizer, self.tokens = tokenizer, tokens
        self.fim = forms.fim if tokens.suffix else None
        self.prefixes = Prefixes(tokenizer, form_for(tokenizer, forms.repository)) if tokens.repository \
            else None
        # token ids that end a completion, beside the end of text
        self.stops: frozenset[int] = self.fim.stops if self.fim else frozenset()
        self._context = functools.lru_cache(maxsize=CONTEXTS_KEPT)(self._find_context)

    def _find_context(self, before: str) -> str:
        return contexts_of(self.tokenizer, [before], self.tokens.context)[0] if self.tokens.context \
            else before

    def contexts(self, places: Sequence[Place]) -> list[str]:
        """Return for each place the text of the file that is shown before it: the last whole lines with at
        most `tokens.context` tokens, and the place's `head`."""
        return [self._context(place.before) + place.head for place in places]

    def prompts(self, places: Sequence[Place]) -> list[list[int]]:
        """Return the token ids of each prompt; at least one, because a model has to continue from
        something."""
        contexts = self.contexts(places)
        ids = self._fim_prompts(places, contexts) if self.fim else encode_prompts(self.tokenizer, contexts)
        return self._finished(places, ids)

    def pairs(self, places: Sequence[Place],
              completions: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
        """Return the token ids of the prompts and of the completions that follow them.

        Without FIM form, both are those of the running text (`encode_pairs`): a prompt may end earlier than
        that of `prompts`.
        """
        if self.fim:
            return self.prompts(places), encode_within(self.tokenizer, list(completions))
        prompts, ids = encode_pairs(self.tokenizer, self.contexts(places), list(completions))
        return self._finished(places, prompts), ids

    def prefix(self, place: Place) -> Prefix:
        """Return the repository context of a place; empty without `tokens.repository`."""
        return self.prefixes.before(place.repository, place.path, place.snippets, self.tokens.repository) \
            if self.prefixes else Prefix([], [])

    def after_prefix(self, prefix: Prefix, ids: Sequence[int]) -> list[int]:
        """Return the token ids of a prompt or a whole sequence after its repository context."""
        return self.prefixes.prompt(prefix, ids)

    def _fim_prompts(self, places: Sequence[Place], contexts: list[str]) -> list[list[int]]:
        kept = CHARACTERS_KEPT * self.tokens.suffix
        suffixes = first_lines(self.tokenizer, [(place.after or "")[:kept] for place in places],
                               self.tokens.suffix)
        return [self.fim.prompt(*parts) for parts in zip(encode_beginnings(self.tokenizer, contexts),
                                                         encode_within(self.tokenizer, suffixes),
                                                         strict=True)]

    def _finished(self, places: Sequence[Place], prompts: list[list[int]]) -> list[list[int]]:
        """Return the prompts after the repository context of their places, none of them empty."""
        if self.prefixes:
            prompts = [self.after_prefix(self.prefix(place), ids)
                       for place, ids in zip(places, prompts, strict=True)]
        return [ids or [self.tokenizer.eos_token_id] for ids in prompts]

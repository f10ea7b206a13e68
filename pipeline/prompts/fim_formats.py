"""FIM (fill in the middle) formats: the tokens of model families, and the order of the parts.

A sequence is prefix, suffix, middle (PSM) or suffix, prefix, middle (SPM), each after a token of its own, and
a token that ends the middle (Bavarian et al. 2022, arXiv 2207.14255).
"""
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.model.tokenizers import encode_plain, encode_prompts
from pipeline.run.errors import PipelineError
from pipeline.run.manifests import taught

ORDERS = ("psm", "spm")
BY_HAND = "by hand"  # the family of tokens that the user names
# Layouts: P, S and M are the tokens of prefix, suffix and middle; the words are the parts.
PSM = ("P", "prefix", "S", "suffix", "M", "middle")
# SPM as it is trained together with PSM ("variant 2" of Bavarian et al., appendix D): what begins the
# sequence is the same, and the middle continues the prefix.
SPM_JOINT = ("P", "S", "suffix", "M", "prefix", "middle")
SPM_MARKED = ("S", "suffix", "P", "prefix", "M", "middle")  # each part after its own token
SPM_BARE = ("S", "suffix", "P", "prefix", "middle")  # no token for the middle
LAYOUTS = (PSM, SPM_JOINT, SPM_MARKED, SPM_BARE)
# A character that no tokenizer joins to the next: for texts that must not begin with the space that
# sentencepiece puts before every text (as Code Llama's and Mistral's own code do it).
MARK = "\u263a"


@dataclass(frozen=True)
class Family:
    """A family of models that were trained with FIM, recognized by tokens of their vocabulary."""
    name: str
    tokens: tuple[str, str, str]  # of prefix, suffix and middle
    source: str  # where its format was published
    layouts: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"psm": PSM, "spm": SPM_JOINT})
    order: str = "psm"  # the one that was published, or is used by its own code
    end: str | None = None  # ends a middle, if that is not the end-of-text token
    also: str | None = None  # a token that distinguishes it from a family with the same ones
    named: str | None = None  # part of the model's name, if no token does
    stops: tuple[str, ...] = ()  # further tokens of its own that end a middle


_STARCODER = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
_BARS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
# The first that fits is meant.  Where a family publishes one order, the other is that of Bavarian et al.
FAMILIES = (
    Family("Code Llama", ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),
           "github.com/facebookresearch/codellama, llama/generation.py, infilling_prompt_tokens",
           end="\u2581<EOT>"),
    Family("DeepSeek-Coder", ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>",
                              "<\uff5cfim\u2581end\uff5c>"), "arXiv 2401.14196, section 3.1"),
    Family("Codestral", ("[PREFIX]", "[SUFFIX]", "[MIDDLE]"),
           "github.com/mistralai/mistral-common, InstructTokenizerV2.encode_fim",
           {"psm": PSM, "spm": SPM_BARE}, "spm"),
    Family("SantaCoder", ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"), "arXiv 2301.03988",
           stops=("<fim-pad>",)),
    # its tokens are StarCoder's, its order is not
    Family("Mellum", _STARCODER, "huggingface.co/JetBrains/Mellum-4b-base, the model card",
           {"psm": PSM, "spm": SPM_MARKED}, "spm", named="mellum",
           stops=("<fim_pad>", "<filename>", "<reponame>")),
    Family("StarCoder", _STARCODER,  # StarCoder2 and Granite Code too
           "github.com/bigcode-project/Megatron-LM, megatron/data/gpt_dataset.py, permute",
           stops=("<fim_pad>", "<file_sep>", "<repo_name>", "<filename>", "<reponame>")),
    Family("CodeGemma", _BARS, "ai.google.dev/gemma/docs/codegemma/prompt-structure",
           also="<|file_separator|>", stops=("<|file_separator|>",)),
    Family("Qwen2.5-Coder", _BARS, "arXiv 2409.12186, section 3", also="<|file_sep|>",
           stops=("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")),
    Family("Granite", _BARS, "www.ibm.com/granite/docs/use-cases/prompt-engineering",
           stops=("<|fim_pad|>", "<|filename|>", "<|reponame|>")),
)


@dataclass(frozen=True)
class InfillingFormat:
    """How a model is prompted for the middle: its tokens' numbers and the order of the parts."""
    family: str  # or BY_HAND
    order: str  # psm or spm
    layout: tuple[str, ...]
    tokens: tuple[str, str, str]  # of prefix, suffix and middle
    numbers: tuple[int, int, int]
    end: int  # ends the middle
    beginning: tuple[int, ...] = ()  # what the tokenizer puts before every text
    stops: frozenset[int] = frozenset()  # tokens that end a middle, all of them
    by_hand: bool = False  # tokens that the model does not know: their embeddings are trained

    def sequence(self, prefix: list[int], suffix: list[int], middle: list[int]) -> list[int]:
        """Return the token ids of a whole sequence, up to the token that ends the middle."""
        return [*self.prompt(prefix, suffix), *middle, self.end]

    def prompt(self, prefix: list[int], suffix: list[int]) -> list[int]:
        """Return the token ids of a prompt: everything before the middle."""
        parts = dict(zip("PSM", ([number] for number in self.numbers), strict=True))
        parts |= {"prefix": prefix, "suffix": suffix, "middle": []}
        return [*self.beginning, *(token for part in self.layout for token in parts[part])]

    def markers(self) -> frozenset[int]:
        """Return the numbers of the tokens that mark parts: never text, and never what is to be written."""
        return frozenset(self.numbers)

    def added_tokens(self) -> int:
        """Return how many tokens a sequence has beside its text: marks, beginning and end."""
        return len(self.sequence([], [], []))

    def described(self) -> dict[str, Any]:
        """Return the entry of a manifest, which `format_of_manifest` reads."""
        return {"family": self.family, "order": self.order, "layout": list(self.layout),
                "tokens": list(self.tokens), "by_hand": self.by_hand}


def beginning_of(tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens that a tokenizer puts before every text."""
    [with_specials] = encode_prompts(tokenizer, ["x"])
    [plain] = encode_plain(tokenizer, ["x"])
    return tuple(with_specials[:len(with_specials) - len(plain)])


def encode_beginnings(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Return the token ids of texts that begin a text (the prefix), without special tokens."""
    return encode_plain(tokenizer, texts)


def encode_within(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Return the token ids of texts that continue another (suffix and middle), without the space that
    sentencepiece puts before every text."""
    mark, letter, both = encode_plain(tokenizer, [MARK, "x", f"{MARK}x"])
    if both == [*mark, *letter]:
        return encode_plain(tokenizer, texts)
    return [ids[len(mark):] for ids in encode_plain(tokenizer, [MARK + text for text in texts])]


def find_family(vocabulary: Iterable[str], name: str = "") -> Family | None:
    """Return the family whose tokens are all in a vocabulary; None if there is none.

    `name`: the model's, which alone distinguishes Mellum from StarCoder.
    """
    known = set(vocabulary)
    for family in FAMILIES:
        needed = {*family.tokens, *filter(None, (family.also, family.end))}
        if family.layouts[family.order] is SPM_BARE:
            needed -= {family.tokens[2]}
        if needed <= known and (family.named is None or family.named in name.lower()):
            return family
    return None


def find_format(tokenizer: Any, name: str, order: str | None = None,
                tokens: list[str] | None = None) -> InfillingFormat | None:
    """Return the format of the model `name`, by its vocabulary, or with the `tokens` that are given; None
    if it has no such tokens.

    `order` None: the one that the family publishes; psm for tokens that are given.  Tokens that are given and
    are a family's own are known to the model; with them, each part of SPM follows its own token.
    Raises PipelineError if a token cannot be used.
    """
    vocabulary = tokenizer.get_vocab()
    family = find_family(vocabulary, name)
    if tokens:
        check_tokens(tokens, tokenizer, name)
        order, layouts = order or "psm", {"psm": PSM, "spm": SPM_MARKED}
        known = family is not None and set(tokens) == set(family.tokens)
        end, stops, label = (family.end, family.stops, family.name) if known else (None, (), BY_HAND)
    elif family is None:
        return None
    else:
        known, tokens, layouts, label = True, list(family.tokens), family.layouts, family.name
        order, end, stops = order or family.order, family.end, family.stops
        if "M" in layouts[order] and tokens[2] not in vocabulary:
            raise PipelineError(f"--fim_order {order}: {name} has no token {tokens[2]}, which that order "
                                f"needs; leave --fim_order out ({family.name} has {family.order})")
    # a layout without a token for the middle may belong to a vocabulary without one
    numbers = tuple(vocabulary.get(token, vocabulary[tokens[0]]) for token in tokens)
    ending = tokenizer.eos_token_id if end is None else vocabulary[end]
    over = {ending, tokenizer.eos_token_id, *numbers, *(vocabulary[s] for s in stops if s in vocabulary)}
    return InfillingFormat(label, order, layouts[order], tuple(tokens), numbers, ending,
                           beginning_of(tokenizer), frozenset(over), by_hand=not known)


def check_tokens(tokens: list[str], tokenizer: Any, name: str) -> None:
    """Raise PipelineError where three tokens that were given are not three entries of the vocabulary that
    have no other use."""
    vocabulary, given = tokenizer.get_vocab(), f"--fim_tokens {' '.join(tokens)}"
    if len(set(tokens)) != 3:
        raise PipelineError(f"{given}: prefix, suffix and middle need three different tokens")
    used = {"end-of-text": tokenizer.eos_token, "beginning-of-text": tokenizer.bos_token,
            "padding": tokenizer.pad_token, "unknown": tokenizer.unk_token}
    for token in tokens:
        if token not in vocabulary:
            raise PipelineError(f"{given}: {token} is not in the vocabulary of {name}"
                                + _unused_shown(tokenizer, used))
        for use, other in used.items():
            if token == other:
                raise PipelineError(f"{given}: {token} is the {use} token of {name}"
                                    + _unused_shown(tokenizer, used))


def _unused_shown(tokenizer: Any, used: dict[str, str | None]) -> str:
    """Return, as the end of a message, entries of a vocabulary that are special and may have no use."""
    special = [token.content for number, token in sorted(tokenizer.added_tokens_decoder.items())
               if token.special and token.content not in used.values()]
    if not special:
        return "; name entries of its vocabulary that occur in no text"
    return f"; its special tokens, of which some may have no use, are {', '.join(special[:12])}"


def missing_tokens(tokenizer: Any, name: str) -> PipelineError:
    """Return the error that names the FIM tokens that a model lacks, and what to do."""
    vocabulary = set(tokenizer.get_vocab())
    nearest = max((family for family in FAMILIES if family.named is None),
                  key=lambda family: len(vocabulary & set(family.tokens)))
    lacks = [token for token in nearest.tokens if token not in vocabulary]
    what = f"lacks {', '.join(lacks)} of {nearest.name}'s" if len(lacks) < 3 else \
        "has none of the families that are known (" + ", ".join(family.name for family in FAMILIES) + ")"
    return PipelineError(f"--fim_rate: model {name} has no infilling tokens: it {what}; give --fim_tokens "
                         "PREFIX SUFFIX MIDDLE, three entries of its vocabulary that nothing else uses, "
                         "whose embeddings are then trained")


def format_of_manifest(manifest: dict[str, Any] | None, tokenizer: Any, name: str) -> InfillingFormat | None:
    """Return the format that a model was trained in, by its manifest or that of the adapter that was merged
    into it; None if that has no entry that fits the vocabulary."""
    said = taught(manifest, "infilling")
    try:
        layout, tokens, order = tuple(said["layout"]), [str(token) for token in said["tokens"]], said["order"]
        found = find_format(tokenizer, name, order, tokens if said["by_hand"] else None)
    except (KeyError, TypeError, PipelineError):  # no entry, another version's, or of another vocabulary
        return None
    return replace(found, layout=layout) if found and layout in LAYOUTS else None

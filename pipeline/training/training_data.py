"""What a run learns from and what it is validated on: whole files or pairs, replay, two lengths of
context."""
import argparse
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.datasets import draw, load_examples, load_files, load_methods
from pipeline.data.encoded_examples import EncodedExamples, encode_examples
from pipeline.fim.fim_examples import Infilling, choose_infilling
from pipeline.prompts.contexts import Cut, FileTexts, each_cut, find_cuts
from pipeline.prompts.prompter import Place, Prompter, PromptTokens
from pipeline.retrieval.snippet_examples import Pieces
from pipeline.run.errors import PipelineError
from pipeline.run.hashes import sha256_file
from pipeline.run.manifests import read_manifest
from pipeline.run.stage import note
from pipeline.training.methods import method_examples
from pipeline.training.replay import sample_replay
from pipeline.training.sequences import (
    FileBound,
    files_in_random_order,
    middles_of,
    random_order,
    sequences_of,
)

MIN_LENGTH = 8  # tokens of prompt, completion and end of text together
# what is validated on besides
ONE_CHUNK, REPLAY, MIDDLES, REPOSITORY = "one_chunk", "replay", "infilling", "repository"


@dataclass
class Data:
    """What is learned from and what is validated on."""
    train: EncodedExamples
    validation: EncodedExamples  # whose loss chooses the best adapter
    # other sets that are validated on, by name
    also: dict[str, EncodedExamples] = field(default_factory=dict)
    train_on: str = "pairs"  # or files
    with_pieces: int = 0  # sequences that begin with pieces of the repository
    identities: dict[str, Any] = field(default_factory=dict)  # what a resumed run compares
    infilling: Infilling | None = None  # how some sequences are written with a middle
    methods: int = 0  # examples among those of `train`: --method_fraction

    def highest_token(self) -> int:
        """Return the highest number of a token that the model will read."""
        return max(int(examples.ids.max(initial=0)) for examples in (self.train, self.validation,
                                                                     *self.also.values()))

    def trained_tokens(self) -> tuple[int, ...]:
        """Return the tokens whose embeddings are trained: those of --fim_tokens that the model does not
        know."""
        return self.infilling.format.numbers if self.infilling and self.infilling.format.by_hand else ()


def check_lengths(args: argparse.Namespace, context: int | None) -> None:
    """Raise PipelineError where --max_length leaves no room; bound --sequence_tokens by the model's
    `context`."""
    if args.max_length < MIN_LENGTH:
        raise PipelineError(f"--max_length {args.max_length}: leaves no room for prompt and completion; give "
                            f"at least {MIN_LENGTH}")
    if args.sequence_tokens < MIN_LENGTH:
        raise PipelineError(f"--sequence_tokens {args.sequence_tokens}: is too short to learn from; give at "
                            f"least {MIN_LENGTH}")
    for name in ("max_length", "sequence_tokens"):
        if context and getattr(args, name) > context:
            if name == "sequence_tokens":
                note(f"the model's context has {context} tokens, and --sequence_tokens "
                     f"{args.sequence_tokens} more; it is set to {context}")
            setattr(args, name, context)


def encode_splits(args: argparse.Namespace, tokenizer: Any, default_replay_fraction: float,
                  context: int | None = None) -> Data:
    """Return what is trained on, with that of --replay_dataset in it, and what is validated on.

    `context`: tokens that the model has positions for; None: no bound.
    """
    check_lengths(args, context)
    infilling = choose_infilling(args, tokenizer)
    if args.replay_fraction and not args.replay_dataset:
        raise PipelineError("--replay_fraction: says how many, but not of what; give a --replay_dataset too")
    splits = ("train", "validation")
    data, files = load_examples(args.dataset, splits), load_files(args.dataset, splits)
    manifest = read_manifest(Path(args.dataset)) if Path(args.dataset).is_dir() else None
    identities = {"data_hash": manifest["data_hash"] if manifest and "data_hash" in manifest
                  else str(data["train"]._fingerprint)}
    for split in splits:
        if not len(data[split]):
            raise PipelineError(f"{args.dataset}: split {split!r} is empty; run preprocess_data.py on more "
                                "files")
    args.train_on = choose_train_on(args, files)  # for the manifest, and for a run that goes on
    if infilling and args.train_on != "files":
        raise PipelineError(f"--fim_rate {args.fim_rate}: middles are cut from whole files; give --train_on "
                            "files and a data set that has them, or leave --fim_rate out")
    pieces = choose_pieces(args, tokenizer, files, identities)
    if args.train_on == "files":
        columns = (files_in_random_order(files["train"], args.seed, column) for column in ("text", "path"))
        bound = FileBound(args.max_file_tokens, args.seed)
        train = sequences_of(tokenizer, next(columns), args.max_train_samples, args.sequence_tokens,
                             infilling, next(columns), pieces and pieces.queries, bound)
        if bound.files:
            note(f"{bound.files} files have more than --max_file_tokens {args.max_file_tokens}: "
                 f"{bound.left_out:,} of their sequences are left out")
        if not len(train):
            raise PipelineError(f"{args.dataset}: its files give no sequence; run preprocess_data.py on more "
                                "files, or give --train_on pairs")
    else:
        train = encode_split(args, tokenizer, data["train"], files and files["train"], args.max_train_samples)
    found = Data(train, *encode_validation(args, tokenizer, data["validation"],
                                           files and files["validation"]),
                 args.train_on, identities=identities, infilling=infilling)
    if infilling:
        add_middles(found, args, tokenizer, files["validation"])
    if pieces:
        add_pieces(found, args, pieces, data["validation"])
        check_room(found, args, context)
    if args.method_fraction:
        add_methods(found, args, tokenizer, files and files["train"])
    if args.replay_dataset:
        add_replay(found, args, tokenizer, default_replay_fraction)
    return found


def add_middles(data: Data, args: argparse.Namespace, tokenizer: Any, files: Any) -> None:
    """Add middles of validation files to what is validated on; tell of languages without a grammar."""
    columns = (files_in_random_order(files, args.seed, column) for column in ("text", "path"))
    middles = middles_of(tokenizer, next(columns), args.max_validation_samples, args.sequence_tokens,
                         data.infilling, next(columns))
    data.also |= {MIDDLES: middles} if len(middles) else {}
    data.identities["infilling"] = data.infilling.format.described()
    for line in data.infilling.units.missing.values():
        note(line)


def add_pieces(data: Data, args: argparse.Namespace, pieces: Pieces, pairs: Any) -> None:
    """Put pieces before the sequences that were chosen, and validate behind pieces too; `pairs`: those of the
    validation split."""
    data.train, data.with_pieces = pieces.added_to_sequences(
        data.train, random_order(pieces.files["train"], args.seed))
    if ONE_CHUNK in data.also:  # the files hold validation's pairs
        rows = pairs.select(draw(len(pairs), args.max_validation_samples, args.seed))[:]
        data.also[REPOSITORY] = pieces.added_to_validation(data.validation, rows)


def choose_pieces(args: argparse.Namespace, tokenizer: Any, files: Any,
                  identities: dict[str, Any]) -> Pieces | None:
    """Return what puts pieces of the repository before sequences; None without --repository_tokens.

    The form of such prompts is added to the `identities`, which the manifest takes over.
    """
    if not args.repository_tokens:
        return None
    if args.train_on != "files":
        raise PipelineError(f"--repository_tokens {args.repository_tokens}: pieces stand before sequences of "
                            "whole files; give --train_on files and a data set that has them, or leave it "
                            "out")
    if not args.repository_fraction:
        raise PipelineError("--repository_fraction 0: no sequence would begin with pieces; give a share, or "
                            "leave --repository_tokens out")
    pieces = Pieces(args, tokenizer, files)
    identities |= pieces.described()
    return pieces


def check_room(data: Data, args: argparse.Namespace, context: int | None) -> None:
    """Raise PipelineError where an example with pieces is longer than the model's `context`."""
    longest = max(int(examples.lengths.max(initial=0)) for examples in (data.train, *data.also.values()))
    if context and longest > context:
        raise PipelineError(f"--repository_tokens {args.repository_tokens}: with the file an example has "
                            f"{longest} tokens, and the model's context {context}; lower it, or "
                            "--sequence_tokens")


def choose_train_on(args: argparse.Namespace, files: Any) -> str:
    """Return files or pairs: --train_on, or files where the data set has any."""
    if files is None:
        if args.train_on == "files":
            raise PipelineError(f"--train_on files: {args.dataset} holds none; run preprocess_data.py again, "
                                "or give --train_on pairs")
        note(f"{args.dataset} holds no whole files: training on its pairs, validated behind their own "
             "prompts alone")
        return "pairs"
    return args.train_on or "files"


def ends_of(args: argparse.Namespace, cuts: Iterable[Cut | None]) -> list[bool]:
    """Return behind which completions the end-of-text token is a label: --end_of_text."""
    return [args.end_of_text == "always" or (cut is not None and cut.ends_file) for cut in cuts]


def encode_split(args: argparse.Namespace, tokenizer: Any, pairs: Any, files: Any,
                 number: int) -> EncodedExamples:
    """Return `number` (0: all) pairs of a split, drawn with the seed."""
    rows = pairs.select(draw(len(pairs), number, args.seed))[:]
    cuts: Iterable[Cut | None] = [None] * len(rows["prompt"])
    if args.end_of_text != "always":
        cuts = each_cut(rows, files and FileTexts(files))
        if files is None:
            note("without whole files nothing says which completions end something: the end of text is no "
                 "label (--end_of_text always makes it one behind each)")
    return encode_examples(tokenizer, list(rows["prompt"]), list(rows["completion"]), args.max_length,
                           ends_of(args, cuts))


def encode_validation(args: argparse.Namespace, tokenizer: Any, pairs: Any,
                      files: Any) -> tuple[EncodedExamples, dict[str, EncodedExamples]]:
    """Return pairs of the validation split behind --sequence_tokens of their file, and, to be validated on
    besides, the same behind one chunk.  Where the files are not there, the latter alone, as the first."""
    rows = pairs.select(draw(len(pairs), args.max_validation_samples, args.seed))[:]
    prompts, completions = list(rows["prompt"]), list(rows["completion"])
    cuts = find_cuts(rows, files and FileTexts(files))
    one_chunk = encode_examples(tokenizer, prompts, completions, args.max_length, ends_of(args, cuts))
    if None in cuts:
        if files is not None:
            note(f"{args.dataset}: its files do not hold all of its pairs: validated behind their own "
                 "prompts alone")
        return one_chunk, {}
    prompter = Prompter(tokenizer, PromptTokens(args.sequence_tokens))
    contexts = prompter.contexts([Place(cut.before) for cut in cuts])
    # room for the completion too, within what the model has positions for
    length = max(args.max_length, args.sequence_tokens)
    return encode_examples(tokenizer, contexts, completions, length,
                           ends_of(args, cuts)), {ONE_CHUNK: one_chunk}


def add_methods(data: Data, args: argparse.Namespace, tokenizer: Any, files: Any) -> None:
    """Add methods to what is learned, --method_fraction of all but what is replayed."""
    methods = None if files is None else load_methods(args.dataset, "train")
    if methods is None:
        raise PipelineError(f"--method_fraction: {args.dataset} holds no methods; run preprocess_data.py "
                            "again, with a grammar for its language, or leave it out")
    number = max(1, round(len(data.train) * args.method_fraction / (1 - args.method_fraction)))
    if number > len(methods):
        note(f"--method_fraction {args.method_fraction}: {number} methods are asked for, and {args.dataset} "
             f"has {len(methods)}")
    found = method_examples(tokenizer, methods, files, number, args.sequence_tokens, args.seed)
    data.methods = len(found)
    data.train = data.train.followed_by(found)


def add_replay(data: Data, args: argparse.Namespace, tokenizer: Any, default_fraction: float) -> None:
    """Add pairs of --replay_dataset to what is learned, and others to what is validated on."""
    share = args.replay_fraction or default_fraction
    number = round(len(data.train) * share / (1 - share))
    training, validation = sample_replay(args.replay_dataset, number, args.max_validation_samples, args.seed)

    def encoded(prompts: list[str], completions: list[str], ends: list[bool]) -> EncodedExamples:
        ends = [end or args.end_of_text == "always" for end in ends]
        examples = encode_examples(tokenizer, prompts, completions, args.max_length, ends)
        if data.train_on == "files":  # every token is a label, but the first, which nothing predicts
            examples.prompt_lengths = np.minimum(examples.lengths, 1)
        return examples

    data.train = data.train.followed_by(encoded(*training))
    data.also[REPLAY] = encoded(*validation)
    data.identities["replay_hash"] = sha256_file(args.replay_dataset)

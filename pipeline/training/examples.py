"""Examples as token ids: those of the data set, and those of the replay file."""
import argparse
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.datasets import draw, load_examples
from pipeline.errors import PipelineError
from pipeline.files import parse_json_line, sha256_file
from pipeline.manifests import read_manifest
from pipeline.models import IGNORED_LABEL
from pipeline.tokenizers import encode_prompts

MIN_LENGTH = 8  # tokens of prompt, completion and end of text together
REPLAY_VALIDATION_SHARE = 0.1  # of --replay_dataset: its last rows, which are never trained on


class EncodedExamples:
    """Token ids of examples, kept in one flat int32 array: 4 bytes a token, whatever their number."""

    def __init__(self, prompts: list[list[int]], completions: list[list[int]]):
        rows = [np.array(p + c, dtype=np.int32) for p, c in zip(prompts, completions, strict=True)]
        self.ids = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int32)
        self.ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        self.prompt_lengths = np.array([len(p) for p in prompts], dtype=np.int64)
        self.lengths = np.diff(self.ends, prepend=0)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        """Return {"input_ids", "labels"}: the labels of the prompt are IGNORED_LABEL."""
        end, length, prompt = self.ends[index], self.lengths[index], self.prompt_lengths[index]
        ids = self.ids[end - length:end].tolist()
        return {"input_ids": ids, "labels": [IGNORED_LABEL] * prompt + ids[prompt:]}


def encode_examples(tokenizer: Any, prompts: list[str], completions: list[str],
                    max_length: int) -> EncodedExamples:
    """Tokenize prompts and completions apart, and end each completion with the end-of-text token.

    The prompt is encoded as it is when the model is used (`encode_prompts`).  An example of more than
    `max_length` tokens loses the start of its prompt, which is farthest from the completion, and then the end
    of its completion.
    """
    prompt_ids = encode_prompts(tokenizer, prompts)
    completion_ids = tokenizer(completions, add_special_tokens=False, split_special_tokens=True,
                               return_attention_mask=False)["input_ids"] if completions else []
    completion_ids = [[*ids[:max_length - 2], tokenizer.eos_token_id] for ids in completion_ids]
    prompt_ids = [p[-max(1, max_length - len(c)):] for p, c in zip(prompt_ids, completion_ids, strict=True)]
    return EncodedExamples(prompt_ids, completion_ids)


Pairs = tuple[list[str], list[str]]  # prompts and completions


def sample_examples(split: Any, number: int, seed: int) -> Pairs:
    """Return prompts and completions of `number` rows of a split, drawn with the seed; 0: all rows."""
    rows = split.select(draw(len(split), number, seed))[:]
    return list(rows["prompt"]), list(rows["completion"])


def sample_replay(path: Path, number: int, validation_number: int, seed: int) -> tuple[Pairs, Pairs]:
    """Return `number` training and at most `validation_number` (0: all) validation pairs of a replay file.

    The file's last tenth is for validation: its neighbours are pieces of one source file, so that at most one
    file is on both sides.  Only the chosen lines are kept in memory.
    """
    if not path.is_file():
        raise PipelineError(f"--replay_dataset {path}: no such file; give JSON lines with the fields prompt "
                            "and completion")
    with open(path, "rb") as file:
        count = sum(1 for _ in file)
    first_validation = count - max(1, round(count * REPLAY_VALIDATION_SHARE))
    if first_validation < number:
        raise PipelineError(f"--replay_dataset {path}: {number} examples are needed for training and "
                            f"{max(0, first_validation)} of its {count} are for that; give a larger file, or "
                            "lower --replay_fraction or --max_train_samples")
    training = set(random.Random(seed).sample(range(first_validation), number))
    # drawn apart from the others, so that runs with other shares are validated on the same lines
    held_out = range(first_validation, count)
    validation = set(held_out if not 0 < validation_number < len(held_out)
                     else random.Random(seed).sample(held_out, validation_number))
    found: tuple[Pairs, Pairs] = (([], []), ([], []))
    with open(path, "rb") as file:
        for i, line in enumerate(file):
            if i in training or i in validation:
                row = parse_json_line(path, i + 1, line, {"prompt": str, "completion": str})
                prompts, completions = found[i in validation]
                prompts.append(row["prompt"])
                completions.append(row["completion"])
    return found


@dataclass
class Data:
    """What is learned from and what is validated on."""
    train: EncodedExamples
    validation: EncodedExamples
    replay: EncodedExamples | None  # for validation only
    identities: dict[str, str]  # what a resumed run compares


def encode_splits(args: argparse.Namespace, tokenizer: Any, default_replay_fraction: float) -> Data:
    """Return the sampled examples: to train on, those of --replay_dataset among them, and to validate on."""
    if args.max_length < MIN_LENGTH:
        raise PipelineError(f"--max_length {args.max_length}: leaves no room for prompt and completion; give "
                            f"at least {MIN_LENGTH}")
    if args.replay_fraction and not args.replay_dataset:
        raise PipelineError("--replay_fraction: says how many, but not of what; give a --replay_dataset too")
    data = load_examples(args.dataset, ("train", "validation"))
    manifest = read_manifest(Path(args.dataset)) if Path(args.dataset).is_dir() else None
    identities = {"data_hash": manifest["data_hash"] if manifest and "data_hash" in manifest
                  else str(data["train"]._fingerprint)}
    for split in ("train", "validation"):
        if not len(data[split]):
            raise PipelineError(f"{args.dataset}: split {split!r} is empty; run preprocess_data.py on more "
                                "files")
    prompts, completions = sample_examples(data["train"], args.max_train_samples, args.seed)
    replay = None
    if args.replay_dataset:
        share = args.replay_fraction or default_replay_fraction
        number = round(len(prompts) * share / (1 - share))
        training, validation = sample_replay(args.replay_dataset, number, args.max_validation_samples,
                                             args.seed)
        prompts, completions = prompts + training[0], completions + training[1]
        replay = encode_examples(tokenizer, *validation, args.max_length)
        identities["replay_hash"] = sha256_file(args.replay_dataset)
    held_out = sample_examples(data["validation"], args.max_validation_samples, args.seed)
    return Data(encode_examples(tokenizer, prompts, completions, args.max_length),
                encode_examples(tokenizer, *held_out, args.max_length), replay, identities)

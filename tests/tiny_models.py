"""Tiny random models, their tokenizer and a tiny data set, as folders: what the last stages are tested on."""
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

ARCHITECTURES = ("phi", "llama", "gpt2", "qwen2")
END_OF_TEXT = "<|endoftext|>"
CONTEXT = 512


@cache
def make_tokenizer() -> Any:
    """Return a byte-level BPE of at most 400 tokens whose end-of-text token is also its padding token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[END_OF_TEXT], show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    texts = [prompt + completion for prompt, completion in examples(60, seed=99)]
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)


def make_model(architecture: str, seed: int = 0, tied: bool | None = None) -> Any:
    """Return a random float32 model with two layers, in evaluation mode.

    `tied` None: as the architecture has it.  Sizes are multiples of 64: NF4 on a CPU takes no others.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    vocabulary, eos = len(make_tokenizer()), make_tokenizer().eos_token_id
    common: dict[str, Any] = {"vocab_size": vocabulary, "eos_token_id": eos, "bos_token_id": eos,
                              "pad_token_id": None}
    if architecture == "gpt2":
        common |= {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT, "resid_pdrop": 0.0,
                   "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    else:
        common |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                   "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT}
    if tied is not None:
        common["tie_word_embeddings"] = tied
    torch.manual_seed(seed)
    config = AutoConfig.for_model(architecture, **common)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # the usual 0.02 makes all logits alike, and an error of the cache or the mask invisible
            if parameter.ndim == 2:
                parameter.normal_(std=0.12)
            elif name.endswith("bias"):
                parameter.normal_(std=0.05)
    model.tie_weights()
    return model.eval()


def save_model(folder: Path, architecture: str, seed: int = 0, tied: bool | None = None, dtype: Any = None,
               max_shard_size: str = "50GB") -> Path:
    """Save a tiny model with its tokenizer to `folder` and return the folder."""
    model = make_model(architecture, seed, tied)
    (model if dtype is None else model.to(dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    make_tokenizer().save_pretrained(folder)
    return folder


def save_adapter(folder: Path, base: Path, seed: int = 1, std: float = 0.1, **settings: Any) -> Path:
    """Save a random LoRA adapter of the model at `base` by PEFT and return its folder.

    `settings` go to LoraConfig.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # it begins at zero: an adapter that does nothing
                parameter.normal_(std=std)
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)
    make_tokenizer().save_pretrained(folder)
    return folder


def examples(number: int, seed: int) -> list[tuple[str, str]]:
    """Return (prompt, completion) pairs of code of various lengths."""
    draw = random.Random(seed)
    pairs = []
    for _ in range(number):
        name, words = draw.choice(("alpha", "beta", "gamma")), draw.randrange(1, 6)
        values = "".join(f"    val a{i} = x + {draw.randrange(9)}\n" for i in range(words))
        results = "".join(f"    return a{i} * {draw.randrange(9)}\n" for i in range(draw.randrange(1, 3)))
        pairs.append((f"fun {name}(x: Int): Int {{\n{values}", results + "}\n"))
    return pairs


def save_dataset(folder: Path, train: int = 12, validation: int = 4, test: int = 6,
                 chunk_tokens: int | None = None, files: bool = False, pairs_per_file: int = 2,
                 methods: bool = False, extension: str = ".kt") -> Path:
    """Save a data set of prompts and completions as preprocess_data.py does, and return its folder.

    `chunk_tokens`: also write a manifest that gives this length of a chunk.  `files`: also write the whole
    files, of `pairs_per_file` pairs one behind the other, and where in them each prompt begins (`start`).
    `methods`: also write the methods, of which each pair is one.  `extension`: of the files' paths.
    """
    from datasets import Dataset, DatasetDict

    from pipeline.preparation.writing import EXAMPLE, FILE

    splits, texts, found = {}, {}, {}
    for seed, (name, number) in enumerate((("train", train), ("validation", validation), ("test", test))):
        pairs = examples(number, seed)
        columns = {"prompt": [p for p, _ in pairs], "completion": [c for _, c in pairs],
                   "source_line": [1 + i // pairs_per_file for i in range(number)]}
        pieces = [prompt + completion for prompt, completion in pairs]
        begins = range(0, number, pairs_per_file)
        columns["start"] = [len("".join(pieces[i - i % pairs_per_file:i])) for i in range(number)]
        lines = [1 + i for i in range(len(begins))]
        rows = {"text": ["".join(pieces[i:i + pairs_per_file]) for i in begins], "source_line": lines,
                "repository": ["code"] * len(lines),
                "path": [f"{name}/File{line}{extension}" for line in lines],
                "license_file": [None] * len(lines)}
        texts[name] = Dataset.from_dict(rows, features=FILE)
        splits[name] = Dataset.from_dict(columns, features=EXAMPLE)
        begun = [{"signature": piece[:piece.index("{") + 1], "docstring": "", "start": start,
                  "body": piece[piece.index("{") + 1:].rstrip("\n"), "source_line": line}
                 for piece, start, line in zip(pieces, columns["start"], columns["source_line"], strict=True)]
        found[name] = Dataset.from_list(begun)
    if methods:
        DatasetDict(found).save_to_disk(str(folder / "methods"))
    if files:
        DatasetDict(texts).save_to_disk(str(folder / "files"))
    else:
        splits = {name: split.remove_columns("start") for name, split in splits.items()}
    DatasetDict(splits).save_to_disk(str(folder))
    if chunk_tokens is not None:
        manifest = {"manifest_version": 1, "arguments": {"chunk_tokens": chunk_tokens}, "data_hash": "tiny",
                    "outputs": {}}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def codexglue_rows(number: int) -> list[dict[str, str]]:
    """Return rows in the format of CodeXGLUE method generation."""
    return [{"signature": f"def method{i}(self, value=<NUM_LIT:1>):",
             "docstring": f"Return the value\nnumber {i}." + " Again." * (i % 3),
             "body": f"result = <NUM_LIT:1> + self.value<EOL>if value == '<STR_LIT:a{i % 2}>':<EOL>"
                     "<INDENT>return [<NUM_LIT>]<EOL><DEDENT>return result",
             "id": f"row{i}"} for i in range(number)]


def save_codexglue(file: Path, number: int = 6) -> Path:
    """Write a small file in the format of CodeXGLUE's test set and return it."""
    file.write_text("".join(json.dumps(row) + "\n" for row in codexglue_rows(number)))
    return file

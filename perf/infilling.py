"""Does a model that was taught infilling use the text behind the cursor?  The loss of held-out middles.

Each middle of the test split is asked in four ways: behind the text before it alone; with the marks of the
adapter's format and no suffix; with the suffix; and with another file's suffix, which a model that looks at
what stands there must find worse.  Once without the adapter and once with it.

Run:    python train.py --model_name_or_path MODEL --dataset DATASET --output_dir ADAPTER \\
            --quantization none --fim_rate 0.9 --fim_tokens PREFIX SUFFIX MIDDLE
        python perf/infilling.py MODEL DATASET ADAPTER [NUMBER_OF_MIDDLES [TOKENS_AROUND_EACH]]
"""
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WAYS = ("text before alone", "marks, no suffix", "marks, suffix", "marks, another file's suffix")
RESAMPLES = 2000


def middles(tokenizer: object, files: object, number: int, size: int) -> list[tuple[str, str, str]]:
    """Return (before, behind, middle) of so many files, one each, from a piece of `size` tokens, in whose
    second third it lies."""
    import numpy as np

    from pipeline.fim.spans import draw_middle
    from pipeline.fim.syntax_units import UnitFinder
    from pipeline.training.sequences import encode_texts, files_in_random_order, text_of

    find, found = UnitFinder(), []
    for count, text in enumerate(files_in_random_order(files, seed=1)):
        generator, [ids] = np.random.default_rng([1, count]), encode_texts(tokenizer, [text])
        begin = int(generator.integers(max(1, len(ids) - size)))
        piece = text_of(tokenizer, ids[begin:begin + size])
        place, third = text.find(piece), len(piece) // 3
        units = [(b - place, e - place) for b, e in find(text, None) or []]
        if place >= 0 and (drawn := draw_middle(piece, third, 2 * third, generator, units)):
            _, first, last = drawn
            found.append((piece[:first], piece[last:], piece[first:last]))
        if len(found) == number:
            break
    return found


def main(model_name: str, dataset: str, adapter: str, number: int = 80, size: int = 320) -> None:
    """Print a row for each model and way: the loss a token of the middles, with its 95 % interval."""
    sys.path.insert(0, str(ROOT))
    import numpy as np
    import torch
    from datasets import load_from_disk
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from pipeline.model.tokenizers import encode_prompts, load_tokenizer
    from pipeline.prompts.fim_formats import encode_beginnings, encode_within, format_of_manifest

    begun, tokenizer = time.time(), load_tokenizer(model_name)
    manifest = json.loads((Path(adapter) / "manifest.json").read_text())
    form = format_of_manifest(manifest, tokenizer, model_name)
    examples = middles(tokenizer, load_from_disk(f"{dataset}/files")["test"], number, size)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.bfloat16),
                                      adapter).eval()

    def prompts(before: str, behind: str, other: str) -> list[list[int]]:
        [prefix] = encode_beginnings(tokenizer, [before])
        suffixes = encode_within(tokenizer, [behind, other])
        return [encode_prompts(tokenizer, [before])[0], form.prompt(prefix, []),
                *(form.prompt(prefix, suffix) for suffix in suffixes)]

    def losses(prompt: list[int], middle: list[int]) -> np.ndarray:
        ids = torch.tensor([[*prompt, *middle, form.end]])
        with torch.inference_mode():
            logits = model(input_ids=ids, logits_to_keep=len(middle) + 2).logits[0, :-1].float()
        return torch.nn.functional.cross_entropy(logits, ids[0, -len(middle) - 1:], reduction="none").numpy()

    # (model, way, file): nats of the middle, and of the end behind it
    nats, ends = np.zeros((2, len(WAYS), len(examples))), np.zeros((2, len(WAYS), len(examples)))
    [texts] = [encode_within(tokenizer, [middle for *_, middle in examples])]
    for i, (before, behind, _) in enumerate(examples):
        for way, prompt in enumerate(prompts(before, behind, examples[i - 1][1])):
            found = losses(prompt, texts[i])
            nats[1, way, i], ends[1, way, i] = found[:-1].sum(), found[-1]
            with model.disable_adapter():
                found = losses(prompt, texts[i])
            nats[0, way, i], ends[0, way, i] = found[:-1].sum(), found[-1]
    tokens = np.array([len(ids) for ids in texts])
    weights = np.random.default_rng(0).multinomial(len(tokens), np.ones(len(tokens)) / len(tokens), RESAMPLES)

    def shown(values: np.ndarray, by: np.ndarray) -> str:
        low, high = np.percentile((weights @ values) / (weights @ by), (2.5, 97.5))
        return f"{values.sum() / by.sum():.3f} [{low:.3f}, {high:.3f}]"

    one = np.ones(len(tokens))
    print(f"{len(examples)} middles, {tokens.sum()} tokens, in pieces of {size} tokens of {dataset}\n"
          "| model | asked with | loss of the middle, nats a token | less than with the text before alone | "
          "loss of the end |\n|---|---|---:|---:|---:|")
    for which, name in enumerate(("base", "taught")):
        for way, asked in enumerate(WAYS):
            print(f"| {name} | {asked} | {shown(nats[which, way], tokens)} | "
                  f"{shown(nats[which, 0] - nats[which, way], tokens)} | {shown(ends[which, way], one)} |")
    print(f"{time.time() - begun:.0f} s")


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5, 6):
        sys.exit(__doc__)
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))

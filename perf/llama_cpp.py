"""llama.cpp beside transformers: the same greedy text behind the prompts of a data set, in float32?

The model is a folder of `merge_lora.py --gguf --dtype float32`.  Both engines compute in float32, keys
and values too; sums are added in another order, so that two tokens that are as good as equal may change
places: where texts differ, the margin that the chosen token had in transformers' logits is printed.

Run:    python perf/llama_cpp.py --model models/merged --dataset data/kotlin_prepared_dataset
"""
import argparse
import os
import sys
from pathlib import Path

from measure import ROOT

sys.path.insert(0, str(ROOT))
import torch
import xllamacpp
from transformers import AutoModelForCausalLM

from pipeline.data.datasets import draw, load_examples
from pipeline.merging.gguf_file import GGUF_FILE
from pipeline.model.device import quiet_libraries
from pipeline.model.tokenizers import encode_prompts, load_tokenizer


def load_llama_cpp(file: Path, context: int, threads: int) -> xllamacpp.Server:
    """Return llama.cpp's server of a GGUF file, everything in float32, without flash attention."""
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel = str(file), context, 1
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    settings.warmup, settings.verbosity = False, 0
    return xllamacpp.Server(settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--max_new_tokens", type=int, default=32)
    args = parser.parse_args()
    quiet_libraries()
    tokenizer = load_tokenizer(str(args.model))
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    test = load_examples(args.dataset, ("test",), verify=False)["test"]
    prompts = [test[i]["prompt"] for i in draw(len(test), args.prompts, 0)]
    encoded = encode_prompts(tokenizer, prompts)
    server = load_llama_cpp(args.model / GGUF_FILE, max(map(len, encoded)) + args.max_new_tokens + 8,
                            int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    same = tokens = 0
    for prompt, ids in zip(prompts, encoded, strict=True):
        found = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=args.max_new_tokens,
                               pad_token_id=tokenizer.eos_token_id, output_logits=True,
                               return_dict_in_generate=True)
        text = tokenizer.decode(found.sequences[0, len(ids):], skip_special_tokens=True)
        answer = server.handle_completions({"prompt": prompt, "max_tokens": args.max_new_tokens,
                                            "temperature": 0.0, "cache_prompt": False})
        other = answer["choices"][0]["text"]
        tokens += answer["usage"]["prompt_tokens"] == len(ids)
        same += text == other
        if text != other:
            margins = [float(step[0].topk(2).values.diff().abs()) for step in found.logits]
            print(f"differs: smallest margin of a chosen token {min(margins):.4f}\n  transformers: {text!r}\n"
                  f"  llama.cpp:    {other!r}")
        print(f"{same} of {prompts.index(prompt) + 1}", file=sys.stderr, flush=True)
    print(f"{same} of {len(prompts)} texts of {args.max_new_tokens} tokens are the same, "
          f"{tokens} of {len(prompts)} prompts have as many tokens")


if __name__ == "__main__":
    main()

#!/usr/bin/env bash
# The whole pipeline on a CPU, without a hub or an account: five commands on a small model and a small code base.
# usage: demo/run.sh [--quick]        --quick: a few steps and examples, to see that it runs (no meaningful scores)
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=demo/output
train_samples=0 validation_samples=40 sample=60 eval_steps=40 epochs=2 new_tokens=0
if [ "${1:-}" = --quick ]; then
  out=demo/output/quick train_samples=8 validation_samples=4 sample=3 eval_steps=4 epochs=1 new_tokens=32
fi

show() { printf '\n$ python' >&2; printf ' %q' "$@" >&2; printf '\n' >&2; "$python" "$@"; }

# What the demo stands on: a model from PyPI, its own Kotlin as a git repository, Python methods from the standard library.
model=demo/output/SmolLM2-135M
show demo/fetch_model.py "$model"
rm -rf "$out/tideline"
mkdir -p "$out/tideline"
cp -r demo/kotlin/. LICENSE "$out/tideline"
git -C "$out/tideline" init -q -b main
git -C "$out/tideline" add -A
git -C "$out/tideline" -c user.name=demo -c user.email=demo@example.invalid -c commit.gpgsign=false commit -q -m "Tideline"
show demo/make_python_benchmark.py "$out/python_methods.jsonl"

show parse_data.py --repo_url "$out/tideline" --clone_path "$out/clone" --output_file "$out/raw.jsonl"
show preprocess_data.py --input_file "$out/raw.jsonl" --output_dir "$out/dataset" --model_name_or_path "$model" \
  --chunk_tokens 64 --test_fraction 0.2 --validation_fraction 0.1 --min_test_examples 0
show train.py --model_name_or_path "$model" --dataset "$out/dataset" --output_dir "$out/adapter" --overwrite \
  --quantization none --max_train_samples "$train_samples" --num_train_epochs "$epochs" --eval_steps "$eval_steps" \
  --max_validation_samples "$validation_samples"
show merge_lora.py --hf_repository "$out/adapter" --output_dir "$out/merged"
show benchmarking.py --hf_repository "$out/merged" --base_model "$model" --dataset "$out/dataset" \
  --codexglue_file "$out/python_methods.jsonl" --sample "$sample" \
  --max_new_tokens "$new_tokens" --output_dir "$out/results"

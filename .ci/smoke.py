"""What an installed wheel has to do in an empty environment: make a checkpoint, inspect it, generate from it.

Arguments: the `refdiff` command, and a folder that does not exist yet. Runs from a folder without the source.
"""

import subprocess
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import refdiff

command, folder = sys.argv[1], Path(sys.argv[2])
if "site-packages" not in Path(refdiff.__file__).parts:
    sys.exit(f"this is not the installed package: {refdiff.__file__}")
if not (Path(refdiff.__file__).parent / "py.typed").exists():
    sys.exit("the wheel has no py.typed")

tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
config = refdiff.DiffLlamaConfig(
    vocab_size=len(tokens),
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
)
refdiff.DiffLlamaForCausalLM.from_config(config).save_pretrained(folder)
tokenizer.save(str(folder / "tokenizer.json"))


def run(*arguments: str) -> str:
    quiet = {"check": True, "capture_output": True, "stdin": subprocess.DEVNULL, "encoding": "utf-8"}
    return subprocess.run([command, *arguments], **quiet).stdout


print(run("--version").strip())
print(*run("inspect", str(folder)).splitlines()[:2], sep="\n")
text = run("generate", "-m", str(folder), "-n", "5", "--ignore-eos", "hello")
again = run("generate", "-m", str(folder), "-n", "5", "--ignore-eos", "--no-stream", "hello")
if text != again or not text.endswith("\n"):
    sys.exit(f"streamed {text!r}, whole {again!r}")
run("attention", "-m", str(folder), "hello", "-o", str(folder / "page.html"))
if "</html>" not in (folder / "page.html").read_text(encoding="utf-8"):
    sys.exit("the page of refdiff attention is not whole")
told = run("generate", "-n", "20", "Once upon a time")  # by the package's own model
if len(told.split()) < 10:
    sys.exit(f"the package's own model says {told!r}")
print("the wheel works")

"""Language: LLaMAs of 8 and of 24 layers, with and without learned skips, on the manual of Perl.

    python models/reproduce/language.py DIR [--tool target/release/ancre-rewrite] [--only PART] [--seeds N] [--tables]
    python models/reproduce/language.py DIR --only 60M --text FILE|DIR --tokenizer tokenizer.json --device cuda

The protocol stands in docs/evidence.md. The text is Debian's package perl-doc (`apt-get download`; GPL-1+ or Artistic), the tokenizer is trained
on it. Prints the tables and draws docs/language.svg. `60M` is the paper's configuration, for one GPU and a text of one's own; it isn't made by default.
Needs torch, transformers, onnxscript and tokenizers, which make the models, besides what common.py needs.
"""

import json
import subprocess

import common

VARIANTS = {"default": "", "paper": "", "free": "", "softmax": "", **common.OTHERS}
LONG = {"default": "", "softmax": ""}
ONE = {"softmax": ""}
# A step of AdamW moves a logit by about the rate, which the softmax divides by its temperature.
TENTH = {"softmax-0.1": "--parametrization softmax --tau 0.1"}
INPUT = {name: common.OTHERS[name] for name in ("input", "input-0.1")}
DEEP = {"input-0.1": common.OTHERS["input-0.1"]}
TAUS = ONE | TENTH | DEEP | {"softmax-1": "--parametrization softmax --tau 1", "attention": ""}
# Part: layers, width, steps, rate, seeds, variants. Those from the sixth on ask what holds at other rates.
PARTS = {
    "8": (8, 48, 600, 3e-3, 3, VARIANTS),
    "24": (24, 48, 300, 3e-3, 3, VARIANTS | {"constant": ""}),
    "24-long": (24, 48, 2000, 3e-3, 3, LONG | INPUT),
    "8-long": (8, 48, 3000, 3e-3, 3, LONG | DEEP | {"paper": "", "attention": ""}),
    "8-wide": (8, 128, 1000, 3e-3, 2, LONG),
    "8-wide-slow": (8, 128, 1000, 1e-3, 2, ONE),
    "24-wide": (24, 128, 500, 3e-3, 2, ONE | DEEP),
    "8-fast": (8, 48, 600, 1e-2, 3, TAUS),
    "24-fast": (24, 48, 300, 1e-2, 3, TAUS),
    "8-faster": (8, 48, 600, 2e-2, 3, ONE),
    "24-faster": (24, 48, 300, 2e-2, 3, ONE),
    "8-wide-long": (8, 128, 3000, 5e-3, 3, TENTH | DEEP | {"paper": "", "attnres-blocks": common.OTHERS["attnres-blocks"]}),
    "24-long-fast": (24, 48, 2000, 1e-2, 3, ONE | TENTH | DEEP),
}
DRAWN = ("8", "24", "24-long", "8-long", "8-wide-long")
# Inner width and heads of a width.
SIZES = {48: (128, 3), 128: (344, 4)}
WINDOW, BATCH, VOCABULARY = 64, 8, 512
TRANSLATIONS = ("perlcn", "perljp", "perlko", "perltw")


def text(given):
    """The manual's pages, one after the other, in the order of their paths."""
    path = given.dir / "perl.txt"
    if not path.exists():
        subprocess.run(["apt-get", "download", "perl-doc"], cwd=given.dir, check=True)
        (package,) = given.dir.glob("perl-doc_*.deb")
        subprocess.run(["dpkg", "-x", package, given.dir / "perl-doc"], check=True)
        pages = sorted(p for p in (given.dir / "perl-doc").rglob("*.pod") if p.stem not in TRANSLATIONS)
        path.write_text("\n".join(p.read_text("utf-8", "replace") for p in pages))
    return path


def tokens(given):
    """Byte pairs of the text itself, and its tokens; the last hundredth is held back."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    source, words = text(given), given.dir / "tokenizer.json"
    if not words.exists():
        pairs = Tokenizer(models.BPE())
        pairs.pre_tokenizer, pairs.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False)
        pairs.train([str(source)], trainer)
        pairs.save(str(words))
    train, val = given.dir / "perl.bin", given.dir / "perl.val.bin"
    if not (train.exists() and val.exists()):
        command = [given.tool, "tokenize", source, "--tokenizer", words, "--val-split", 0.01, "-o", train]
        subprocess.run([str(w) for w in command], check=True)
    return train, val


def llama(path, layers, width, inner, heads, vocabulary, window, batch):
    """Writes a LLaMA with random weights as ONNX, for batches of one size."""
    if path.exists():
        return path
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    class Logits(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, input_ids):
            return self.net(input_ids=input_ids, use_cache=False).logits

    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "max_position_embeddings": window}
    config = LlamaConfig(vocab_size=vocabulary, num_attention_heads=heads, num_key_value_heads=heads, tie_word_embeddings=False, **sizes)
    net = Logits(LlamaForCausalLM(config)).eval()
    names = {"input_names": ["input_ids"], "output_names": ["logits"]}
    ids = torch.randint(0, vocabulary, (batch, window))
    torch.onnx.export(net, (ids,), path, dynamo=True, external_data=False, verbose=False, **names)
    return path


def small(given, part):
    layers, width, steps, rate, seeds, variants = PARTS[part]
    train, val = tokens(given)
    model = llama(given.dir / f"llama{layers}{'-wide' if width > 48 else ''}.onnx", layers, width, *SIZES[width], VOCABULARY, WINDOW, BATCH)
    course = ["--steps", steps, "--batch-size", BATCH, "--window", WINDOW, "--lr", rate, "--schedule", "cosine", "--warmup", steps // 20]
    options = ["--loss", "next-token", "--clip-norm", 1, "--data", train.resolve(), "--val", val.resolve(), *course]
    common.compare(given, f"llama-{part}", model, variants, min(seeds, given.seeds), options)


def large(given):
    """10,000 steps of 512 x 256 tokens, in eight parts of 64 windows each, at 5e-3, as the paper trains LLaMA-60M."""
    if not (given.text and given.tokenizer):
        raise SystemExit("60M needs --text (some billion tokens of it, the paper has C4) and --tokenizer (32,000 tokens, such as T5's)")
    model = llama(given.dir / "llama-60M.onnx", 8, 512, 1376, 8, 32_000, 256, 64)
    data = ["--data", given.text.resolve(), "--tokenizer", given.tokenizer.resolve(), "--val-split", 0.001]
    # Ten thousand updates are 80,000 micro-batches, which is what `train` counts.
    course = ["--accumulate", 8, "--steps", 80_000, "--batch-size", 64, "--window", 256, "--lr", 5e-3, "--schedule", "cosine", "--warmup", 8_000]
    common.compare(given, "llama-60M", model, {"paper": "", "free": ""}, 1, ["--loss", "next-token", "--precision", "bf16", "--target", "cuda", *data, *course])


def show(given):
    """The tables, and docs/language.svg: losses of the training's batches, which are new to the network, less those of `cascaded`."""
    panels = []
    for part, (layers, width, steps, rate, _, _) in PARTS.items():
        path = given.dir / f"llama-{part}/report.json"
        if not path.exists():
            continue
        sizes = f", width {width}" if width > 48 else ""
        report, title = json.loads(path.read_text()), f"{layers} layers{sizes}, {steps} steps{f', rate {rate:g}' if rate != 3e-3 else ''}"
        print(f"\n{title}\n\n{common.table(report, metrics=('perplexity',))}")
        if part not in DRAWN:
            continue
        curves = {}
        for variant in [v for v in common.SHOWN if common.values(report, v)]:
            curves[variant] = common.curve(given, f"llama-{part}", variant, common.values(report, variant), window=steps // 20)
        at, base = curves.pop("cascaded")
        lines = {v: (at, [a - b for a, b in zip(losses, base)]) for v, (_, losses) in curves.items()}
        panels.append({"title": title.split(", rate")[0], "x": "steps", "y": "loss less that of cascaded", "lines": lines, "limits": (-0.25, 0.25)})
    if panels:
        common.figure(common.DOCS / "language.svg", panels, 3.2)


def main():
    options = common.parser(__doc__, seeds=99)
    options.add_argument("--text", type=common.Path, help="of 60M")
    options.add_argument("--tokenizer", type=common.Path, help="of 60M")
    options.add_argument("--device", default="cpu", help="where to train")
    given = common.parsed(options)
    for part in [] if given.tables else given.only or PARTS:
        large(given) if part == "60M" else small(given, part)
    show(given)


if __name__ == "__main__":
    main()

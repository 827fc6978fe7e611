"""What quantisation costs and what `--qat` gives back: networks of this folder on the digits, quantised by ONNX Runtime's own tools.

    python models/tools/quantised.py DIR [--tool target/release/ancre-rewrite] [--threads N] [--only PART]
    python models/tools/quantised.py DIR --table

Each network is trained in float from fresh weights, quantised (with 128 training samples for ranges), and trained one epoch more with --qat. What is deployed is
measured: top-1 of the 360 held-back digits, by ONNX Runtime at its highest optimisation level. `kernels` says whether its optimised graph has the
same operators as that of the quantised file. DIR/results.jsonl gets a line for each file, and what stands there is not run again. Needs numpy, onnx,
onnx_ir and onnxruntime.
"""

import argparse
import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

HERE = Path(__file__).resolve().parent.parent
Q = QuantType
# Name: file, options of the main job, options of train.
NETWORKS = {
    "ResNet-8, 8x8": ("resnet_batch1", ["--classes", 10, "--batch", "dynamic"], ["--epochs", 4, "--lr", 4e-3]),
    "ResNet-20": ("resnet_cifar", [], ["--epochs", 3, "--lr", 3e-3]),
    "MobileNetV2": ("mobilenetv2", [], ["--epochs", 5, "--lr", 3e-3]),
    "ViT": ("vit", [], ["--epochs", 5, "--lr", 1e-3]),
    "MLP-Mixer": ("mixer", [], ["--epochs", 5, "--lr", 1e-3]),
}


def static(form, weights, values=Q.QUInt8, channels=False, only=None):
    def quantise(source, target, samples):
        options = {"quant_format": form, "per_channel": channels, "activation_type": values, "weight_type": weights, "op_types_to_quantize": only}
        quantize_static(source, target, samples, **options)

    return quantise


def dynamic(weights):
    return lambda source, target, _: quantize_dynamic(source, target, weight_type=weights)


def blocks(form, bits=4):
    """Weights of products only, in blocks of 32 that share a scale."""

    def quantise(source, target, _):
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        q = MatMulNBitsQuantizer(onnx.load(source), block_size=32, quant_format=form, bits=bits)
        q.process()
        q.model.save_model_to_file(target)

    return quantise


QDQ, OPERATORS = QuantFormat.QDQ, QuantFormat.QOperator
# Network, name of the way, and the way.
CASES = [
    ("ResNet-8, 8x8", "QDQ, int8 weights", static(QDQ, Q.QInt8)),
    ("ResNet-8, 8x8", "QDQ, int4 weights", static(QDQ, Q.QInt4)),
    ("ResNet-20", "QDQ, int8 weights", static(QDQ, Q.QInt8)),
    ("ResNet-20", "QOperator, uint8 weights", static(OPERATORS, Q.QUInt8)),
    ("ResNet-20", "QDQ, int4 weights per channel", static(QDQ, Q.QInt4, channels=True)),
    ("MobileNetV2", "QDQ, int8 weights", static(QDQ, Q.QInt8)),
    ("MobileNetV2", "QDQ, int8 weights per channel", static(QDQ, Q.QInt8, channels=True)),
    ("MobileNetV2", "QOperator, int8 values, per channel", static(OPERATORS, Q.QInt8, Q.QInt8, True)),
    ("ViT", "QDQ, int8 weights", static(QDQ, Q.QInt8)),
    ("ViT", "QDQ, 16-bit values, int4 weights per channel", static(QDQ, Q.QInt4, Q.QUInt16, True)),
    ("ViT", "dynamic, int8 weights", dynamic(Q.QInt8)),
    ("ViT", "MatMulNBits, 4 bits", blocks(OPERATORS)),
    # Its normalisations are written out, and a variance of 8 bits may be zero.
    ("MLP-Mixer", "QDQ, int8 weights, products only", static(QDQ, Q.QInt8, only=["Conv", "MatMul", "Gemm"])),
    ("MLP-Mixer", "QDQ, 4-bit weights in blocks", blocks(QDQ)),
]


def data(network):
    """Digits as the network's input has them."""
    out = {}
    for part in ("train", "val"):
        d = np.load(HERE / f"data/digits_{part}.npz")
        x = d["input"].astype(np.float32) / 255
        if "8x8" not in network:
            x = x.repeat(4, 2).repeat(4, 3).repeat(3, 1)
        out[part] = x, d["labels"]
    return out


class Samples(CalibrationDataReader):
    def __init__(self, name, x):
        self.all = iter([{name: x[i : i + 1]} for i in range(128)])

    def get_next(self):
        return next(self.all, None)


def session(path, optimised=None, level=ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
    o = ort.SessionOptions()
    o.graph_optimization_level, o.log_severity_level, o.intra_op_num_threads = level, 3, 1
    if optimised:
        o.optimized_model_filepath = str(optimised)
    return ort.InferenceSession(str(path), o, providers=["CPUExecutionProvider"])


def accuracy(path, x, labels):
    s = session(path)
    given, right = s.get_inputs()[0], 0
    size = len(x) if isinstance(given.shape[0], str) else given.shape[0]
    for at in range(0, len(x), size):
        logits = s.run(None, {given.name: x[at : at + size]})[0]
        right += int((logits.argmax(-1) == labels[at : at + size]).sum())
    return right / len(x)


def kernels(path, folder):
    optimised = folder / "optimised.onnx"
    session(path, optimised)
    nodes = onnx.load(optimised).graph.node
    # Layouts are chosen by shapes and processors.
    return Counter(n.op_type for n in nodes if n.op_type not in ("Reshape", "Transpose"))


class Run:
    def __init__(self, a):
        self.a, self.folder = a, Path(a.dir)
        self.results = self.folder / "results.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)

    def tool(self, *arguments):
        done = subprocess.run([str(c) for c in (self.a.tool, *arguments)], capture_output=True, text=True)
        if done.returncode not in (0,):
            raise RuntimeError(f"{arguments}: {done.stderr}")
        return done.stdout

    def trained(self, source, stem, network, options, train):
        """Rewrites, trains, deploys."""
        folder = self.folder / stem
        exported = folder / "deployed.onnx"
        if not exported.exists():
            folder.mkdir(exist_ok=True)
            self.tool(source, "--chains", "none", "--loss", "cross-entropy", "-o", folder / "m.onnx", "--verify", "none", *options)
            files = []
            for part, (x, labels) in data(network).items():
                files.append(folder / f"{part}.npz")
                np.savez(files[-1], input=x, labels=labels)
            runs = ["--data", files[0], "--val", files[1], "--schedule", "cosine", "--threads", self.a.threads]
            self.tool("train", folder / "m.train.onnx", *runs, *train, "--overwrite", "--out", folder / "run", "--export", exported, "--quiet")
        return exported

    def float(self, network):
        file, options, train = NETWORKS[network]
        stem = "float-" + file
        path = self.trained(HERE / f"{file}.onnx", stem, network, [*options, "--reinit", 0], train)
        folded = path.with_name("folded.onnx")
        if not folded.exists():
            # The quantiser wants batch norms folded and shapes known, and operator set 21 for 4 bits.
            session(path, folded, ort.GraphOptimizationLevel.ORT_ENABLE_BASIC)
            model = onnx.version_converter.convert_version(onnx.load(folded), 21)
            model.ir_version = 10
            onnx.save(onnx.shape_inference.infer_shapes(model), folded)
        return path, folded

    def case(self, network, way, quantise):
        x, labels = data(network)["val"]
        path, folded = self.float(network)
        stem = f"{NETWORKS[network][0]}-{way}".replace(" ", "_").replace(",", "")
        quantised = self.folder / f"{stem}.onnx"
        if not quantised.exists():
            name = session(folded).get_inputs()[0].name
            quantise(str(folded), str(quantised), Samples(name, data(network)["train"][0]))
        qat = self.trained(quantised, stem, network, ["--qat", *self.a.qat], ["--epochs", 1, "--lr", 5e-4, *self.a.train])
        same = kernels(quantised, self.folder) == kernels(qat, self.folder)
        return {
            "network": network, "way": way, "float": accuracy(path, x, labels), "quantised": accuracy(quantised, x, labels),
            "qat": accuracy(qat, x, labels), "kernels": same, "bytes": [os.path.getsize(p) for p in (folded, quantised, qat)],
        }  # fmt: skip

    def done(self):
        lines = self.results.read_text().splitlines() if self.results.exists() else []
        return [json.loads(line) for line in lines]

    def all(self):
        for network, way, quantise in CASES:
            if (self.a.only or "") not in f"{network} {way}" or any((r["network"], r["way"]) == (network, way) for r in self.done()):
                continue
            try:
                row = self.case(network, way, quantise)
            except Exception as e:
                print(network, way, "FAILED", str(e)[:2000], flush=True)
                continue
            with self.results.open("a") as f:
                f.write(json.dumps(row) + "\n")
            print(row, flush=True)

    def table(self):
        print("| network | quantised as | float | after quantisation | after `--qat` | same kernels |\n|---|---|---|---|---|---|")
        for r in self.done():
            percent = [f"{100 * r[k]:.1f}" for k in ("float", "quantised", "qat")]
            print("|", " | ".join([r["network"], r["way"], *percent, "yes" if r["kernels"] else "no"]), "|")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("dir")
    p.add_argument("--tool", default=str(HERE.parent / "target/release/ancre-rewrite"))
    p.add_argument("--threads", default=1)
    p.add_argument("--only", default="")
    p.add_argument("--qat", nargs="*", default=[], help="more options of the main job")
    p.add_argument("--train", nargs="*", default=[], help="more options of train")
    p.add_argument("--table", action="store_true")
    run = Run(p.parse_args())
    run.table() if run.a.table else run.all()

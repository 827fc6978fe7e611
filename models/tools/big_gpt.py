"""Writes a GPT-2-like language model of any size without PyTorch, for measurements: big_gpt.py OUT.onnx [--layers 12 --width 768
--vocab 8192 --base f32|f16|int8|int4]. Weights are random numbers in OUT.onnx.data. `--base` is how the blocks' matrices are stored: int8
behind DequantizeLinear with a scale for each column, int4 as MatMulNBits in blocks of 32."""
import argparse, math, os
import numpy as np, onnx
from onnx import TensorProto as T, helper as h, numpy_helper as nh


class Net:
    def __init__(self, base, seed=0):
        self.nodes, self.weights, self.base, self.random = [], [], base, np.random.default_rng(seed)
        self.float = np.float16 if base == "f16" else np.float32

    def add(self, name, array):
        self.weights.append(nh.from_array(np.ascontiguousarray(array), name))
        return name

    def op(self, op, inputs, out, **attributes):
        domain = attributes.pop("domain", "")
        self.nodes.append(h.make_node(op, inputs, [out] if isinstance(out, str) else out, name=f"/{out if isinstance(out, str) else out[0]}", domain=domain, **attributes))
        return out

    def table(self, name, shape, scale):
        return self.add(name, (self.random.standard_normal(shape) * scale).astype(self.float))

    def norm(self, x, name, width):
        ones, zeros = self.add(f"{name}.weight", np.ones(width, self.float)), self.add(f"{name}.bias", np.zeros(width, self.float))
        return self.op("LayerNormalization", [x, ones, zeros], f"{name}.out", axis=-1, epsilon=1e-5)

    def linear(self, x, name, k, n, scale):
        w = (self.random.standard_normal((k, n)) * scale).astype(np.float32)
        if self.base == "int8":
            s = (np.abs(w).max(0) / 127).astype(np.float32)
            self.add(f"{name}.weight_q", np.clip(np.round(w / s), -127, 127).astype(np.int8))
            self.add(f"{name}.scale", s), self.add(f"{name}.zero", np.zeros(n, np.int8))
            weight = self.op("DequantizeLinear", [f"{name}.weight_q", f"{name}.scale", f"{name}.zero"], f"{name}.weight", axis=1)
            y = self.op("MatMul", [x, weight], f"{name}.product")
        elif self.base == "int4":
            blocks = w.T.reshape(n, k // 32, 32)
            s = np.abs(blocks).max(-1, keepdims=True) / 7
            codes = (np.clip(np.round(blocks / s), -8, 7) + 8).astype(np.uint8)
            self.add(f"{name}.weight_q4", codes[..., ::2] | codes[..., 1::2] << 4), self.add(f"{name}.scale", s.astype(np.float32).ravel())
            y = self.op("MatMulNBits", [x, f"{name}.weight_q4", f"{name}.scale"], f"{name}.product", domain="com.microsoft", K=k, N=n, bits=4, block_size=32)
        else:
            y = self.op("MatMul", [x, self.add(f"{name}.weight", w.astype(self.float))], f"{name}.product")
        return self.op("Add", [y, self.add(f"{name}.bias", np.zeros(n, self.float))], f"{name}.out")


def write(path, layers=12, width=768, vocab=8192, base="f32", window=64, batch="batch"):
    net, heads = Net(base), width // 64
    ints = lambda name, *values: net.add(name, np.array(values, np.int64))
    ints("shape.heads", 0, 0, heads, 64), ints("shape.flat", 0, 0, width)
    net.add("causal", np.triu(np.full((window, window), -1e4 if base == "f16" else -1e9), 1).astype(net.float))
    net.add("root", np.array(1 / math.sqrt(64), net.float)), net.add("half", np.array(0.5, net.float)), net.add("one", np.array(1, net.float))
    net.add("sqrt_half", np.array(math.sqrt(0.5), net.float)), ints("positions", *range(window))
    tokens = net.op("Gather", [net.table("wte.weight", (vocab, width), 0.02), "ids"], "tokens")
    places = net.op("Gather", [net.table("wpe.weight", (window, width), 0.01), "positions"], "places")
    x = net.op("Add", [tokens, places], "h0")
    for i in range(layers):
        p = f"h.{i}"
        qkv = net.linear(net.norm(x, f"{p}.ln_1", width), f"{p}.attn.c_attn", width, 3 * width, 0.02)
        parts = net.op("Split", [qkv], [f"{p}.{n}" for n in "qkv"], axis=-1, num_outputs=3)
        q, k, v = [net.op("Transpose", [net.op("Reshape", [part, "shape.heads"], f"{part}.heads")], f"{part}.t", perm=perm) for part, perm in zip(parts, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]))]
        scores = net.op("Add", [net.op("Mul", [net.op("MatMul", [q, k], f"{p}.dots"), "root"], f"{p}.scaled"), "causal"], f"{p}.scores")
        mixed = net.op("MatMul", [net.op("Softmax", [scores], f"{p}.weights", axis=-1), v], f"{p}.mixed")
        flat = net.op("Reshape", [net.op("Transpose", [mixed], f"{p}.back", perm=[0, 2, 1, 3]), "shape.flat"], f"{p}.flat")
        x = net.op("Add", [x, net.linear(flat, f"{p}.attn.c_proj", width, width, 0.02 / math.sqrt(2 * layers))], f"{p}.mid")
        wide = net.linear(net.norm(x, f"{p}.ln_2", width), f"{p}.mlp.c_fc", width, 4 * width, 0.02)
        erf = net.op("Add", [net.op("Erf", [net.op("Mul", [wide, "sqrt_half"], f"{p}.arg")], f"{p}.erf"), "one"], f"{p}.gate")
        act = net.op("Mul", [net.op("Mul", [wide, erf], f"{p}.gated"), "half"], f"{p}.act")
        x = net.op("Add", [x, net.linear(act, f"{p}.mlp.c_proj", 4 * width, width, 0.02 / math.sqrt(2 * layers))], f"{p}.end")
    net.op("MatMul", [net.norm(x, "ln_f", width), net.table("lm_head.weight", (width, vocab), 0.02)], "logits")
    kind = T.FLOAT16 if base == "f16" else T.FLOAT
    graph = h.make_graph(net.nodes, "gpt", [h.make_tensor_value_info("ids", T.INT64, [batch, window])], [h.make_tensor_value_info("logits", kind, [batch, window, vocab])], net.weights)
    opsets = [h.make_opsetid("", 18)] + ([h.make_opsetid("com.microsoft", 1)] if base == "int4" else [])
    model = h.make_model(graph, opset_imports=opsets, ir_version=9)
    data = os.path.basename(path) + ".data"
    if os.path.exists(path + ".data"):
        os.remove(path + ".data")
    onnx.save(model, path, save_as_external_data=True, location=data, size_threshold=1024)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("out")
    for name, default in (("layers", 12), ("width", 768), ("vocab", 8192), ("window", 64)):
        p.add_argument(f"--{name}", type=int, default=default)
    p.add_argument("--base", default="f32", choices=["f32", "f16", "int8", "int4"])
    a = p.parse_args()
    write(a.out, a.layers, a.width, a.vocab, a.base, a.window)

"""Residual MLPs of any depth, with the blocks of the paper's reinforcement learning networks: four times Dense, LayerNorm, Swish.

    python models/tools/residual_mlp.py BLOCKS [--width 48] [--shape 1,8,8] [--outputs 10] [--norm] [-o mlp16.onnx]

Needs numpy and onnx. The weights are random (torch's defaults for a Linear); `ancre-rewrite compare --from-scratch` makes them anew.
"""

import argparse

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def build(blocks, width, inputs, outputs, norm):
    random = np.random.default_rng(0)
    nodes, initializers = [], []

    def tensor(name, value):
        initializers.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def dense(x, stem, n, m):
        bound = 1 / np.sqrt(n)
        w = tensor(f"{stem}.weight", random.uniform(-bound, bound, (m, n)))
        b = tensor(f"{stem}.bias", random.uniform(-bound, bound, m))
        nodes.append(helper.make_node("Gemm", [x, w, b], [stem], stem, transB=1))
        return stem

    def layer_norm(x, stem):
        scale, bias = tensor(f"{stem}.norm.weight", np.ones(width)), tensor(f"{stem}.norm.bias", np.zeros(width))
        nodes.append(helper.make_node("LayerNormalization", [x, scale, bias], [f"{stem}.norm"], f"{stem}.norm", axis=-1))
        return f"{stem}.norm"

    nodes.append(helper.make_node("Flatten", ["input"], ["flat"], "flat", axis=1))
    h = dense("flat", "stem", inputs, width)
    for k in range(blocks):
        x = h
        for j in range(4):
            stem = f"blocks.{k}.{j}"
            x = dense(x, stem, width, width)
            layer_norm(x, stem)
            nodes.append(helper.make_node("Sigmoid", [f"{stem}.norm"], [f"{stem}.gate"], f"{stem}.gate"))
            nodes.append(helper.make_node("Mul", [f"{stem}.norm", f"{stem}.gate"], [f"{stem}.swish"], f"{stem}.swish"))
            x = f"{stem}.swish"
        nodes.append(helper.make_node("Add", [h, x], [f"blocks.{k}.add"], f"blocks.{k}.add"))
        h = f"blocks.{k}.add"
    h = layer_norm(h, "last") if norm else h
    nodes.append(helper.make_node("Identity", [dense(h, "head", width, outputs)], ["scores"], "scores"))
    return nodes, initializers


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("blocks", type=int)
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--outputs", type=int, default=10)
    parser.add_argument("--shape", default="1,8,8", help="of a sample")
    parser.add_argument("--norm", action="store_true", help="normalise the last state before the head")
    parser.add_argument("-o", "--out")
    given = parser.parse_args()
    shape = [int(n) for n in given.shape.split(",")]
    nodes, initializers = build(given.blocks, given.width, int(np.prod(shape)), given.outputs, given.norm)
    x = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *shape])
    y = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", given.outputs])
    graph = helper.make_graph(nodes, f"residual_mlp_{given.blocks}", [x], [y], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, given.out or f"mlp{given.blocks}.onnx")


if __name__ == "__main__":
    main()

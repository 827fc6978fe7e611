"""Write and check the model files of this folder.

    python models/tools/files.py            check every file and the table of README.md
    python models/tools/files.py --write    the same, and renew the table

A file must pass ONNX's full check, be smaller than 1 MB, and give finite
values in ONNX Runtime on random inputs. Needs onnx, onnxruntime and numpy.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

HERE = Path(__file__).resolve().parent.parent
README = HERE / "README.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
LARGEST = 1_000_000
NOTES = ("source", "exporter", "parameters", "residual", "licence")


# --- writing -----------------------------------------------------------------


def strip(proto):
    """Drop doc strings and per-node metadata (source paths, stack traces)."""
    proto.doc_string = ""
    del proto.metadata_props[:]
    graphs = [proto.graph, *proto.functions]
    while graphs:
        graph = graphs.pop()
        graph.doc_string = ""
        del graph.metadata_props[:]
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
            for attribute in node.attribute:
                attribute.doc_string = ""
                if attribute.type == onnx.AttributeProto.GRAPH:
                    graphs.append(attribute.g)
        if isinstance(graph, onnx.GraphProto):
            values = [graph.input, graph.output, graph.value_info, graph.initializer]
            for value in (v for group in values for v in group):
                value.doc_string = ""
                del value.metadata_props[:]


def save(name, proto, **notes):
    """Strip the model, add the NOTES as its metadata, check it and write it."""
    strip(proto)
    notes["licence"] = "random weights, no data set"
    onnx.helper.set_model_props(proto, {key: str(notes[key]) for key in NOTES})
    path = HERE / f"{name}.onnx"
    path.write_bytes(proto.SerializeToString(deterministic=True))
    check(path)
    print(f"{path.name}: {path.stat().st_size} bytes", flush=True)


# --- checking ----------------------------------------------------------------


def session(proto):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def random_feeds(inputs, batch, sequence, past):
    """Random values for a session's inputs, of the given symbolic sizes."""
    sizes = {
        "batch": batch,
        "sequence": sequence,
        "past_sequence": past,
        "past_sequence + sequence": past + sequence,
    }
    rng = np.random.default_rng(0)
    feeds = {}
    for value in inputs:
        shape = [d if isinstance(d, int) else sizes[d] for d in value.shape]
        if value.type == "tensor(float)":
            feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
        elif "mask" in value.name:
            feeds[value.name] = np.ones(shape, np.int64)
        else:  # ids: of tokens, of token types, of classes
            high = 2 if "type" in value.name else 10
            feeds[value.name] = rng.integers(0, high, shape)
    return feeds


def check(path):
    size = path.stat().st_size
    assert size < LARGEST, f"{path.name}: {size} bytes"
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    run = session(proto)
    for batch, sequence, past in [(1, 1, 6), (3, 9, 4)]:
        feeds = random_feeds(run.get_inputs(), batch, sequence, past)
        for value, output in zip(run.get_outputs(), run.run(None, feeds)):
            assert np.isfinite(output).all(), f"{path.name}: {value.name} not finite"
            assert output.std() > 1e-3, f"{path.name}: {value.name} is constant"
    return proto


def row(path):
    proto = check(path)
    notes = {p.key: p.value for p in proto.metadata_props}
    opsets = {o.domain: o.version for o in proto.opset_import}
    cells = [
        path.name,
        notes["source"],
        notes["exporter"],
        str(opsets[""]),
        f"{int(notes['parameters']):,}",
        f"{path.stat().st_size:,}",
        notes["residual"],
        notes["licence"],
        f"`{hashlib.sha256(path.read_bytes()).hexdigest()}`",
    ]
    return "| " + " | ".join(cells) + " |\n"


def table():
    heads = (
        "File | Source | Exporter | Opset | Parameters | Bytes | "
        "Residual structure | Licence | SHA-256"
    )
    rule = "|".join("---:" if h in ("Opset", "Parameters", "Bytes") else "---"
                    for h in heads.split(" | "))
    rows = [row(path) for path in sorted(HERE.glob("*.onnx"))]
    return f"| {heads} |\n|{rule}|\n" + "".join(rows)


def main(write):
    text = README.read_text()
    head, rest = text.split(BEGIN)
    old, tail = rest.split(END)
    new = table()
    if write:
        README.write_text(head + BEGIN + new + END + tail)
    elif old != new:
        sys.exit("the table of README.md does not describe the files")
    total = sum(path.stat().st_size for path in HERE.glob("*.onnx"))
    print(f"{len(list(HERE.glob('*.onnx')))} files, {total} bytes: all checks passed")


if __name__ == "__main__":
    main("--write" in sys.argv[1:])

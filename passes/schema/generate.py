"""Writes passes/src/onnx/schema/table.rs: what onnx.defs says of every version of every operator.

    python3 passes/schema/generate.py             writes the table
    python3 passes/schema/generate.py --check     complains if the table is not what would be written

Both need the packages pinned below. With --install they come from pip, into passes/schema/.packages.
The operators of ONNX Runtime's own domain are those of its pinned wheel. To move to another onnx, change the pin,
run the script, and look through the exceptions in passes/src/onnx/schema/meaning.rs.
"""

import argparse
import json
import pathlib
import struct
import subprocess
import sys

ONNX, ONNXRUNTIME = "1.23.2", "1.32.0"
HERE = pathlib.Path(__file__).resolve().parent
TABLE = HERE.parent / "src/onnx/schema/table.rs"
PACKAGES = HERE / ".packages"

CONTRIB = "com.microsoft"
# An operator of the standard domain that only ONNX Runtime has; exporters write it.
ONLY_RUNTIME = {"SimplifiedLayerNormalization"}

# Element types by their numbers in TensorProto.DataType, as the bits of a mask. The last bit stands for sequences, maps and
# optional values.
TENSORS = (
    "float uint8 int8 uint16 int16 int32 int64 string bool float16 double uint32 uint64 complex64 complex128 bfloat16"
    " float8e4m3fn float8e4m3fnuz float8e5m2 float8e5m2fnuz uint4 int4 float4e2m1 float8e8m0 uint2 int2 float6e2m3 float6e3m2"
).split()
OTHER = 31


def mask(types):
    bits = 0
    for t in types:
        inner = t.removeprefix("tensor(").removesuffix(")")
        bits |= 1 << (TENSORS.index(inner) + 1 if t.startswith("tensor(") else OTHER)
    return f"{bits:#x}"


def text(s):
    return json.dumps(s.decode() if isinstance(s, bytes) else s)


def number(f):
    """The shortest decimal that is this float32."""
    for digits in range(1, 10):
        s = f"{f:.{digits}g}"
        if struct.pack("f", float(s)) == struct.pack("f", f):
            return s if any(c in s for c in ".e") else s + ".0"
    raise ValueError(f)


def listed(items):
    return "&[" + ", ".join(items) + "]"


def default(onnx, message):
    """A default in Rust, or none: lists and tensors have none that says anything."""
    kinds = onnx.AttributeProto
    if message.type == kinds.INT:
        return f"Int({message.i})"
    if message.type == kinds.FLOAT:
        return f"Float({number(message.f)})"
    if message.type == kinds.STRING:
        return f"Str({text(message.s)})"
    if message.type == kinds.INTS:
        return "Ints(" + listed(str(i) for i in message.ints) + ")"
    if message.type == kinds.STRINGS:
        return "Strs(" + listed(text(s) for s in message.strings) + ")"
    return None


def attribute(onnx, a):
    message = a.default_value if hasattr(a, "default_value") else onnx.AttributeProto.FromString(a._default_value)
    value = default(onnx, message)
    kind = str(a.type).split(".")[-1].replace("AttrType", "")
    kind = {"SPARSE_TENSOR": "SparseTensor", "TYPE_PROTO": "TypeProto"}.get(kind, kind.capitalize())
    if a.required:
        return f"must({text(a.name)}, Kind::{kind})"
    return f"may({text(a.name)}, Kind::{kind})" if value is None else f"or({text(a.name)}, {value})"


def formal(f):
    how = str(f.option).split(".")[-1]
    return f"{ {'Single': 'one', 'Optional': 'opt', 'Variadic': 'many'}[how] }({text(f.name)}, {text(f.type_str if hasattr(f, 'type_str') else f.typeStr)})"


def row(onnx, s, function):
    flags = ("DEPRECATED" if s.deprecated else "") or ("FUNCTION" if function else "0")
    types = (f"({text(c.type_param_str)}, {mask(c.allowed_type_strs)})" for c in s.type_constraints)
    attributes = (attribute(onnx, a) for _, a in sorted(s.attributes.items()))
    parts = [listed(map(formal, s.inputs)), listed(map(formal, s.outputs)), listed(types), listed(attributes)]
    return f"    schema({text(s.domain)}, {text(s.name)}, {s.since_version}, {flags}, {', '.join(parts)}),\n"


def table():
    import onnx
    import onnxruntime
    from onnx import defs, helper
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    for module, pinned in ((onnx, ONNX), (onnxruntime, ONNXRUNTIME)):
        if module.__version__ != pinned:
            sys.exit(f"{module.__name__} is {module.__version__}, {pinned} is wanted: --install")
    has_body = lambda s: s.has_function or s.has_context_dependent_function
    rows = [(s, has_body(s)) for s in defs.get_all_schemas_with_history()]
    runtime = (s for s in get_all_operator_schema() if s.domain == CONTRIB or (s.domain == "" and s.name in ONLY_RUNTIME))
    rows += [(s, False) for s in runtime]
    rows.sort(key=lambda r: (r[0].domain, r[0].name, r[0].since_version))
    versions = sorted((v, ir) for (domain, v), ir in helper.OP_SET_ID_VERSION_MAP.items() if domain == "ai.onnx")
    out = [
        f"//! Written by passes/schema/generate.py from onnx {ONNX} and onnxruntime {ONNXRUNTIME}; change nothing here.\n\n",
        "use super::{DEPRECATED, FUNCTION, Kind, Schema, Value::*, many, may, must, one, opt, or, schema};\n\n",
        "/// The newest operator set of the standard domain.\n",
        f"pub(super) const NEWEST: i64 = {defs.onnx_opset_version()};\n\n",
        "/// The newest version of the file format.\n",
        f"pub(super) const NEWEST_IR: i64 = {onnx.IR_VERSION};\n\n",
        "/// Operator sets of the standard domain, each with the version of the file format that it came with.\n",
        f"pub(super) static IR_VERSIONS: &[(i64, i64)] = {listed(f'({v}, {ir})' for v, ir in versions)};\n\n",
        "/// Every version of every operator, by domain, name and version.\n",
        "pub(super) static SCHEMAS: &[Schema] = &[\n",
    ]
    return "".join(out + [row(onnx, s, function) for s, function in rows] + ["];\n"])


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--check", action="store_true", help="compare, write nothing")
    options.add_argument("--install", action="store_true", help="take the pinned packages from pip")
    chosen = options.parse_args()
    if chosen.install:
        if not (PACKAGES / f"onnx-{ONNX}.dist-info").exists() or not (PACKAGES / f"onnxruntime-{ONNXRUNTIME}.dist-info").exists():
            wanted = [f"onnx=={ONNX}", f"onnxruntime=={ONNXRUNTIME}"]
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(PACKAGES)]
            subprocess.run(pip + wanted, check=True)
        sys.path.insert(0, str(PACKAGES))
    written = table()
    if not chosen.check:
        TABLE.write_text(written)
    elif TABLE.read_text() != written:
        sys.exit(f"{TABLE} is not what {sys.argv[0]} writes: run it without --check and look at the difference")


if __name__ == "__main__":
    main()

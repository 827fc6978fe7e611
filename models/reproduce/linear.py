"""Deep linear networks by gradient descent, with fixed and with learned shortcuts, through emitted training graphs.

    python models/reproduce/linear.py DIR [--tool target/release/ancre-rewrite] [--only K] [--check CURVES.npz]

The protocol stands in docs/evidence.md. Prints the tables and draws docs/linear.svg. `--check` compares with curves of another
implementation: w1 … wK, x, y and a loss every so many steps, under the names k3/x, k3/full/y, k3/full/0:1/loss.
"""

import json
import subprocess
import time

import common
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

WIDTH, LR, STEPS, EVERY, LOW_RANK, SEEDS = 10, 0.05, 6000, 10, 6, 3
DEPTHS, TAUS, DEVIATION = (3, 5, 8), (0.01, 0.1, 1), 0.05
OTHERS = {
    "free": "free",
    "deltas": "free --sources deltas",
    "dense": "free --dilation 2 --period 2",
    "attention": "attention",
    "input, τ = 1": "softmax --tau 1 --form input",
    "DenseFormer": "free --dilation 2 --period 2 --form input",
    "attention residuals": "attention --form input --sources deltas",
    "attention residuals in blocks of 2": "attention --form input --sources deltas --summaries 2",
}
FLOOR = 1e-10


def shortcuts(name, depth):
    """The fixed shortcuts i:k of a name; those of `cascaded` for rules that take their places."""
    if name == "none":
        return []
    if ":" in name:
        return [tuple(map(int, pair.split(":"))) for pair in name.split("+")]
    return [(k - 1, k) for k in range(1, depth)]


def network(path, depth, edges):
    """h_k = h_{k-1} W_kᵀ + the states that lead to k; a row is a sample."""
    nodes, state = [], ["x"]
    for k in range(1, depth + 1):
        parts = [i for i, to in edges if to == k]
        value = f"h{k}" if not parts else f"z{k}"
        nodes.append(helper.make_node("MatMul", [state[-1], f"w{k}"], [value], f"layer{k}"))
        for n, i in enumerate(parts):
            total = f"h{k}" if n == len(parts) - 1 else f"z{k}.{n}"
            nodes.append(helper.make_node("Add", [value, state[i]], [total], f"skip{i}.{k}"))
            value = total
        state.append(f"h{k}")
    nodes.append(helper.make_node("Identity", [state[-1]], ["y"], "y"))
    # Numbers that differ, so that no two layers are one tensor.
    random = np.random.default_rng(0)
    weights = [numpy_helper.from_array(random.normal(size=(WIDTH, WIDTH)).astype(np.float32), f"w{k}") for k in range(1, depth + 1)]
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", WIDTH]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "linear", value[:1], value[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)


def training_graph(given, depth, name, edges, options):
    """A session of the emitted training graph, and its state's names."""
    folder = given.dir / f"k{depth}-{name.replace(':', '.')}"
    if not (folder / "net.ancre.train.onnx").exists():
        folder.mkdir(parents=True, exist_ok=True)
        network(folder / "net.onnx", depth, edges)
        command = [given.tool, folder / "net.onnx", "-o", f"{folder}/", "--loss", "mse", "--reduction", "sum", "--optimizer", "sgd", "--json", *options]
        said = subprocess.run([str(w) for w in command], check=True, stdout=subprocess.PIPE, text=True)
        (folder / "report.json").write_text(said.stdout)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    first = onnxruntime.InferenceSession(folder / "net.ancre.init.onnx", options, providers=["CPUExecutionProvider"])
    start = dict(zip([o.name for o in first.get_outputs()], first.run(None, {})))
    return onnxruntime.InferenceSession(folder / "net.ancre.train.onnx", options, providers=["CPUExecutionProvider"]), start


def descend(session, start, weights, x, y, steps, every):
    """The loss every so many steps, before the update, and the logits at the end. Columns of x and y are samples."""
    state = start | {f"w{k}": np.ascontiguousarray(w.T, np.float32) for k, w in enumerate(weights, 1)}
    # The mean of squares' gradient is twice that of half the sum.
    fixed = {"x": x.T.astype(np.float32).copy(), "target": y.T.astype(np.float32).copy(), "lr": np.array(LR / 2, np.float32)}
    names = [n + ".next" for n in state]
    losses = []
    for step in range(steps + 1):
        loss, *values = session.run(["loss", *names], fixed | state)
        if step % every == 0:
            losses.append(float(loss) / 2)
            if not np.isfinite(losses[-1]):
                break
        state = dict(zip(state, values))
    return np.array(losses), next((v for n, v in state.items() if n.endswith(".logits")), None)


def problem(depth, seed):
    random = np.random.default_rng([seed, depth])
    weights = [DEVIATION * random.normal(size=(WIDTH, WIDTH)) for _ in range(depth)]
    x = np.eye(WIDTH)[random.permutation(WIDTH)] * random.choice([-1.0, 1.0], WIDTH)
    y = random.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5
    u, s, v = np.linalg.svd(y)
    return weights, x, {"full": y, "low rank": (u * np.where(np.arange(WIDTH) < LOW_RANK, s, 0)) @ v}


def adversarial(seed):
    """Three layers whose 0:1 product has to shrink: a balanced start, and a target of zero."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(WIDTH, WIDTH)))
    return [np.zeros((WIDTH, WIDTH)), 0.3 * q, 0.3 * q.T], np.eye(WIDTH), {"adversarial": np.zeros((WIDTH, WIDTH))}


def fit(losses):
    """Exponential and power-law fits to the second half of a curve, down to FLOOR of its start, over t = rate · steps."""
    t, good = LR * EVERY * np.arange(len(losses)), losses > FLOOR * losses[0]
    end = len(good) if good.all() else int(np.argmin(good))
    if not np.isfinite(losses).all():
        return {"kind": "diverged"}
    below = np.flatnonzero(losses < 1e-3 * losses[0])
    found = {"steps": int(below[0]) * EVERY if len(below) else None, "end": float(losses[-1] / losses[0])}
    lo = max(1, end // 2)
    log = np.log(losses[lo:end])
    if end - lo < 3:
        return found | {"kind": "too fast to fit"}

    def line(u):
        slope, offset = np.polyfit(u, log, 1)
        return -slope, 1 - ((log - slope * u - offset) ** 2).sum() / max(((log - log.mean()) ** 2).sum(), 1e-300)

    (rate, by_rate), (power, by_power) = line(t[lo:end]), line(np.log(t[lo:end]))
    kind = "stalled" if log[0] - log[-1] < 0.02 else "linear" if by_rate > by_power else "power law"
    return found | {"kind": kind, "rate": rate, "power": power}


def topologies(depth, shapes=None):
    """{name: (fixed shortcuts, options of the router)}."""
    fixed = shapes or ["0:1", "1:2", f"0:{depth - 1}", "cascaded"]
    out = {name: (shortcuts(name, depth), ["--chains", "none"]) for name in dict.fromkeys(fixed)}
    cascaded = shortcuts("cascaded", depth)
    if not shapes:
        out["all"] = cascaded, ["--parametrization", "constant"]
    out |= {f"ANCRe, τ = {tau}": (cascaded, ["--parametrization", "softmax", "--tau", str(tau)]) for tau in TAUS}
    return out | {name: (cascaded, ["--parametrization", *words.split()]) for name, words in OTHERS.items()}


def describe(fits):
    """A cell of the table: what the runs of all seeds were."""
    kinds = [f["kind"] for f in fits]
    text = []
    for kind in dict.fromkeys(kinds):
        of = [f for f in fits if f["kind"] == kind]
        figure = {"linear": ("r", "rate"), "power law": ("p", "power")}.get(kind)
        values = sorted(f[figure[1]] for f in of) if figure else []
        span = f"{common.number(values[0])}" + (f"–{common.number(values[-1])}" if len(values) > 1 else "") if figure else ""
        text.append((f"{len(of)}× " if len(dict.fromkeys(kinds)) > 1 else "") + kind + (f", {figure[0]} = {span}" if figure else ""))
    return "; ".join(text)


def steps(fits):
    found = [f.get("steps") for f in fits]
    known = sorted(s for s in found if s is not None)
    text = "–" if not known else str(known[0]) + (f"–{known[-1]}" if known[-1] > known[0] else "")
    missed = len(found) - len(known)
    return text + (f", {missed} of {len(found)} never" if known and missed else "")


def check(given):
    """Curves of another implementation in float64, while the loss is above 1e-3."""
    golden = np.load(given.check)
    for depth in (3, 4):
        weights = [golden[f"k{depth}/w{k}"] for k in range(1, depth + 1)]
        for target in ("full", "low_rank"):
            for name in dict.fromkeys(("none", "0:1", "0:2", f"0:{depth - 1}", "cascaded", "ancre", "ancre_tau1")):
                key = f"k{depth}/{target}/{name}"
                learned = {"ancre": 0.01, "ancre_tau1": 1}.get(name)
                options = ["--parametrization", "softmax", "--tau", str(learned)] if learned else ["--chains", "none"]
                session, start = training_graph(given, depth, name, shortcuts(name, depth), options)
                expected = golden[f"{key}/loss"]
                losses, _ = descend(session, start, weights, golden[f"k{depth}/x"], golden[f"k{depth}/{target}/y"], 1000, EVERY)
                expected = expected[: len(losses)]
                high = expected[: len(losses)] > 1e-3
                print(f"{key}: relative difference {np.max(np.abs(losses / expected - 1)[high]):.1e} over {high.sum() * EVERY} steps")


def main():
    options = common.parser(__doc__)
    options.add_argument("--check", help="curves to compare with; nothing else is run")
    given = common.parsed(options)
    if given.check:
        return check(given)
    kept = given.dir / "curves.json"
    curves = json.loads(kept.read_text()) if kept.exists() else {}
    cases = {f"{depth}": (depth, lambda seed, depth=depth: problem(depth, seed), topologies(depth)) for depth in DEPTHS}
    cases["adversarial"] = 3, adversarial, topologies(3, ["0:1", "0:2", "cascaded"])
    for case, (depth, make, rules) in cases.items():
        if given.only and case not in given.only:
            continue
        began = time.monotonic()
        for name, (edges, words) in rules.items():
            session = None
            for seed in range(SEEDS):
                weights, x, targets = make(seed)
                for target, y in targets.items():
                    key = f"{case}|{target}|{name}|{seed}"
                    if key not in curves:
                        session = session or training_graph(given, depth, name.replace(", τ = ", "-").replace(" ", "-"), edges, words)
                        losses, logits = descend(*session, weights, x, y, STEPS, EVERY)
                        curves[key] = {"losses": losses.tolist(), "logits": None if logits is None else logits.tolist()}
        kept.write_text(json.dumps(curves))
        print(f"{case}: {time.monotonic() - began:.0f} s", flush=True)
    tables(cases, curves)
    draw(curves)


def tables(cases, curves):
    for case, (_, make, rules) in cases.items():
        targets = list(make(0)[2])
        print(f"\n{case}\n\n| shortcuts | " + " | ".join(f"{t} | steps to 1e-3" for t in targets) + " |\n| --- |" + " --- | --: |" * len(targets))
        for name in rules:
            cells = []
            for target in targets:
                fits = [fit(np.array(curves[k]["losses"])) for s in range(SEEDS) if (k := f"{case}|{target}|{name}|{s}") in curves]
                cells += [describe(fits), steps(fits)] if fits else ["not run", ""]
            print(f"| {name} | " + " | ".join(cells) + " |")


def draw(curves):
    panels = []
    shown = ("3", "full", "K = 3, full rank"), ("3", "low rank", "K = 3, rank 6"), ("8", "full", "K = 8, full rank")
    for case, target, title in (*shown, ("adversarial", "adversarial", "K = 3, adversarial")):
        lines = {}
        for key, run in curves.items():
            at, of, name, seed = key.split("|")
            if (at, of, seed) == (case, target, "0") and name not in OTHERS:
                label = {"0:2": "0:K-1", "0:7": "0:K-1"}.get(name, name)
                y = np.array(run["losses"]) / run["losses"][0]
                x = EVERY * np.arange(len(y))
                every = np.unique(np.geomspace(1, len(y), 40).astype(int)) - 1
                keep = every[(y[every] > 1e-12) & np.isfinite(y[every])]
                lines[label] = x[keep] + EVERY, y[keep]
        if lines:
            panels.append({"title": title, "x": "steps", "y": "loss / first loss", "log": "xy", "lines": lines, "limits": (1e-11, 10)})
    if panels:
        common.figure(common.DOCS / "linear.svg", panels, 2.9)


if __name__ == "__main__":
    main()

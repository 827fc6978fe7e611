"""Golden values of the router's rules, in float64 from the formulas. Needs numpy.

    python tests/rules/make.py        # writes tests/rules/golden.npz

K = 4 blocks over states h_0 … h_3 [2, 3, 5]. For each rule: the parameters, the routes r_k = Σ_i w_{k,i} s_i of the rows that have one, and
the gradients of L = Σ_k ⟨c_k, r_k⟩ with respect to parameters and states, by central differences in float64 (error about 1e-9).

    s_i = h_i, or with deltas s_0 = h_0, s_i = h_i − h_{i−1}
    free       w = c
    softmax    w = softmax(c / τ)
    gated      w: r_k = h_{k−1} + a_k (Σ softmax(c/τ)_i s_i − h_{k−1})
    constant   w = 1 / k
    attention  w_i = softmax_i ⟨q_k, s_i / √(mean(s_i²) + 1e-6)⟩ at each position

With summaries N (attention residuals in blocks, arXiv 2603.15031) a row sums up b_0 = h_0, what each whole block of N before it added,
b_n = h_{nN} − h_{(n−1)N}, and what its own block has added so far, if anything; without deltas h_0, h_N, … and the nearest state.
"""

from pathlib import Path

import numpy as np

K, SHAPE, TAU = 4, (2, 3, 5), 0.5
RULES = {
    "free_deltas": ("free", True, 1, 1, 1),
    "softmax_deltas": ("softmax", True, 1, 1, 1),
    "gated_deltas": ("gated", True, 1, 1, 1),
    "constant_deltas": ("constant", True, 1, 1, 1),
    "attention_states": ("attention", False, 1, 1, 1),
    "attention_deltas": ("attention", True, 1, 1, 1),
    "free_dilation": ("free", False, 2, 1, 1),
    "free_period": ("free", False, 1, 2, 1),
    "free_dilation_period": ("free", False, 2, 2, 1),
    "attention_blocks": ("attention", False, 1, 1, 2),
    "attention_blocks_deltas": ("attention", True, 1, 1, 2),
    "free_blocks": ("free", False, 1, 1, 2),
}

# Networks of form `input`: block k gives h_k = r_k + tanh(r_k W_k), and the sources of r_k are the states, or with deltas h_0 and what the
# blocks before added to what they read, h_i − r_i, in sums over whole blocks of N and what the own block has so far.
NETWORKS = {
    "input_dense": ("free", False, 1, 1, 1),
    "input_dense_sparse": ("free", False, 2, 2, 1),
    "input_softmax": ("softmax", False, 1, 1, 1),
    "input_gated": ("gated", False, 1, 1, 1),
    "input_softmax_deltas": ("softmax", True, 1, 1, 1),
    "input_attention_deltas": ("attention", True, 1, 1, 1),
    "input_attention_blocks": ("attention", True, 1, 1, 2),
}


def softmax(z):
    e = np.exp(z - z.max(0))
    return e / e.sum(0)


def sources(h, deltas, block):
    """What a row sums up of the states up to its nearest, h."""
    whole, own = divmod(len(h) - 1, block)
    ends = [h[n * block] for n in range(whole + 1)] + ([h[-1]] if own else [])
    return [ends[0]] + [b - a for a, b in zip(ends, ends[1:])] if deltas else ends


def has_route(rule, period, row):
    """A first row that only reads h_0 has no route but under `free`."""
    return row % period == 0 and (row > 0 or rule == "free")


def route(rule, dilation, block, row, s, nearest, parameters):
    """The sum of a row over its sources s."""
    if rule == "attention":
        normed = [x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) for x in s]
        w = softmax(np.stack([(n * parameters["query"][row]).sum(-1, keepdims=True) for n in normed]))
    elif rule == "constant":
        w = np.full(row + 1, 1 / (row + 1))
    else:
        c = parameters["logits"][row, : row + 1]
        w = c * [(row - i) % dilation == 0 for i in range(row + 1)] if rule == "free" else softmax(c / TAU)
        w = w[[i for i in range(row + 1) if i % block == 0 or i == row]]
    r = sum(a * x for a, x in zip(w, s))
    return nearest + parameters["gate"][row] * (r - nearest) if rule == "gated" else r


def routes(rule, deltas, dilation, period, block, states, parameters):
    """{row: r}, rows from 0."""
    rows = [row for row in range(K) if has_route(rule, period, row)]
    of = lambda row: sources(states[: row + 1], deltas, block)
    return {row: route(rule, dilation, block, row, of(row), states[row], parameters) for row in rows}


def network(rule, deltas, dilation, period, block, h0, parameters):
    """h_K of a network of form `input`."""
    states, added = [h0], []
    for row in range(K):
        own = [sum(added[i : i + block]) for i in range(0, len(added), block)]
        s = [h0, *own] if deltas else states
        r = route(rule, dilation, block, row, s, states[row], parameters) if has_route(rule, period, row) else states[row]
        states.append(r + np.tanh(r @ parameters[f"w{row}"]))
        added.append(states[-1] - r)
    return states[-1]


def gradient(loss, x, step=1e-5):
    g = np.zeros_like(x)
    for i in np.ndindex(*x.shape):
        kept = x[i]
        x[i] = kept + step
        up = loss()
        x[i] = kept - step
        g[i] = (up - loss()) / (2 * step)
        x[i] = kept
    return g


def parameters_of(rule, dilation, period, block, normal):
    parameters = {"query": normal(K, SHAPE[-1])} if rule == "attention" else {"logits": np.tril(normal(K, K))}
    if "logits" in parameters:
        # What no row reads is stored as 0.
        read = lambda row, i: row % period == 0 and i <= row and (row - i) % dilation == 0 and (i % block == 0 or i == row)
        parameters["logits"] *= np.array([[read(row, i) for i in range(K)] for row in range(K)])
    if rule == "gated":
        parameters["gate"] = normal(K)
    if rule == "constant":
        parameters["logits"] = np.tril(np.ones((K, K))) / np.arange(1, K + 1)[:, None]
    return parameters


def main():
    arrays = {}
    for number, (name, (rule, deltas, dilation, period, block)) in enumerate(RULES.items()):
        random = np.random.default_rng(number)
        # Single precision holds them exactly, so that both sides compute with the same numbers.
        normal = lambda *shape: random.normal(size=shape).astype(np.float32).astype(np.float64)
        states, cts = [normal(*SHAPE) for _ in range(K)], [normal(*SHAPE) for _ in range(K)]
        parameters = parameters_of(rule, dilation, period, block, normal)
        evaluate = lambda: routes(rule, deltas, dilation, period, block, states, parameters)
        loss = lambda: sum((cts[row] * r).sum() for row, r in evaluate().items())
        for row, r in evaluate().items():
            arrays[f"{name}.r{row}"] = r
        for i in range(K):
            arrays[f"{name}.h{i}"], arrays[f"{name}.c{i}"] = states[i], cts[i]
            arrays[f"{name}.h{i}.grad"] = gradient(loss, states[i])
        for key, value in parameters.items():
            arrays[f"{name}.{key}"] = value
            if rule != "constant":
                arrays[f"{name}.{key}.grad"] = gradient(loss, value)
    for number, (name, (rule, deltas, dilation, period, block)) in enumerate(NETWORKS.items(), 100):
        random = np.random.default_rng(number)
        normal = lambda *shape: random.normal(size=shape).astype(np.float32).astype(np.float64)
        h0, ct = normal(*SHAPE), normal(*SHAPE)
        parameters = parameters_of(rule, dilation, period, block, normal) | {f"w{row}": normal(SHAPE[-1], SHAPE[-1]) for row in range(K)}
        evaluate = lambda: network(rule, deltas, dilation, period, block, h0, parameters)
        loss = lambda: (ct * evaluate()).sum()
        arrays |= {f"{name}.h0": h0, f"{name}.c": ct, f"{name}.y": evaluate(), f"{name}.h0.grad": gradient(loss, h0)}
        for key, value in parameters.items():
            arrays[f"{name}.{key}"], arrays[f"{name}.{key}.grad"] = value, gradient(loss, value)
    out = Path(__file__).with_name("golden.npz")
    np.savez_compressed(out, **arrays)
    print(f"{out}: {len(arrays)} arrays, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()

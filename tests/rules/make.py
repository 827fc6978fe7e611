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


def softmax(z):
    e = np.exp(z - z.max(0))
    return e / e.sum(0)


def sources(h, deltas, block):
    """What a row sums up of the states up to its nearest, h."""
    whole, own = divmod(len(h) - 1, block)
    ends = [h[n * block] for n in range(whole + 1)] + ([h[-1]] if own else [])
    return [ends[0]] + [b - a for a, b in zip(ends, ends[1:])] if deltas else ends


def routes(rule, deltas, dilation, period, block, states, parameters):
    """{row: r}, rows from 0; a first row that only reads h_0 has no route but under `free`."""
    out = {}
    for row in range(K):
        if row % period or (row == 0 and rule != "free"):
            continue
        h = states[: row + 1]
        s = sources(h, deltas, block)
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
        if rule == "gated":
            r = h[-1] + parameters["gate"][row] * (r - h[-1])
        out[row] = r
    return out


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


def main():
    arrays = {}
    for number, (name, (rule, deltas, dilation, period, block)) in enumerate(RULES.items()):
        random = np.random.default_rng(number)
        # Single precision holds them exactly, so that both sides compute with the same numbers.
        normal = lambda *shape: random.normal(size=shape).astype(np.float32).astype(np.float64)
        states, cts = [normal(*SHAPE) for _ in range(K)], [normal(*SHAPE) for _ in range(K)]
        parameters = {"query": normal(K, SHAPE[-1])} if rule == "attention" else {"logits": np.tril(normal(K, K))}
        if "logits" in parameters:
            # What no row reads is stored as 0.
            read = lambda row, i: row % period == 0 and i <= row and (row - i) % dilation == 0 and (i % block == 0 or i == row)
            parameters["logits"] *= np.array([[read(row, i) for i in range(K)] for row in range(K)])
        if rule == "gated":
            parameters["gate"] = normal(K)
        if rule == "constant":
            parameters["logits"] = np.tril(np.ones((K, K))) / np.arange(1, K + 1)[:, None]
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
    out = Path(__file__).with_name("golden.npz")
    np.savez_compressed(out, **arrays)
    print(f"{out}: {len(arrays)} arrays, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()

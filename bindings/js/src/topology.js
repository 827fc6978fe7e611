// The weights of learned routes from the router's state.

/**
 * The record `ancre.router` of a graph's metadata, as far as it is read here.
 * @typedef {{ parametrization: string, normalize: string, tau: number, chains: { id: number, K: number, logits: string, gate: string | null, sources?: unknown[] }[] }} Router
 */
/**
 * The weights of one chain. A row for each block, as long as the states that the block may read; its last entry is the original skip.
 * @typedef {{ id: number, rows: number[][] }} Chain
 */

/**
 * The weights of one chain: one-hot + gate (softmax(logits / tau) - one-hot) where it is gated, else the softmax or the logits themselves.
 * @param {ArrayLike<number>} logits of K rows
 * @param {ArrayLike<number> | undefined} gate K numbers
 * @param {number} blocks K
 * @param {{ parametrization: string, normalize: string, tau: number }} how
 * @returns {number[][]}
 */
export function weights(logits, gate, blocks, { parametrization, normalize, tau }) {
  const width = logits.length / blocks;
  const extra = width - blocks;
  const rows = Array.from({ length: blocks }, (_, r) => Array.from({ length: extra + r + 1 }, (_, c) => logits[r * width + c]));
  if (parametrization === "free" || parametrization === "constant") return rows;
  const cells = rows.flatMap((row, r) => row.map((_, c) => /** @type {[number, number]} */ ([r, c])));
  for (let group = 0; group < blocks; group++) {
    const members = cells.filter(([r, c]) => (normalize === "outgoing" ? c : r) === group);
    const top = Math.max(...members.map(([r, c]) => rows[r][c]));
    const raised = members.map(([r, c]) => Math.exp((rows[r][c] - top) / tau));
    const total = raised.reduce((a, b) => a + b, 0);
    members.forEach(([r, c], i) => (rows[r][c] = raised[i] / total));
  }
  if (parametrization !== "gated" || !gate) return rows;
  return rows.map((row, r) => {
    // A row without competitors has no gate.
    const a = row.length === 1 ? 0 : gate[r];
    return row.map((w, c) => {
      const hot = c === row.length - 1 ? 1 : 0;
      return hot + a * (w - hot);
    });
  });
}

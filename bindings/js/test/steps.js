/**
 * Steps at a rate of 2e-3, 32 samples a batch: their losses. The batches are the first samples in their order; `stride` 0: the first
 * 32 samples each time.
 */
export async function firstLosses(trainer, data, { steps = 10, stride = 32 } = {}) {
  trainer.lr = 2e-3;
  const losses = [];
  for (let i = 0; i < steps; i++) losses.push((await trainer.step(data.batch(Array.from({ length: 32 }, (_, k) => stride * i + k)))).loss);
  return losses;
}

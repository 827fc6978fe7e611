//! Fresh values for weights.

use crate::ir::{DType, Tensor};
use crate::random::Random;

/// The random numbers of one tensor.
pub struct Fresh {
    random: Random,
}

impl Fresh {
    /// The stream of a tensor: it depends on the seed and the tensor's name, not on which other tensors there are.
    pub fn new(seed: u64, name: &str) -> Fresh {
        // The factor keeps this stream apart from that of a random input of the same name.
        Fresh { random: Random::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d), name) }
    }

    /// A whole number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.random.below(bound)
    }

    /// A tensor uniform in (−bound, bound).
    pub fn uniform(mut self, dtype: DType, dims: &[i64], bound: f64) -> Tensor {
        tensor(dtype, dims, || (2.0 * self.random.unit() - 1.0) * bound)
    }

    /// A tensor of normal numbers with mean 0.
    pub fn normal(mut self, dtype: DType, dims: &[i64], deviation: f64) -> Tensor {
        tensor(dtype, dims, || self.random.normal() * deviation)
    }
}

/// A tensor of equal numbers.
pub fn constant(dtype: DType, dims: &[i64], value: f64) -> Tensor {
    tensor(dtype, dims, || value)
}

fn tensor(dtype: DType, dims: &[i64], mut next: impl FnMut() -> f64) -> Tensor {
    let count = dims.iter().product::<i64>().max(0) as usize;
    if dtype == DType::F32 {
        return Tensor::f32s(dims, &(0..count).map(|_| next() as f32).collect::<Vec<_>>());
    }
    Tensor::floats(dtype, dims, &(0..count).map(|_| next()).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(t: &Tensor) -> (f64, f64) {
        let v = t.to_f64().unwrap();
        let n = v.len() as f64;
        let mean = v.iter().sum::<f64>() / n;
        (mean, v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n)
    }

    #[test]
    fn the_distributions_have_their_moments() {
        let (mean, variance) = moments(&Fresh::new(1, "w").uniform(DType::F32, &[100, 100], 0.5));
        assert!(mean.abs() < 0.01 && (variance - 0.25 / 3.0).abs() < 2e-3, "{mean} {variance}");
        let (mean, variance) = moments(&Fresh::new(1, "w").normal(DType::F32, &[100, 100], 1.0));
        assert!(mean.abs() < 0.04 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }

    #[test]
    fn seed_and_name_choose_the_stream() {
        let values = |seed, name| Fresh::new(seed, name).uniform(DType::F32, &[4], 1.0).to_f32().unwrap();
        assert_eq!(values(3, "w"), values(3, "w"));
        assert_ne!(values(3, "w"), values(4, "w"));
        assert_ne!(values(3, "w"), values(3, "v"));
    }
}

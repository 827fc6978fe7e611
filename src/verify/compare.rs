//! Are two models the same function, as far as running them tells?

use crate::engine::Tensors;
use crate::io::tensor::NpTensor;
use ancre_passes::ir::{DType, Graph};
use serde::Serialize;

/// How far two outputs may lie apart: |a − b| ≤ atol + rtol · max|b|, the maximum over the output. The relative part is no
/// smaller than the rounding of the type that the output was computed in (`relative`); integers and booleans are equal or not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Absolute part.
    pub atol: f64,
    /// Part relative to the output's largest magnitude.
    pub rtol: f64,
    /// The coarsest type that the models compute in, where it is coarser than float32.
    pub precision: Option<DType>,
}

impl Default for Tolerance {
    fn default() -> Tolerance {
        Tolerance { atol: 1e-5, rtol: 1e-5, precision: None }
    }
}

impl Tolerance {
    /// The same for outputs of these models.
    pub fn of<'g>(self, models: impl IntoIterator<Item = &'g Graph>) -> Tolerance {
        Tolerance { precision: models.into_iter().filter_map(precision).chain(self.precision).max_by(coarser), ..self }
    }

    /// The largest distance that is no fault, of outputs of this type and magnitude.
    fn allowed(self, dtype: DType, largest: f64) -> f64 {
        // Two roundings: each model may round in another place.
        let coarsest = self.precision.into_iter().chain([dtype]).max_by(coarser).unwrap_or(dtype);
        if dtype.is_float() { self.atol + relative(self.rtol, coarsest, 2.0) * largest } else { 0.0 }
    }
}

/// A relative tolerance for results of this type: what is asked for, but not less than so many units in the last place of a
/// 16-bit type. The one place where tolerances follow types; float32 and float64 keep what is asked for.
pub(super) fn relative(asked: f64, dtype: DType, units: f64) -> f64 {
    match dtype {
        DType::F16 | DType::BF16 => asked.max(units * unit(&dtype)),
        _ => asked,
    }
}

/// A unit in the last place of 1.
pub(crate) fn unit(dtype: &DType) -> f64 {
    match dtype {
        DType::BF16 => 1.0 / 128.0,
        DType::F16 => 1.0 / 1024.0,
        _ => f32::EPSILON as f64,
    }
}

fn coarser(a: &DType, b: &DType) -> std::cmp::Ordering {
    unit(a).total_cmp(&unit(b))
}

/// The coarsest 16-bit float type that a model computes in. Weights that are only stored in one do not count.
pub(super) fn precision(g: &Graph) -> Option<DType> {
    let results = g.nodes().filter(|n| g.op(*n).is_some()).flat_map(|n| g.results(n));
    let types = results.filter_map(|v| g.value(v).ty.dtype);
    types.filter(|t| matches!(t, DType::F16 | DType::BF16)).max_by(coarser)
}

/// The verdict over all outputs and trials.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Is every output within the tolerance?
    pub equivalent: bool,
    /// Largest |a − b|; infinite where one is finite and the other is not.
    pub max_abs: f64,
    /// Largest |a − b| as a part of its output's largest magnitude.
    pub max_rel: f64,
}

impl Default for Comparison {
    fn default() -> Comparison {
        Comparison { equivalent: true, max_abs: 0.0, max_rel: 0.0 }
    }
}

impl Comparison {
    /// The verdict on what cannot be compared element by element.
    pub(super) const UNLIKE: Comparison = Comparison { equivalent: false, max_abs: f64::INFINITY, max_rel: f64::INFINITY };

    /// The verdict over several outputs.
    pub(super) fn worst(of: &[OutputComparison]) -> Comparison {
        let mut worst = Comparison::default();
        of.iter().for_each(|c| worst.and(&c.verdict));
        worst
    }

    /// Combines with another verdict.
    pub fn and(&mut self, other: &Comparison) {
        self.equivalent &= other.equivalent;
        self.max_abs = self.max_abs.max(other.max_abs);
        self.max_rel = self.max_rel.max(other.max_rel);
    }
}

/// How one output of two models compares.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OutputComparison {
    /// Name of the output.
    pub name: String,
    /// The verdict on it.
    #[serde(flatten)]
    pub verdict: Comparison,
    /// Largest distance in representable numbers of the type; `None` for types that are not floats.
    pub max_ulp: Option<u64>,
    /// Cosine between the two as vectors; `None` where a norm is zero or not finite.
    pub cosine: Option<f64>,
    /// Why they cannot be compared element by element: it is missing, or of another type or shape.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mismatch: Option<String>,
}

/// Compares two tensors. NaN equals NaN and an infinity itself; anything else that is not finite differs.
pub fn compare(name: &str, a: &NpTensor, b: &NpTensor, tolerance: Tolerance) -> OutputComparison {
    if a.shape() != b.shape() || a.dtype() != b.dtype() {
        let what = |t: &NpTensor| format!("{}{:?}", t.dtype(), t.shape());
        return mismatch(name, format!("{} and {} differ in type or shape", what(a), what(b)));
    }
    let (x, y) = (a.to_f64(), b.to_f64());
    let largest = y.iter().map(|v| v.abs()).filter(|v| v.is_finite()).fold(0.0, f64::max);
    let mut max_abs: f64 = 0.0;
    for (x, y) in x.iter().zip(&y) {
        if x == y || (x.is_nan() && y.is_nan()) {
            continue;
        }
        let distance = (x - y).abs();
        max_abs = max_abs.max(if distance.is_nan() { f64::INFINITY } else { distance });
    }
    if max_abs == 0.0 && !a.dtype().is_float() && a.bytes() != b.bytes() {
        // Large integers that f64 cannot tell apart.
        max_abs = 1.0;
    }
    let max_rel = if max_abs == 0.0 { 0.0 } else { max_abs / largest };
    let equivalent = max_abs <= tolerance.allowed(b.dtype(), largest);
    OutputComparison {
        name: name.to_string(),
        verdict: Comparison { equivalent, max_abs, max_rel },
        max_ulp: max_ulp(a, b),
        cosine: cosine(&x, &y),
        mismatch: None,
    }
}

fn mismatch(name: &str, why: String) -> OutputComparison {
    OutputComparison {
        name: name.to_string(),
        verdict: Comparison::UNLIKE,
        max_ulp: None,
        cosine: None,
        mismatch: Some(why),
    }
}

fn max_ulp(a: &NpTensor, b: &NpTensor) -> Option<u64> {
    // Numbers of one sign are ordered as their bits are; negative ones count down from zero.
    macro_rules! distance {
        ($bits:ty, $n:literal) => {{
            let place = |c: &[u8; $n]| {
                let bits = <$bits>::from_le_bytes(*c);
                let magnitude = (bits & (<$bits>::MAX >> 1)) as i128;
                if bits >> (<$bits>::BITS - 1) == 1 { -magnitude } else { magnitude }
            };
            let (a, b) = (a.bytes().as_chunks::<$n>().0, b.bytes().as_chunks::<$n>().0);
            a.iter().zip(b).map(|(a, b)| place(a).abs_diff(place(b))).max().unwrap_or(0) as u64
        }};
    }
    Some(match a.dtype() {
        DType::F32 => distance!(u32, 4),
        DType::F64 => distance!(u64, 8),
        DType::F16 | DType::BF16 => distance!(u16, 2),
        _ => return None,
    })
}

fn cosine(x: &[f64], y: &[f64]) -> Option<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let norms = dot(x, x).sqrt() * dot(y, y).sqrt();
    (norms > 0.0 && norms.is_finite()).then(|| (dot(x, y) / norms).clamp(-1.0, 1.0))
}

/// Compares the outputs of `b` (the reference) with those of the same name of `a`.
pub fn compare_all(a: &Tensors, b: &Tensors, tolerance: Tolerance) -> Vec<OutputComparison> {
    b.iter()
        .map(|(name, reference)| match a.get(name) {
            Some(t) => compare(name, t, reference, tolerance),
            None => mismatch(name, "one of the models has no such output".into()),
        })
        .collect()
}

/// What trials showed, by output and over all.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// The verdict over all outputs.
    pub verdict: Comparison,
    /// The worst of each output over the trials.
    pub outputs: Vec<OutputComparison>,
    /// Number of trials.
    pub trials: usize,
}

impl Report {
    /// Adds the comparisons of one trial.
    pub fn add(&mut self, comparisons: Vec<OutputComparison>) {
        self.verdict.and(&Comparison::worst(&comparisons));
        for new in comparisons {
            match self.outputs.iter_mut().find(|o| o.name == new.name) {
                Some(old) => old.worsen(new),
                None => self.outputs.push(new),
            }
        }
        self.trials += 1;
    }
}

impl OutputComparison {
    fn worsen(&mut self, other: OutputComparison) {
        self.verdict.and(&other.verdict);
        self.max_ulp = self.max_ulp.max(other.max_ulp);
        self.cosine = match (self.cosine, other.cosine) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self.mismatch = self.mismatch.take().or(other.mismatch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(values: &[f32]) -> NpTensor {
        NpTensor::f32s(&[values.len()], values).unwrap()
    }

    fn verdict(a: &[f32], b: &[f32]) -> Comparison {
        compare("y", &floats(a), &floats(b), Tolerance { atol: 0.01, rtol: 0.1, ..Default::default() }).verdict
    }

    #[test]
    fn the_tolerance_is_relative_to_the_largest_magnitude() {
        assert_eq!(verdict(&[10.0, 0.5], &[10.0, 1.0]), Comparison { equivalent: true, max_abs: 0.5, max_rel: 0.05 });
        assert!(!verdict(&[1.0, 0.5], &[1.0, 1.0]).equivalent);
        assert_eq!(verdict(&[0.0], &[0.0]), Comparison::default());
    }

    #[test]
    fn what_is_not_finite_must_be_the_same() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        assert_eq!(verdict(&[nan, inf, -inf], &[nan, inf, -inf]), Comparison::default());
        for (a, b) in [(nan, 1.0), (1.0, nan), (inf, -inf), (inf, nan), (1.0, inf)] {
            let v = verdict(&[a, 0.0], &[b, 0.0]);
            assert!(!v.equivalent && v.max_abs == f64::INFINITY, "{a} {b}");
        }
    }

    #[test]
    fn ulps_count_across_zero() {
        let ulps = |a, b| compare("y", &floats(&[a]), &floats(&[b]), Tolerance::default()).max_ulp;
        assert_eq!(ulps(1.0, f32::from_bits(1f32.to_bits() + 3)), Some(3));
        assert_eq!(ulps(f32::from_bits(1), -f32::from_bits(1)), Some(2));
        assert_eq!(ulps(0.0, -0.0), Some(0));
    }

    #[test]
    fn shapes_types_and_names_must_agree() {
        let (a, b) = (floats(&[1.0, 2.0]), NpTensor::f32s(&[1, 2], &[1.0, 2.0]).unwrap());
        assert!(compare("y", &a, &b, Tolerance::default()).mismatch.unwrap().contains("f32[2] and f32[1, 2]"));
        let (a, b) = (Tensors::new(), Tensors::from([("y".to_string(), b)]));
        assert!(!compare_all(&a, &b, Tolerance::default())[0].verdict.equivalent);
    }

    #[test]
    fn large_integers_are_told_apart() {
        let ints = |v| NpTensor::i64s(&[1], &[v]).unwrap();
        let c = compare("y", &ints(i64::MAX), &ints(i64::MAX - 1), Tolerance { atol: 0.0, rtol: 0.0, precision: None });
        assert!(!c.verdict.equivalent);
        // Nor is a count that is off by one a rounding.
        assert!(!compare("y", &ints(1_000_001), &ints(1_000_000), Tolerance::default()).verdict.equivalent);
    }

    #[test]
    fn a_unit_in_the_last_place_of_sixteen_bits_is_no_fault() {
        let one = |dtype, v: f64| NpTensor::from_f64s(dtype, &[1], &[v]).unwrap();
        let equal = |dtype, v: f64| compare("y", &one(dtype, v), &one(dtype, 1.0), Tolerance::default()).verdict.equivalent;
        for (dtype, unit) in [(DType::F16, 1.0 / 1024.0), (DType::BF16, 1.0 / 128.0)] {
            assert!(equal(dtype, 1.0 + unit) && equal(dtype, 1.0 + 2.0 * unit), "{dtype}");
            assert!(!equal(dtype, 1.0 + 3.0 * unit), "{dtype}");
        }
        assert!(!equal(DType::F32, 1.001));
        // A float32 output of a model that computes in float16.
        let halves = Tolerance { precision: Some(DType::F16), ..Default::default() };
        let c = |v| compare("y", &one(DType::F32, v), &one(DType::F32, 1.0), halves).verdict.equivalent;
        assert!(c(1.001) && !c(1.004));
    }

    #[test]
    fn a_report_keeps_the_worst() {
        let mut report = Report::default();
        for v in [1.0, 1.5, 1.0] {
            report.add(vec![compare("y", &floats(&[v]), &floats(&[1.0]), Tolerance::default())]);
        }
        assert_eq!((report.trials, report.verdict.equivalent, report.verdict.max_abs), (3, false, 0.5));
        assert_eq!(report.outputs.len(), 1);
    }
}

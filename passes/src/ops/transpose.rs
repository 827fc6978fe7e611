//! `Transpose`: permutes the axes; without `perm`, reverses them.

use super::sample::floats;
use super::*;

pub(super) struct Transpose;

impl OpRule for Transpose {
    fn name(&self) -> &'static str {
        "Transpose"
    }
    fn since(&self) -> i64 {
        1
    }
    fn infer(&self, cx: &Infer) -> Types {
        let ty = cx.ty(0)?;
        let perm = permutation(cx.attrs(), ty.rank());
        cx.require(perm.len() == ty.rank(), || format!("a permutation of {} axes does not fit {ty}", perm.len()))?;
        let dim = |i: &i64| usize::try_from(*i).ok().and_then(|i| ty.shape.get(i)).cloned();
        let shape: Option<Vec<Dim>> = perm.iter().map(dim).collect();
        let shape = shape.ok_or_else(|| TypeError(format!("the permutation {perm:?} does not fit {ty}")))?;
        Ok(vec![TensorType::new(ty.dtype, shape)])
    }
    /// x̄ = ȳ under the inverse permutation.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (ct, rank) = (p.ct(0)?, p.ty(0)?.rank());
        let perm = permutation(&p.attrs(), rank);
        let mut inverse = vec![0; rank];
        for (i, from) in perm.iter().enumerate() {
            inverse[*from as usize] = i as i64;
        }
        let x_ct = p.b.transpose(ct, &inverse)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("Transpose", Attrs::new().with("perm", vec![2, 0, 1]), vec![floats(&[2, 3, 4])]),
            Sample::of("Transpose", Attrs::new(), vec![floats(&[2, 3])]),
        ]
    }
}

fn permutation(attrs: &Attrs, rank: usize) -> Vec<i64> {
    attrs.ints("perm").map_or_else(|| (0..rank as i64).rev().collect(), <[i64]>::to_vec)
}

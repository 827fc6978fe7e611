//! `Transpose`: permutes the axes; without `perm`, reverses them.

use super::sample::floats;
use super::*;

pub(super) struct Transpose;

impl OpRule for Transpose {
    fn name(&self) -> &'static str {
        "Transpose"
    }
    fn infer(&self, cx: &Infer) -> Types {
        let ty = cx.ty(0)?;
        let perm = permutation(cx.attrs(), ty.rank())
            .ok_or_else(|| TypeError(format!("{:?} permutes other axes than those of {ty}", cx.attrs().ints("perm"))))?;
        let shape: Vec<Dim> = perm.iter().map(|i| ty.shape[*i].clone()).collect();
        Ok(vec![TensorType::new(ty.dtype, shape)])
    }
    /// x̄ = ȳ under the inverse permutation.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (ct, rank) = (p.ct(0)?, p.ty(0)?.rank());
        let perm = permutation(&p.attrs(), rank).ok_or_else(|| p.unsupported("its permutation is none of its axes"))?;
        let mut inverse = vec![0; rank];
        for (i, from) in perm.into_iter().enumerate() {
            inverse[from] = i as i64;
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

/// The axis that each axis of the result comes from; `None` where the attribute is no permutation of so many axes.
pub(crate) fn permutation(attrs: &Attrs, rank: usize) -> Option<Vec<usize>> {
    let Some(perm) = attrs.ints("perm") else { return Some((0..rank).rev().collect()) };
    let mut free = vec![true; rank];
    let perm: Vec<usize> = perm.iter().map(|i| usize::try_from(*i).ok()).collect::<Option<_>>()?;
    let each_once = perm.iter().all(|i| free.get_mut(*i).is_some_and(|free| std::mem::replace(free, false)));
    (each_once && perm.len() == rank).then_some(perm)
}

//! `Transpose` permutes the axes; without `perm` it reverses them.

use super::*;

pub(super) const TRANSPOSE: Row = Row {
    name: "Transpose",
    infer: |cx| {
        let ty = cx.ty(0)?;
        let perm = perm(cx)?;
        let shape: Vec<Dim> = perm.iter().map(|i| ty.shape[*i].clone()).collect();
        Ok(vec![TensorType::new(ty.dtype, shape)])
    },
    // x̄ = ȳ under the inverse permutation.
    pullback: |p| {
        let (ct, perm) = (p.ct(0)?, p.told(perm)?);
        let mut inverse = vec![0; perm.len()];
        for (i, from) in perm.into_iter().enumerate() {
            inverse[from] = i as i64;
        }
        p.give(0, |b| b.transpose(ct, &inverse))
    },
    samples: || {
        vec![sample(Attrs::new().with("perm", vec![2, 0, 1]), vec![floats(&[2, 3, 4])]), plain(vec![floats(&[2, 3])])]
    },
    ..ROW
};

fn perm(cx: &Infer) -> Result<Vec<usize>, TypeError> {
    let ty = cx.ty(0)?;
    let given = cx.attrs().ints("perm");
    permutation(cx.attrs(), ty.rank()).ok_or_else(|| TypeError(format!("{given:?} permutes other axes than those of {ty}")))
}

/// The operand's axis for each axis of the result; `None` if `perm` is no permutation of `rank` axes.
pub(crate) fn permutation(attrs: &Attrs, rank: usize) -> Option<Vec<usize>> {
    let Some(perm) = attrs.ints("perm") else { return Some((0..rank).rev().collect()) };
    let mut free = vec![true; rank];
    let perm: Vec<usize> = perm.iter().map(|i| usize::try_from(*i).ok()).collect::<Option<_>>()?;
    let each_once = perm.iter().all(|i| free.get_mut(*i).is_some_and(|free| std::mem::replace(free, false)));
    (each_once && perm.len() == rank).then_some(perm)
}

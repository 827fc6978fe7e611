//! `Concat`: joins along an axis.

use super::sample::floats;
use super::*;

pub(super) struct Concat;

impl OpRule for Concat {
    fn name(&self) -> &'static str {
        "Concat"
    }
    fn infer(&self, cx: &Infer) -> Types {
        let mut all = cx.ty(0)?.clone();
        let axis = cx.axis()?;
        for i in 1..cx.types.len() {
            let other = cx.ty(i)?;
            cx.require(other.rank() == all.rank() && other.dtype == all.dtype, || format!("{all} and {other} do not join"))?;
            for (j, (a, b)) in all.shape.iter_mut().zip(&other.shape).enumerate() {
                if j == axis {
                    *a = &*a + b;
                } else if a.known().is_none() && b.known().is_some() {
                    *a = b.clone();
                } else if a.known().is_some() && b.known().is_some() && a != b {
                    return Err(TypeError(format!("extents {a} and {b} of axis {j} differ")));
                }
            }
        }
        Ok(vec![all])
    }
    /// x̄ᵢ = the part of ȳ that xᵢ became: one `Slice` if only one is wanted, one `Split` otherwise.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (ct, count) = (p.ct(0)?, p.operand_count());
        let axis = p.op().int("axis");
        let axis = p.ty(0)?.axis(axis).ok_or_else(|| p.unsupported("its axis is out of range"))?;
        let wanted: Vec<usize> = (0..count).filter(|i| p.wants(*i)).collect();
        let known: Option<Vec<i64>> = (0..count).map(|i| p.ty(i).ok()?.shape[axis].known()).collect();
        if let ([i], Some(known)) = (wanted.as_slice(), &known) {
            let start: i64 = known[..*i].iter().sum();
            let x_ct = if count == 1 { ct } else { p.b.slice(ct, axis as i64, start, start + known[*i])? };
            return p.accumulate(*i, x_ct);
        }
        let mut sizes = Vec::with_capacity(count);
        for i in 0..count {
            let x = p.operand(i)?;
            sizes.push(p.b.dim_of(x, axis)?);
        }
        let sizes = p.b.shape_from(&sizes)?;
        let parts = split::split(p.b, ct, sizes, axis, count)?;
        for i in wanted {
            let x = p.operand(i)?;
            let ty = p.b.ty(x)?;
            p.b.graph.set_type(parts[i], ty.into());
            p.accumulate(i, parts[i])?;
        }
        Ok(())
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("Concat", Attrs::new().with("axis", -1), vec![floats(&[2, 3]), floats(&[2, 1]), floats(&[2, 2])]),
            Sample::of(
                "Concat",
                Attrs::new().with("axis", 0),
                vec![floats(&[2, 3]), SampleOperand::FloatConstant { dims: vec![1, 3], values: vec![0.0, 0.0, 0.0] }],
            ),
            Sample::of("Concat", Attrs::new().with("axis", 0), vec![floats(&[2, 3])]),
        ]
    }
}

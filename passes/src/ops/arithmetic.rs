//! Sums, differences, products and quotients of operands that broadcast.

use super::*;

pub(super) const ADD: Row = Row {
    name: "Add",
    infer: like_all,
    // x̄ᵢ = unbroadcast(z̄).
    pullback: |p| {
        let ct = p.ct(0)?;
        (0..p.operand_count()).try_for_each(|i| p.accumulate_broadcast(i, ct))
    },
    samples: pairs,
    ..ROW
};

/// z = Σ xᵢ over any number of operands.
pub(super) const SUM: Row = Row {
    name: "Sum",
    samples: || vec![plain(vec![floats(&[2, 3]), floats(&[3]), floats(&[2, 1])]), plain(vec![floats(&[3])])],
    ..ADD
};

/// z = Σ xᵢ / n.
pub(super) const MEAN: Row = Row {
    name: "Mean",
    // x̄ᵢ = unbroadcast(z̄ / n).
    pullback: |p| {
        let (ct, n) = (p.ct(0)?, p.operand_count());
        let share = p.b.scale(ct, 1.0 / n as f64)?;
        (0..n).try_for_each(|i| p.accumulate_broadcast(i, share))
    },
    ..SUM
};

pub(super) const SUB: Row = Row {
    name: "Sub",
    // x̄ = unbroadcast(z̄), ȳ = −unbroadcast(z̄). The sum comes first, so that the smaller value is negated.
    pullback: |p| {
        let (y, ct) = (p.operand(1)?, p.ct(0)?);
        p.accumulate_broadcast(0, ct)?;
        p.give(1, |b| formula(b, [y, ct], |[y, ct]| -ct.sum_to(y)))
    },
    ..ADD
};

pub(super) const MUL: Row = Row {
    name: "Mul",
    // x̄ = unbroadcast(z̄ ⊙ y), ȳ = unbroadcast(z̄ ⊙ x). A square needs one product only.
    pullback: |p| {
        let (x, y, ct) = (p.operand(0)?, p.operand(1)?, p.ct(0)?);
        if x == y {
            return p.give(0, |b| formula(b, [x, ct], |[x, ct]| ct * x * 2.0));
        }
        if let Some(i) = gated_by_itself(p) {
            // z = x ⊙ s with s = σ(x). Both terms together are z̄ ⊙ (s + z (1 − s)).
            let (s, z) = (p.operand(1 - i)?, p.result(0));
            return p.give(i, |b| formula(b, [s, z, ct], |[s, z, ct]| ct * (s + z * (1.0 - s))));
        }
        p.give_broadcast(0, |b| b.mul(ct, y))?;
        p.give_broadcast(1, |b| b.mul(ct, x))
    },
    ..ADD
};

/// The number of the operand x in a product x ⊙ σ(x), which is how exporters write SiLU.
fn gated_by_itself(p: &Pullback) -> Option<usize> {
    (0..2).find(|i| {
        let (Some(x), Some(s)) = (p.try_operand(*i), p.try_operand(1 - i)) else { return false };
        p.graph().is_op(s.node, "Sigmoid") && p.graph().operand(s.node, 0) == Some(x)
    })
}

pub(super) const DIV: Row = Row {
    name: "Div",
    // x̄ = unbroadcast(z̄ ⊘ y), ȳ = −unbroadcast(z̄ ⊙ z) ⊘ y. y is constant over the summed axes, so the division comes last.
    pullback: |p| {
        let (y, z, ct) = (p.operand(1)?, p.result(0), p.ct(0)?);
        p.give_broadcast(0, |b| b.div(ct, y))?;
        if !p.wants(1) {
            return Ok(());
        }
        let product = p.b.mul(ct, z)?;
        let product = p.guarded(product)?;
        p.give(1, |b| formula(b, [y, product], |[y, product]| -(product.sum_to(y) / y)))
    },
    has_pole: |g, node, _| g.operand(node, 1).is_none_or(|y| g.constant(y).is_none()),
    samples: || {
        vec![
            plain(vec![floats(&[2, 3]), floats_in(&[2, 3], 0.5, 2.0)]),
            plain(vec![floats(&[2, 1, 3]), floats_in(&[4, 1], 0.5, 2.0)]),
            plain(vec![floats_in(&[], 1.0, 2.0), floats_in(&[3], -2.0, -0.5)]),
        ]
    },
    ..ADD
};

/// z = x − y ⊙ n, where n is x ⊘ y rounded to zero (`fmod` = 1, the only form for floats) or down.
pub(super) const MOD: Row = Row {
    name: "Mod",
    // x̄ = unbroadcast(z̄), ȳ = −unbroadcast(z̄ ⊙ n) with n = (x − z) ⊘ y.
    pullback: |p| {
        let (x, y, z, ct) = (p.operand(0)?, p.operand(1)?, p.result(0), p.ct(0)?);
        p.accumulate_broadcast(0, ct)?;
        p.give_broadcast(1, |b| formula(b, [x, y, z, ct], |[x, y, z, ct]| -(ct * ((x - z) / y))))
    },
    samples: || {
        let operands = vec![values(&[2, 2], &[2.5, -3.2, 0.4, 7.1]), values(&[2], &[1.0, 1.5])];
        vec![sample(Attrs::new().with("fmod", 1), operands)]
    },
    ..ADD
};

fn pairs() -> Vec<Sample> {
    let of = |x: &[i64], y: &[i64]| plain(vec![floats(x), floats(y)]);
    vec![of(&[2, 3], &[2, 3]), of(&[2, 1, 3], &[4, 1]), of(&[], &[3])]
}

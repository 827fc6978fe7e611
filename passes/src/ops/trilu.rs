//! `Trilu`: the upper or lower triangle of each matrix, zeros elsewhere; the diagonal's offset is an optional operand.

use super::*;

pub(super) const TRILU: Row = Row {
    name: "Trilu",
    infer: like_first,
    // x̄ = the same triangle of ȳ.
    pullback: |p| {
        let (ct, attrs) = (p.ct(0)?, p.attrs());
        let operands: Vec<_> = [Some(ct), p.try_operand(1)].into_iter().filter(Option::is_some).collect();
        let x_ct = p.b.node(Op::new("Trilu", attrs), &operands)?[0];
        p.accumulate(0, x_ct)
    },
    samples: || {
        vec![
            plain(vec![floats(&[2, 3, 4])]),
            sample(Attrs::new().with("upper", 0), vec![floats(&[3, 3]), ints_of(&[], &[-1])]),
        ]
    },
    ..ROW
};

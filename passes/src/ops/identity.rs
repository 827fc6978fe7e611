//! `Identity`: y = x.

use super::*;

pub(super) const IDENTITY: Row = Row {
    name: "Identity",
    infer: like_first,
    // x̄ = ȳ.
    pullback: |p| {
        let ct = p.ct(0)?;
        p.accumulate(0, ct)
    },
    samples: || vec![plain(vec![floats(&[2, 3])])],
    ..ROW
};

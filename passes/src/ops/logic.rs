//! Logic on booleans, with broadcasting.

use super::flat::Flat;
use super::*;

pub(super) const NOT: Flat =
    Flat { name: "Not", since: 1, infer: bool_like_all, applied: || vec![(Attrs::new(), vec![row()])] };
pub(super) const AND: Flat = of_two("And");
pub(super) const OR: Flat = of_two("Or");
pub(super) const XOR: Flat = of_two("Xor");

const fn of_two(name: &'static str) -> Flat {
    let applied = || {
        let column = SampleOperand::Bools { dims: vec![2, 1], values: vec![true, false] };
        vec![(Attrs::new(), vec![row(), column])]
    };
    Flat { name, since: 7, infer: bool_like_all, applied }
}

fn row() -> SampleOperand {
    SampleOperand::Bools { dims: vec![3], values: vec![true, false, true] }
}

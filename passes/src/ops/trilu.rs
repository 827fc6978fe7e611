//! `Trilu`: the upper or lower triangle of each matrix, zeros elsewhere; the diagonal's offset is an optional operand.

use super::sample::floats;
use super::*;

pub(super) struct Trilu;

impl OpRule for Trilu {
    fn name(&self) -> &'static str {
        "Trilu"
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = the same triangle of ȳ.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (ct, attrs) = (p.ct(0)?, p.attrs());
        let operands: Vec<_> = [Some(ct), p.try_operand(1)].into_iter().filter(Option::is_some).collect();
        let x_ct = p.b.node(Op::new("Trilu", attrs), &operands)?[0];
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("Trilu", Attrs::new(), vec![floats(&[2, 3, 4])]),
            Sample::of(
                "Trilu",
                Attrs::new().with("upper", 0),
                vec![floats(&[3, 3]), SampleOperand::Ints { dims: vec![], values: vec![-1] }],
            ),
        ]
    }
}

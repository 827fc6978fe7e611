//! `CausalConvWithState` (opset 27): each channel is convolved with its own kernel over the places up to the present one. Before the
//! first place stands the state of the previous call, or zeros.

use super::*;

pub(super) const CAUSAL_CONV: Row = Row {
    name: "CausalConvWithState",
    infer: |cx| {
        let (x, w) = (cx.ty(0)?, cx.ty(1)?);
        cx.require(x.rank() == 3 && w.rank() == 3, || format!("x is {x} and the kernels are {w}; both need rank 3"))?;
        let mut state = x.clone();
        state.shape[2] = w.shape[2].known().map_or_else(|| unknown_dim("state"), |k| Dim::from(k - 1));
        Ok(vec![x.clone(), state])
    },
    derivative: Derivative::Decompose("Concat or Pad, Conv, Sigmoid, Mul"),
    decompose: |b, s| {
        let (x, w) = (s.need(0)?, s.need(1)?);
        let (channels, kernel) = (extent(b, w, 0)?, extent(b, w, 2)?);
        let before = match s.get(3) {
            _ if kernel == 1 => x,
            Some(past) => b.concat(&[past, x], 2)?,
            None => {
                let pads = b.ints(&[0, 0, kernel - 1, 0, 0, 0]);
                b.op("Pad", &[x, pads])?
            }
        };
        let state = if s.reads(1) { Some(b.slice(before, 2, 1 - kernel, i64::MAX)?) } else { None };
        let mut operands = vec![before, w];
        operands.extend(s.get(2));
        let y = b.op_with("Conv", Attrs::new().with("group", channels), &operands)?;
        let y = match s.op.str("activation") {
            "none" => y,
            "silu" | "swish" => {
                let open = b.op("Sigmoid", &[y])?;
                b.mul(y, open)?
            }
            other => return Err(Why::Attribute { attribute: "activation", value: other.into() }),
        };
        Ok([y].into_iter().chain(state).collect())
    },
    samples: || {
        let of = |activation: &str, rest: Vec<SampleOperand>| {
            let mut operands = vec![floats(&[2, 3, 5]), floats(&[3, 1, 4])];
            operands.extend(rest);
            sample(Attrs::new().with("activation", activation), operands).at(27).results(2)
        };
        vec![
            of("none", vec![]),
            of("silu", vec![floats(&[3]), floats(&[2, 3, 3])]),
            of("swish", vec![SampleOperand::Missing, floats(&[2, 3, 3])]),
        ]
    },
    ..ROW
};

//! The geometry of sliding windows: convolutions and pools.

use super::TypeError;
use super::{Infer, unknown_dim};
use crate::ir::{Attrs, Dim, Graph, NodeId, Op, TensorType, ValueId};
use crate::ops::build::{BuildError, Builder, Built};

/// Bound of every number of a window. A damaged file may hold numbers beyond, which would overflow.
const LARGEST: i64 = 1 << 24;

/// A window over the spatial axes (axis 2 on), with all attributes.
#[derive(Clone, Debug)]
pub(super) struct Window {
    pub(super) kernel: Vec<i64>,
    pub(super) strides: Vec<i64>,
    pub(super) dilations: Vec<i64>,
    /// Padding before each axis.
    pub(super) begin: Vec<i64>,
    /// Padding after each axis.
    pub(super) end: Vec<i64>,
    /// Round the output extent up.
    pub(super) ceil: bool,
    /// A stride and an extent that only the run tells, from which padding follows that `begin` and `end` lack.
    open: Option<(i64, Dim)>,
}

/// The type of what a pool makes of its operand.
pub(super) fn pooled(cx: &Infer) -> Result<TensorType, TypeError> {
    let x = cx.ty(0)?;
    Ok(TensorType::new(x.dtype, Window::of(cx, None)?.result(&x.shape, &x.shape[1])?))
}

/// Writes the padding of a convolution or an average pool out where it follows from extents that only the run tells. A mean leaves the
/// padding out, unless the pool says otherwise: it is divided by the mean of as many ones.
pub(crate) fn write_padding_out(g: &mut Graph, id: NodeId) -> Result<(), BuildError> {
    let Some(op) = g.op(id).filter(|op| op.is("Conv") || op.is("AveragePool")).cloned() else { return Ok(()) };
    let Some(x) = g.operand(id, 0) else { return Ok(()) };
    let kernel = g.operand(id, 1).and_then(|w| g.tensor_type(w)).map(|w| w.shape);
    let Some(ty) = g.tensor_type(x).filter(|ty| ty.rank() > 2) else { return Ok(()) };
    let window = Window::new(&op, kernel.as_ref().and_then(|k| k.get(2..)), &ty.shape[2..]);
    let Some(window) = window.ok().filter(|w| w.open.is_some()) else { return Ok(()) };
    let upper = op.str("auto_pad") == "SAME_UPPER";
    let mut valid = op.clone();
    valid.attrs.0.retain(|name, _| name != "auto_pad" && name != "pads");
    let name = g.site(id).name;
    let mut b = Builder::new(g, &name);
    let padded = window.pad_to_same(&mut b, x, upper)?;
    if op.is("Conv") || op.int("count_include_pad") != 0 {
        b.graph.edit_attrs(id, |a| *a = valid.attrs);
        b.graph.set_operand(id, 0, Some(padded));
        return Ok(());
    }
    let pool = |b: &mut Builder, x: ValueId| b.op_with("AveragePool", valid.attrs.clone(), &[x]);
    let extents = b.op_with("Shape", Attrs::new().with("start", 2), &[x])?;
    let ones = b.ints(&[1, 1]);
    let shape = b.concat(&[ones, extents], 0)?;
    let one = b.scalar(ty.dtype, 1.0);
    let image = b.op("Expand", &[one, shape])?;
    let spatial: Vec<Dim> = [Dim::from(1), Dim::from(1)].into_iter().chain(ty.shape[2..].iter().cloned()).collect();
    let image = b.state(image, TensorType::new(ty.dtype, spatial));
    let image = window.pad_to_same(&mut b, image, upper)?;
    let (means, parts) = (pool(&mut b, padded)?, pool(&mut b, image)?);
    b.graph.replace_op(id, Op::new("Div", Attrs::new()), &[Some(means), Some(parts)]);
    Ok(())
}

impl Window {
    /// A convolution's attributes.
    pub(super) fn attrs(&self, group: i64) -> Attrs {
        Attrs::new()
            .with("kernel_shape", self.kernel.clone())
            .with("strides", self.strides.clone())
            .with("dilations", self.dilations.clone())
            .with("pads", [self.begin.clone(), self.end.clone()].concat())
            .with("group", group)
    }

    /// The window over [.., 1, L] that this one over [.., L] is.
    pub(super) fn on_a_row(&self) -> Window {
        let wide = |row: i64, of: &[i64]| [&[row], of].concat();
        let (kernel, strides, dilations) = (wide(1, &self.kernel), wide(1, &self.strides), wide(1, &self.dilations));
        Window { kernel, strides, dilations, begin: wide(0, &self.begin), end: wide(0, &self.end), ..self.clone() }
    }

    /// The window of a pool, or of a convolution whose weight is operand `kernel`.
    pub(super) fn of(cx: &Infer, kernel: Option<usize>) -> Result<Window, TypeError> {
        let (x, w) = (cx.ty(0)?, kernel.map(|i| cx.ty(i)).transpose()?);
        cx.require(x.rank() >= 3, || format!("{x} has no spatial axes"))?;
        if let Some(w) = w {
            cx.require(w.rank() == x.rank(), || format!("{x} and weight {w} do not make a convolution"))?;
        }
        Window::new(cx.op, w.map(|w| &w.shape[2..]), &x.shape[2..])
    }

    /// The result's shape, from the operand's.
    pub(super) fn result(&self, x: &[Dim], channels: &Dim) -> Result<Vec<Dim>, TypeError> {
        Ok([vec![x[0].clone(), channels.clone()], self.output(&x[2..])?].concat())
    }

    /// Reads the attributes; `kernel` is the weight's spatial shape, if there is a weight.
    pub(super) fn new(op: &Op, kernel: Option<&[Dim]>, input: &[Dim]) -> Result<Window, TypeError> {
        let rank = input.len();
        let kernel: Vec<i64> = match (op.attrs.ints("kernel_shape"), kernel) {
            (Some(k), _) => k.to_vec(),
            (None, Some(dims)) => dims
                .iter()
                .map(|d| d.known().ok_or_else(|| TypeError("the kernel's extents are symbolic".into())))
                .collect::<Result<_, _>>()?,
            (None, None) => return Err(TypeError("the kernel's shape is missing".into())),
        };
        let listed = |name: &str, len: usize, default: i64| -> Result<Vec<i64>, TypeError> {
            match op.attrs.ints(name) {
                Some(v) if v.len() == len => Ok(v.to_vec()),
                Some(v) => Err(TypeError(format!("`{name}` has {} entries where {len} are needed", v.len()))),
                None => Ok(vec![default; len]),
            }
        };
        if kernel.len() != rank || rank == 0 {
            return Err(TypeError(format!("its kernel has {} axes, its operand {rank} spatial axes", kernel.len())));
        }
        let (strides, dilations) = (listed("strides", rank, 1)?, listed("dilations", rank, 1)?);
        if strides.iter().chain(&dilations).chain(&kernel).any(|v| !(1..=LARGEST).contains(v)) {
            return Err(TypeError(format!("kernel, strides and dilations must lie in 1 … {LARGEST}")));
        }
        if kernel.iter().try_fold(1i64, |taps, k| taps.checked_mul(*k)).is_none() {
            return Err(TypeError(format!("its kernel {kernel:?} has too many taps")));
        }
        let (begin, end, ceil) = (vec![0; rank], vec![0; rank], op.int("ceil_mode") != 0);
        let mut window = Window { kernel, strides, dilations, begin, end, ceil, open: None };
        match op.str("auto_pad") {
            "SAME_UPPER" => window.pad_same(input, true),
            "SAME_LOWER" => window.pad_same(input, false),
            "VALID" => {}
            _ => {
                let pads = listed("pads", 2 * rank, 0)?;
                if pads.iter().any(|p| p.unsigned_abs() > LARGEST as u64) {
                    return Err(TypeError(format!("pads {pads:?} go beyond {LARGEST}")));
                }
                window.begin = pads[..rank].to_vec();
                window.end = pads[rank..].to_vec();
            }
        }
        Ok(window)
    }

    /// Pads for output extents ⌈input / stride⌉, with the odd cell after the axis (`upper`) or before it.
    fn pad_same(&mut self, input: &[Dim], upper: bool) {
        for (i, extent) in input.iter().enumerate() {
            let stride = self.strides[i];
            let total = match extent.known() {
                Some(n) => ((n + stride - 1) / stride - 1) * stride + self.reach(i) - n,
                None if stride == 1 => self.reach(i) - 1,
                None => {
                    self.open.get_or_insert((stride, extent.clone()));
                    continue;
                }
            };
            let total = total.max(0);
            let small = total / 2;
            (self.begin[i], self.end[i]) = if upper { (small, total - small) } else { (total - small, small) };
        }
    }

    /// Pads the spatial axes by what SAME padding comes to at the extents of the run, the odd cell after an axis (`upper`) or before it.
    fn pad_to_same(&self, b: &mut Builder, x: ValueId, upper: bool) -> Built {
        let ty = b.ty(x)?;
        let each = |of: &dyn Fn(usize) -> i64| (0..self.rank()).map(of).collect::<Vec<_>>();
        let extents = b.op_with("Shape", Attrs::new().with("start", 2), &[x])?;
        // max((⌈n / stride⌉ − 1) · stride + reach − n, 0)
        let (strides, before) = (b.ints(&self.strides), b.ints(&each(&|i| self.strides[i] - 1)));
        let rest = b.ints(&each(&|i| self.reach(i) - self.strides[i]));
        let rounded = b.add(extents, before)?;
        let windows = b.div(rounded, strides)?;
        let covered = b.mul(windows, strides)?;
        let covered = b.add(covered, rest)?;
        let total = b.sub(covered, extents)?;
        let (none, two) = (b.ints(&each(&|_| 0)), b.ints(&each(&|_| 2)));
        let total = b.op("Max", &[total, none])?;
        let small = b.div(total, two)?;
        let large = b.sub(total, small)?;
        let kept = b.ints(&[0, 0]);
        let (begin, end) = if upper { (small, large) } else { (large, small) };
        let pads = b.concat(&[kept, begin, kept, end], 0)?;
        let padded = b.op("Pad", &[x, pads])?;
        let spatial = (0..self.rank()).map(|_| unknown_dim("padded"));
        let shape: Vec<Dim> = ty.shape[..2].iter().cloned().chain(spatial).collect();
        Ok(b.state(padded, TensorType::new(ty.dtype, shape)))
    }

    /// The same window, if all its padding is in numbers.
    pub(super) fn padded(self) -> Result<Window, TypeError> {
        match &self.open {
            None => Ok(self),
            Some((stride, extent)) => {
                Err(TypeError(format!("`auto_pad` with a stride of {stride} needs the extent {extent} to be a number")))
            }
        }
    }

    /// Spatial axes.
    pub(super) fn rank(&self) -> usize {
        self.kernel.len()
    }

    /// Cells from a window's first to its last tap.
    pub(super) fn reach(&self, i: usize) -> i64 {
        (self.kernel[i] - 1) * self.dilations[i] + 1
    }

    /// Taps of the window.
    pub(super) fn taps(&self) -> i64 {
        self.kernel.iter().product()
    }

    pub(super) fn is_padded(&self) -> bool {
        self.begin.iter().chain(&self.end).any(|p| *p != 0)
    }

    pub(super) fn is_strided(&self) -> bool {
        self.strides.iter().any(|s| *s != 1)
    }

    /// The number of windows along each axis.
    pub(super) fn output(&self, input: &[Dim]) -> Result<Vec<Dim>, TypeError> {
        (0..self.rank())
            .map(|i| {
                let stride = self.strides[i];
                let slack = self.begin[i] + self.end[i] - self.reach(i);
                match input[i].known() {
                    Some(n) if n + slack < 0 => {
                        Err(TypeError(format!("a window of {} cells does not fit into an extent of {n}", self.reach(i))))
                    }
                    Some(n) => {
                        let mut count = (n + slack) / stride + 1;
                        if self.ceil {
                            count = (n + slack + stride - 1) / stride + 1;
                            // The last window must start inside the input or the padding before it.
                            if (count - 1) * stride >= n + self.begin[i] {
                                count -= 1;
                            }
                        }
                        Ok(Dim::from(count))
                    }
                    None if stride == 1 => Ok(&input[i] + &Dim::from(slack + 1)),
                    None if self.open.is_some() => {
                        let rounded_up = (&input[i] + &Dim::from(stride - 1)).quotient(stride);
                        Ok(rounded_up.unwrap_or_else(|| unknown_dim("window")))
                    }
                    None => {
                        let span = &input[i] + &Dim::from(slack);
                        match span.quotient(stride).filter(|_| !self.ceil || span.div_exact(&Dim::from(stride)).is_some()) {
                            Some(steps) => Ok(&steps + &Dim::from(1)),
                            None => Ok(unknown_dim("window")),
                        }
                    }
                }
            })
            .collect()
    }

    /// Offsets of the taps, last axis fastest, as the kernel is stored.
    pub(super) fn offsets(&self) -> Vec<Vec<i64>> {
        let mut all = vec![vec![]];
        for i in 0..self.rank() {
            all = all
                .iter()
                .flat_map(|head: &Vec<i64>| {
                    (0..self.kernel[i]).map(move |k| {
                        let mut o = head.clone();
                        o.push(k * self.dilations[i]);
                        o
                    })
                })
                .collect();
        }
        all
    }

    /// Pads x's spatial axes for the windows.
    pub(super) fn pad(&self, b: &mut Builder, x: ValueId, fill: Option<f64>) -> Built {
        pad_spatial(b, x, &self.begin, &self.end, fill)
    }

    /// The cell at one offset of every window: a strided slice of the padded operand.
    pub(super) fn tap(&self, b: &mut Builder, padded: ValueId, offset: &[i64], windows: &[Dim]) -> Built {
        let ty = b.ty(padded)?;
        let mut shape = ty.shape[..2].to_vec();
        shape.extend_from_slice(windows);
        if ty.shape == shape && !self.is_strided() {
            return Ok(padded);
        }
        let ends: Vec<i64> = (0..self.rank())
            .map(|i| match windows[i].known() {
                Some(n) => offset[i] + (n - 1) * self.strides[i] + 1,
                // An end counted from the back holds for any extent.
                None if offset[i] + 1 == self.reach(i) => i64::MAX,
                None => offset[i] + 1 - self.reach(i),
            })
            .collect();
        let axes: Vec<i64> = (2..2 + self.rank() as i64).collect();
        let v = b.steps(padded, &axes, offset, &ends, &self.strides)?;
        Ok(b.state(v, TensorType::new(ty.dtype, shape)))
    }
}

/// Pads the spatial axes with `fill`, by default zeros.
pub(super) fn pad_spatial(b: &mut Builder, x: ValueId, begin: &[i64], end: &[i64], fill: Option<f64>) -> Built {
    if begin.iter().chain(end).all(|p| *p == 0) {
        return Ok(x);
    }
    let mut pads = vec![0, 0];
    pads.extend_from_slice(begin);
    pads.extend([0, 0]);
    pads.extend_from_slice(end);
    let pads = b.ints(&pads);
    match fill {
        None => b.op("Pad", &[x, pads]),
        Some(fill) => {
            let fill = b.scalar_like(x, fill)?;
            b.op("Pad", &[x, pads, fill])
        }
    }
}

/// Crops a value whose spatial axes start `begin` cells early to `like`'s spatial extents.
pub(super) fn crop_like(b: &mut Builder, x: ValueId, begin: &[i64], like: ValueId) -> Built {
    let (from, to) = (b.ty(x)?, b.ty(like)?);
    let rank = begin.len();
    if from.shape[2..] == to.shape[2..] {
        return Ok(x);
    }
    let axes: Vec<i64> = (2..2 + rank as i64).collect();
    let known: Option<Vec<i64>> = to.shape[2..].iter().map(Dim::known).collect();
    let v = match known {
        Some(extents) => {
            let ends: Vec<i64> = begin.iter().zip(&extents).map(|(s, n)| s + n).collect();
            b.slices(x, &axes, begin, &ends)?
        }
        None => {
            let extents = b.op_with("Shape", Attrs::new().with("start", 2), &[like])?;
            let (s, a) = (b.ints(begin), b.ints(&axes));
            let ends = b.add(extents, s)?;
            b.op("Slice", &[x, s, ends, a])?
        }
    };
    let mut shape = from.shape[..2].to_vec();
    shape.extend_from_slice(&to.shape[2..]);
    Ok(b.state(v, TensorType::new(from.dtype, shape)))
}

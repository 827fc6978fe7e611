//! `Slice`: a range with a step along some axes, given by attributes before opset 10 and by operands since.

use super::eval::places::range;
use super::place::{Start, place};
use super::*;

pub(super) const SLICE: Row = Row {
    name: "Slice",
    infer: |cx| {
        let (ty, ranges) = (cx.ty(0)?, Ranges::of(cx)?);
        let mut shape = ty.shape.clone();
        for (i, axis) in ranges.axes.iter().enumerate() {
            let range = ranges.along(i, &ty.shape[*axis]);
            shape[*axis] = range.and_then(|r| r.len).unwrap_or_else(|| unknown_dim("slice"));
        }
        Ok(vec![TensorType::new(ty.dtype, shape)])
    },
    // x̄ = zeros with ȳ where it came from. A negative step is reversed first; a wider one puts zeros between the elements.
    pullback: |p| {
        let (x, ty) = (p.operand(0)?, p.ty(0)?);
        let mut ct = p.ct(0)?;
        let ranges = p.told(Ranges::of)?;
        let Some(steps) = &ranges.steps else { return Err(p.unsupported("its steps are computed in the graph")) };
        if steps.iter().any(|step| step.unsigned_abs() > 1 << 31) {
            return Err(p.unsupported("a step is larger than any extent"));
        }
        let mut placed = Vec::with_capacity(steps.len());
        for (i, axis) in ranges.axes.iter().copied().enumerate() {
            let (d, step) = (ty.shape[axis].clone(), steps[i]);
            let n = p.b.ty(ct)?.shape[axis].clone();
            let range = ranges.along(i, &d);
            let start = match range {
                Some(range) if step > 0 => Start::At(range.start),
                Some(range) => {
                    ct = flip(p.b, ct, axis)?;
                    Start::At(&range.start + &(&(&n - &Dim::from(1)) * &Dim::from(step)))
                }
                None if step > 0 => Start::Computed(first_place(p, x, axis, i, step)?),
                None => return Err(p.unsupported("a negative step over a range that is only known at run time")),
            };
            let start = if step.abs() == 1 { start } else { spread(p.b, &mut ct, axis, step.abs(), start, &d)? };
            placed.push((axis, start));
        }
        p.give(0, |b| place(b, ct, x, &placed))
    },
    samples: || {
        vec![
            plain(vec![floats(&[3, 4]), ints(&[1]), ints(&[3]), ints(&[-1])]),
            plain(vec![floats(&[5, 4]), ints(&[1, -3]), ints(&[1000000000000, -1])]),
            plain(vec![floats(&[7, 2]), ints(&[1]), ints(&[6]), ints(&[0]), ints(&[2])]),
            sample(
                Attrs::new(),
                vec![floats(&[6, 4]), ints(&[1, 0]), ints(&[1000000000000, 1000000000000]), ints(&[0, 1]), ints(&[2, 2])],
            ),
            plain(vec![floats(&[7, 2]), ints(&[-1]), ints(&[-1000000000000]), ints(&[0]), ints(&[-1])]),
            plain(vec![floats(&[7, 2]), ints(&[5]), ints(&[0]), ints(&[0]), ints(&[-2])]),
            plain(vec![floats(&[7, 2]), ints(&[0]), ints(&[9]), ints(&[0]), ints(&[2])]),
            plain(vec![floats(&[8]), ints(&[1]), ints(&[8]), ints(&[0]), ints(&[3])]),
            sample(Attrs::new().with("starts", vec![1]).with("ends", vec![-1]).with("axes", vec![0]), vec![floats(&[4, 3])])
                .at(9)
                .shape_only(),
        ]
    },
    ..ROW
};

/// The ranges of a slice, as far as they are known.
struct Ranges {
    axes: Vec<usize>,
    starts: Option<Vec<Dim>>,
    ends: Option<Vec<Dim>>,
    steps: Option<Vec<i64>>,
}

impl Ranges {
    fn of(cx: &Infer) -> Result<Ranges, TypeError> {
        let ty = cx.ty(0)?;
        let bounds = |name, i: usize| match cx.attrs().ints(name) {
            Some(list) => Some(list.iter().map(|b| Dim::from(*b)).collect::<Vec<_>>()),
            None => cx.extents(i),
        };
        let (starts, ends) = (bounds("starts", 1), bounds("ends", 2));
        let count = match &starts {
            Some(starts) => Some(starts.len()),
            None => cx.ty(1)?.shape.first().and_then(Dim::known).map(|n| n as usize),
        };
        let count = count.ok_or_else(|| TypeError("the number of sliced axes is unknown".into()))?;
        // By default the first axes.
        let axes = match cx.listed("axes", 3)? {
            Some(axes) => axes.iter().map(|a| ty.axis(*a)).collect::<Option<Vec<usize>>>().filter(|a| a.len() == count),
            None => (count <= ty.rank()).then(|| (0..count).collect()),
        };
        let axes = axes.ok_or_else(|| TypeError(format!("its {count} ranges do not fit the axes of {ty}")))?;
        let steps = match cx.listed("steps", 4) {
            Ok(None) => Some(vec![1; count]),
            listed => listed.ok().flatten(),
        };
        let lengths = [starts.as_ref().map(Vec::len), ends.as_ref().map(Vec::len), steps.as_ref().map(Vec::len)];
        let alike = lengths.into_iter().flatten().all(|n| n == count);
        cx.require(alike, || "its starts, ends and steps differ in number".into())?;
        cx.require(steps.iter().flatten().all(|step| *step != 0), || "a step is 0".into())?;
        Ok(Ranges { axes, starts, ends, steps })
    }

    /// Range i, along an axis of this extent.
    fn along(&self, i: usize, extent: &Dim) -> Option<Range> {
        Range::of(extent, &self.starts.as_ref()?[i], &self.ends.as_ref()?[i], self.steps.as_ref()?[i])
    }
}

/// A range along one axis: its first place, and its number of places if known.
struct Range {
    start: Dim,
    len: Option<Dim>,
}

impl Range {
    /// The range that bounds mean for an extent. In a symbolic extent, the start and any bound that is computed or counted from the
    /// end are assumed to lie inside; a number that counts the end from the front may lie past it.
    fn of(d: &Dim, start: &Dim, end: &Dim, step: i64) -> Option<Range> {
        let (Some(start), Some(end)) = (start.known(), end.known()) else {
            let inside = step == 1 && start.bounds().0 >= 0 && end.bounds().0 >= 0 && end.known().is_none();
            return inside.then(|| Range { start: start.clone(), len: Some(end - start) });
        };
        if let Some(d) = d.known().filter(|d| *d >= 0) {
            let (start, len) = range(d, start, end, step)?;
            return Some(Range { start: Dim::from(start), len: Some(Dim::from(len)) });
        }
        let at = |v: i64| if v < 0 { d + &Dim::from(v) } else { Dim::from(v) };
        if step < 0 {
            let whole = step == -1 && (start == -1 || start >= Dim::FAR) && end <= -Dim::FAR;
            return whole.then(|| Range { start: d - &Dim::from(1), len: Some(d.clone()) });
        }
        if start.abs_diff(0) >= Dim::FAR as u64 {
            return None;
        }
        let (least, most) = (d - &Dim::from(end)).bounds();
        let end = match end {
            end if end < 0 => at(end),
            end if least >= 0 => Dim::from(end),
            _ if most <= 0 || end >= Dim::FAR => d.clone(),
            // A name within a name would be another one each time.
            _ if d.is_unnamed() => return Some(Range { start: at(start), len: None }),
            end => Dim::symbol(&format!("min({d},{end})")),
        };
        let begin = at(start);
        let len = &end - &begin;
        let len = if step == 1 { Some(len) } else { len.div_exact(&Dim::from(step)) };
        Some(Range { start: begin, len })
    }
}

/// Reverses an axis.
fn flip(b: &mut Builder, v: ValueId, axis: usize) -> Built {
    let ty = b.ty(v)?;
    let v = b.steps(v, &[axis as i64], &[-1], &[i64::MIN + 1], &[-1])?;
    Ok(b.state(v, ty))
}

/// Puts step − 1 zeros around each element along an axis and returns the longer range's start. Zeros that would pass the end after
/// the last element go before each element, or are cut off if that is not possible.
fn spread(b: &mut Builder, v: &mut ValueId, axis: usize, step: i64, start: Start, d: &Dim) -> Result<Start, BuildError> {
    let ty = b.ty(*v)?;
    let (rank, n) = (ty.rank(), ty.shape[axis].clone());
    let long = &n * &Dim::from(step);
    let lead = match &start {
        Start::At(start) => {
            let lead = (&(start + &long) - d).known().map(|past| past.max(0));
            lead.filter(|lead| *lead < step && start.known().is_none_or(|start| *lead <= start))
        }
        Start::Computed(_) => None,
    };
    let mut pads = vec![0; 2 * rank + 2];
    pads[axis + 1] = lead.unwrap_or(0);
    pads[rank + 1 + axis + 1] = step - 1 - lead.unwrap_or(0);
    let apart = b.unsqueeze(*v, &[axis as i64 + 1])?;
    let pads = b.ints(&pads);
    let apart = b.op("Pad", &[apart, pads])?;
    let mut shape = ty.shape.clone();
    shape[axis] = long;
    let mut target = Vec::with_capacity(rank);
    for i in 0..rank {
        // `Reshape` can infer one extent, that of the spread axis.
        target.push(if i == axis { b.ints(&[-1]) } else { b.dim_of(*v, i)? });
    }
    let target = b.shape_from(&target)?;
    *v = b.reshape_dynamic(apart, target, &shape)?;
    Ok(match (lead, start) {
        (Some(lead), Start::At(start)) => Start::At(&start - &Dim::from(lead)),
        (_, start) => {
            shape[axis] = &shape[axis] - &Dim::from(step - 1);
            *v = b.slice(*v, axis as i64, 0, 1 - step)?;
            b.graph.set_type(*v, TensorType::new(ty.dtype, shape).into());
            start
        }
    })
}

/// The first place of range i, whose bounds the graph computes: the first element of the same slice of 0, 1, 2, …
fn first_place(p: &mut Pullback, x: ValueId, axis: usize, i: usize, step: i64) -> Result<ValueId, GradError> {
    let (starts, ends) = (p.operand(1)?, p.operand(2)?);
    let b = &mut *p.b;
    let dtype = b.ty(starts)?.dtype;
    let at = i as i64;
    let (start, end) = (b.slice(starts, 0, at, at + 1)?, b.slice(ends, 0, at, at + 1)?);
    let (start, end) = (b.cast(start, DType::I64)?, b.cast(end, DType::I64)?);
    debug_assert!(matches!(dtype, DType::I32 | DType::I64));
    let extent = b.dim_of(x, axis)?;
    let extent = b.squeeze(extent, &[0])?;
    let (zero, one) = (b.int(0), b.int(1));
    let places = b.op("Range", &[zero, extent, one])?;
    let (axis, step) = (b.ints(&[0]), b.ints(&[step]));
    let taken = b.op("Slice", &[places, start, end, axis, step])?;
    Ok(b.slice(taken, 0, 0, 1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_counted_from_the_front_is_at_most_the_extent() {
        let (n, batches) = (Dim::symbol("n"), &Dim::symbol("n") * &Dim::from(12));
        let len = |d: &Dim, start: i64, end: i64| Range::of(d, &start.into(), &end.into(), 1)?.len;
        for far in [1_000_000_000, i64::from(i32::MAX), i64::MAX] {
            assert_eq!(len(&n, 0, far), Some(n.clone()));
            assert_eq!(len(&batches, 2, far), Some(&batches - &Dim::from(2)));
            assert_eq!(len(&Dim::from(5), 1, far), Some(Dim::from(4)));
        }
        assert_eq!(len(&n, 0, 1), Some(Dim::from(1)));
        assert_eq!(len(&batches, 2, 5), Some(Dim::from(3)));
        assert_eq!(len(&n, 0, 5), Some(Dim::symbol("min(n,5)")));
        assert_eq!(len(&Dim::from(3), 0, 5), Some(Dim::from(3)));
        assert_eq!(len(&n, 0, -1), Some(&n - &Dim::from(1)));
    }
}

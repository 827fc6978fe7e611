//! Movement of elements as index maps: the dimensions of a result, and for each of its elements, in row-major order, the place in
//! the operand. The same maps move numbers, extents and bytes.

/// Dimensions of a result, and the places that its elements come from.
pub type Places = (Vec<i64>, Vec<usize>);

/// Number of elements, if it is at most `most`.
pub fn count(dims: &[i64], most: usize) -> Option<usize> {
    let n = dims.iter().try_fold(1usize, |n, d| n.checked_mul(usize::try_from(*d).ok()?))?;
    (n <= most).then_some(n)
}

/// An axis counted from the front.
pub fn axis_of(axis: i64, rank: usize) -> Option<usize> {
    let axis = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(axis).ok().filter(|a| *a < rank)
}

/// The shape that two shapes broadcast to (numpy's rule).
pub fn common(a: &[i64], b: &[i64]) -> Option<Vec<i64>> {
    let rank = a.len().max(b.len());
    let at = |s: &[i64], i: usize| if i + s.len() < rank { 1 } else { s[i + s.len() - rank] };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y || y == 1 => Some(x),
            (1, y) => Some(y),
            _ => None,
        })
        .collect()
}

/// Row-major strides.
pub fn strides(dims: &[i64]) -> Vec<i64> {
    let mut all = vec![1i64; dims.len()];
    for i in (1..dims.len()).rev() {
        // Of so many elements that this wraps, none is ever counted.
        all[i - 1] = all[i].wrapping_mul(dims[i].max(0));
    }
    all
}

/// The places from `start` on with these strides.
pub fn strided(dims: Vec<i64>, strides: &[i64], start: i64, most: usize) -> Option<Places> {
    let n = count(&dims, most)?;
    let mut from = Vec::with_capacity(n);
    let mut index = vec![0i64; dims.len()];
    let mut at = start;
    for _ in 0..n {
        from.push(at as usize);
        for axis in (0..dims.len()).rev() {
            index[axis] += 1;
            // A step past the last element may be any number; it is taken back.
            at = at.wrapping_add(strides[axis]);
            if index[axis] < dims[axis] {
                break;
            }
            at = at.wrapping_sub(strides[axis].wrapping_mul(dims[axis]));
            index[axis] = 0;
        }
    }
    Some((dims, from))
}

/// The places that `place` gives for each index.
pub fn mapped(dims: Vec<i64>, most: usize, mut place: impl FnMut(&[i64]) -> Option<usize>) -> Option<Places> {
    let n = count(&dims, most)?;
    let mut from = Vec::with_capacity(n);
    let mut index = vec![0i64; dims.len()];
    for _ in 0..n {
        from.push(place(&index)?);
        for axis in (0..dims.len()).rev() {
            index[axis] += 1;
            if index[axis] < dims[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    Some((dims, from))
}

/// The places of a broadcast.
pub fn expanded(from: &[i64], to: &[i64], most: usize) -> Option<Places> {
    if common(from, to)? != to {
        return None;
    }
    let lead = to.len() - from.len();
    let own = strides(from);
    let steps: Vec<i64> = (0..to.len()).map(|i| if i < lead || from[i - lead] == 1 { 0 } else { own[i - lead] }).collect();
    strided(to.to_vec(), &steps, 0, most)
}

/// The places of a permutation of axes.
pub fn permuted(dims: &[i64], perm: &[usize], most: usize) -> Option<Places> {
    let own = strides(dims);
    let to: Vec<i64> = perm.iter().map(|p| dims.get(*p).copied()).collect::<Option<_>>()?;
    let steps: Vec<i64> = perm.iter().map(|p| own[*p]).collect();
    strided(to, &steps, 0, most)
}

/// The places of `len` elements of an axis from `start` on, with a step.
pub fn sliced(dims: &[i64], axis: usize, start: i64, len: i64, step: i64, most: usize) -> Option<Places> {
    let (mut to, mut steps) = (dims.to_vec(), strides(dims));
    *to.get_mut(axis)? = len;
    let inside = |i: i64| (0..dims[axis]).contains(&i);
    let last = (len - 1).checked_mul(step).and_then(|span| start.checked_add(span));
    (len == 0 || inside(start) && last.is_some_and(inside)).then_some(())?;
    let first = if len == 0 { 0 } else { start * steps[axis] };
    steps[axis] = steps[axis].wrapping_mul(step);
    strided(to, &steps, first, most)
}

/// Where a slice of an axis of `n` starts, and how many elements it takes. Bounds below zero count from the end; a bound past an end
/// means that end.
pub fn range(n: i64, start: i64, end: i64, step: i64) -> Option<(i64, i64)> {
    if n <= 0 {
        return (n == 0 && step != 0).then_some((0, 0));
    }
    // In a backward slice these two mean "to the start" in ONNX Runtime, and the end of the axis in other engines.
    let means_start = end == i64::MAX || end == i64::from(i32::MAX);
    let from_front = |v: i64| if v < 0 { v.saturating_add(n) } else { v };
    let (start, end) = (from_front(start), from_front(end));
    if step > 0 {
        let (start, end) = (start.clamp(0, n), end.clamp(0, n));
        let span = (end - start).max(0);
        Some((start, span / step + (span % step != 0) as i64))
    } else if step < 0 && !means_start {
        let (start, end) = (start.clamp(0, n - 1), end.clamp(-1, n - 1));
        let (span, step) = ((start - end).max(0), step.saturating_neg());
        Some((start, span / step + (span % step != 0) as i64))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_follow_strides() {
        let places = |found: Option<Places>| found.map(|(_, from)| from);
        assert_eq!(places(expanded(&[2, 1], &[2, 3], 99)), Some(vec![0, 0, 0, 1, 1, 1]));
        assert_eq!(places(expanded(&[3], &[2, 3], 99)), Some(vec![0, 1, 2, 0, 1, 2]));
        assert_eq!(expanded(&[2], &[2, 3], 99), None);
        assert_eq!(permuted(&[2, 3], &[1, 0], 99), Some((vec![3, 2], vec![0, 3, 1, 4, 2, 5])));
        assert_eq!(places(sliced(&[2, 4], 1, 3, 2, -2, 99)), Some(vec![3, 1, 7, 5]));
        assert_eq!(sliced(&[4], 0, 3, 2, 1, 99), None);
        assert_eq!(sliced(&[4, 2], 0, 3, 1, i64::MAX, 99), Some((vec![1, 2], vec![6, 7])));
        assert_eq!(count(&[1 << 20, 1 << 20], 1 << 22), None);
    }

    #[test]
    fn a_bound_past_an_end_is_that_end() {
        for end in [9, 1_000_000_000, i64::from(i32::MAX), i64::MAX] {
            assert_eq!(range(5, 1, end, 1), Some((1, 4)));
            assert_eq!(range(5, 0, end, 2), Some((0, 3)));
        }
        for end in [-9, i64::from(i32::MIN), i64::MIN] {
            assert_eq!(range(5, i64::MAX, end, -1), Some((4, 5)));
            assert_eq!(range(5, end, -1, 1), Some((0, 4)));
        }
        assert_eq!(range(5, 3, 3, 1), Some((3, 0)));
        assert_eq!(range(5, 4, 0, i64::MIN), Some((4, 1)));
        assert_eq!((range(5, 0, 5, 0), range(0, 0, 5, -1), range(-3, 0, 5, 1)), (None, Some((0, 0)), None));
        // Engines differ in these.
        assert_eq!((range(5, 4, i64::MAX, -1), range(5, 4, i64::from(i32::MAX), -1)), (None, None));
    }
}

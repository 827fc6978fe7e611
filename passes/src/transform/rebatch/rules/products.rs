//! Contractions: where the samples of a product go.

use super::super::place::Place;
use super::{Found, Outcome, Rule};

impl Rule<'_, '_> {
    pub(super) fn matmul(&mut self) -> Found {
        let (ra, rb) = (self.rank(0)?, self.rank(1)?);
        let flipped = |name: &str| self.int(name, 0) == 1;
        if flipped("transBatchA") || flipped("transBatchB") {
            return Err("its batch axes are transposed".into());
        }
        let rank = ra.max(rb).max(2);
        // Axes of a product of matrices; a vector is a row on the left, a column on the right.
        let (rows, inner_a) = if flipped("transA") { (ra - 1, ra.wrapping_sub(2)) } else { (ra.wrapping_sub(2), ra - 1) };
        let (inner_b, columns) = if flipped("transB") { (rb - 1, rb.wrapping_sub(2)) } else { (rb.wrapping_sub(2), rb - 1) };
        let mut p = if self.placed().len() == 2 {
            self.agree(&[0, 1], rank, ra > 1 && rb > 1, |q| q.axis + 2 < rank)
                .ok_or("it multiplies samples with other samples")?
        } else {
            let i = if self.place(0).is_some() { 0 } else { 1 };
            let (r, kept, contracted, to) =
                if i == 0 { (ra, rows, inner_a, rank - 2) } else { (rb, columns, inner_b, rank - 1) };
            let why = format!("it contracts the samples of operand {i}");
            let p = self.settle(i, &why, |_, p| Ok(r != 1 && p.axis != contracted))?;
            p.at(if p.axis == kept { to } else { p.axis + rank - r })
        };
        if p.axis + 2 < rank {
            for i in [0, 1] {
                let r = self.rank(i)?;
                let missing = rank - r.max(2).min(rank);
                if self.place(i).is_none() && r > 2 && p.axis >= missing {
                    self.meet(i, p.axis - missing, &p, true)?;
                }
            }
        }
        // The result has no axis for a vector.
        if rb == 1 && p.axis == rank - 1 || ra == 1 && p.axis == rank - 2 {
            return Err("it contracts the samples".into());
        }
        if ra == 1 && p.axis == rank - 1 {
            p.axis -= 1;
        }
        self.all(p)
    }

    pub(super) fn gemm(&mut self) -> Found {
        let (rows, columns) = (self.int("transA", 0) as usize, 1 - self.int("transB", 0) as usize);
        let p = match (self.place(0).cloned(), self.place(1).cloned()) {
            (Some(_), None) => self.settle(0, "it contracts the samples", |_, p| Ok(p.axis == rows))?.at(0),
            (None, Some(_)) => self.settle(1, "it contracts the samples", |_, p| Ok(p.axis == columns))?.at(1),
            (None, None) => return Err("only its bias depends on the samples".into()),
            (Some(_), Some(_)) => return Err("it multiplies samples with other samples".into()),
        };
        if self.operands.get(2).copied().flatten().is_some() {
            let missing = 2 - self.rank(2)?.min(2);
            match self.place(2) {
                Some(q) if q.at(q.axis + missing) != p => return Err("its bias has the samples elsewhere".into()),
                Some(_) => {}
                None if p.axis >= missing => self.meet(2, p.axis - missing, &p, true)?,
                None => {}
            }
        }
        self.all(p)
    }

    pub(super) fn einsum(&mut self) -> Found {
        let equation = self.a.g.op(self.id).map(|op| op.attrs.str("equation", "").replace(' ', "")).unwrap_or_default();
        let (inputs, output) = equation.split_once("->").ok_or("its equation names no result")?;
        if equation.contains('.') {
            return Err("its equation has an ellipsis".into());
        }
        let terms: Vec<Vec<char>> = inputs.split(',').map(|t| t.chars().collect()).collect();
        let (label, p) =
            self.one_label(&terms, output).ok_or("it multiplies samples with other samples, or contracts them")?;
        let axis = output.chars().position(|c| c == label).ok_or("it contracts the samples")?;
        for (i, term) in terms.iter().enumerate() {
            if self.place(i).is_none()
                && let Some(own) = term.iter().position(|c| *c == label)
            {
                self.meet(i, own, &p, false)?;
            }
        }
        self.all(p.at(axis))
    }

    /// The label of the result that counts the samples of every operand that carries some, likeliest first, and its place.
    fn one_label(&mut self, terms: &[Vec<char>], output: &str) -> Option<(char, Place)> {
        let placed = self.placed();
        let present = placed.iter().filter_map(|i| terms.get(*i)?.get(self.place(*i)?.axis).copied());
        let labels: Vec<char> = present.chain(output.chars()).collect();
        for label in labels {
            let axes =
                placed.iter().map(|i| terms.get(*i)?.iter().position(|c| *c == label)).collect::<Option<Vec<usize>>>();
            let (Some(axes), true) = (axes, output.contains(label)) else { continue };
            let (edits, moved) = (self.edits.len(), self.moved.clone());
            let stays = self.place(placed[0])?.clone();
            let whole = self.shape(placed[0]).ok()?.get(axes[0]).cloned().map(|d| Place::whole(axes[0], d))?;
            for p in [stays, whole] {
                if p.axis == axes[0] && placed.iter().zip(&axes).all(|(i, axis)| self.bring(*i, &p.at(*axis), 0)) {
                    return Some((label, p));
                }
                self.edits.truncate(edits);
                self.moved = moved.clone();
            }
        }
        None
    }

    /// A recurrence over the first axis: samples lie along the second, of what it starts from too.
    pub(super) fn recurrent(&mut self) -> Found {
        if self.a.g.op(self.id).is_some_and(|op| op.attrs.int("layout", 0) != 0) {
            return Err("its samples come first, which few engines compute".into());
        }
        let p = self.settle(0, "it runs along the samples", |_, p| Ok(p.axis == 1))?;
        for (i, q) in [(4, p.at(0)), (5, p.clone()), (6, p.clone())] {
            match self.place(i).is_some() {
                true if !self.bring(i, &q, 0) => return Err(format!("the samples of operand {i} lie in another place")),
                false if self.operands.get(i).copied().flatten().is_some() => self.meet(i, q.axis, &q, false)?,
                _ => {}
            }
        }
        if let Some(i) = self.placed().into_iter().find(|i| ![0, 4, 5, 6].contains(i)) {
            return Err(format!("its operand {i}, a parameter of the operator, depends on the samples"));
        }
        let places = [Some(p.at(2)), Some(p.clone()), Some(p)];
        let results = self.a.g.node(self.id).results().len();
        Ok(Outcome::Places(places.into_iter().take(results).collect()))
    }
}

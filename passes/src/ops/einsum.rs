//! `Einsum`: sums of products, by subscripts such as `bij,bjk->bik`.

use super::*;

pub(super) const EINSUM: Row = Row {
    name: "Einsum",
    infer: |cx| {
        let (types, terms) = subscripts(cx)?;
        let mut extents: HashMap<char, Dim> = HashMap::new();
        for (letters, ty) in terms.operands.iter().zip(&types) {
            for (c, d) in letters.iter().zip(&ty.shape) {
                let joint = match extents.get(c) {
                    Some(e) => broadcast(std::slice::from_ref(e), std::slice::from_ref(d))?.remove(0),
                    None => d.clone(),
                };
                extents.insert(*c, joint);
            }
        }
        let shape: Option<Vec<Dim>> = terms.result.iter().map(|c| extents.get(c).cloned()).collect();
        let shape = shape.ok_or_else(|| TypeError("its result has a subscript that no operand has".into()))?;
        Ok(vec![TensorType::new(types[0].dtype, shape)])
    },
    // An operand's cotangent is the Einsum of ȳ and the other operands to that operand's subscripts. A subscript that only the
    // operand has was summed over, so the cotangent repeats along it.
    pullback: |p| {
        let ct = p.ct(0)?;
        let (types, terms) = p.told(subscripts)?;
        for i in 0..types.len() {
            if !p.wants(i) {
                continue;
            }
            let own = &terms.operands[i];
            if (1..own.len()).any(|k| own[..k].contains(&own[k])) {
                return Err(p.unsupported("a subscript occurs twice in one operand"));
            }
            let mut sources = vec![ct];
            let mut inputs: Vec<String> = vec![terms.result.iter().collect()];
            let mut seen: Vec<(char, Dim)> = Vec::new();
            seen.extend(terms.result.iter().copied().zip(p.b.ty(ct)?.shape));
            for (k, letters) in terms.operands.iter().enumerate() {
                if k != i {
                    sources.push(p.operand(k)?);
                    inputs.push(letters.iter().collect());
                    seen.extend(letters.iter().copied().zip(types[k].shape.iter().cloned()));
                }
            }
            // An extent of 1 broadcast against a larger one. Leaving its subscript out sums over the axis.
            let stretched = |k: usize| types[i].shape[k].is_one() && seen.iter().any(|(c, d)| *c == own[k] && !d.is_one());
            let keeps: Vec<bool> = (0..own.len()).map(|k| seen.iter().any(|(c, _)| *c == own[k]) && !stretched(k)).collect();
            let kept: String = own.iter().zip(&keeps).filter(|(_, keep)| **keep).map(|(c, _)| *c).collect();
            let equation = format!("{}->{kept}", inputs.join(","));
            let term = p.b.op_with("Einsum", Attrs::new().with("equation", equation.as_str()), &sources)?;
            let missing: Vec<i64> = (0..own.len()).filter(|k| !keeps[*k]).map(|k| k as i64).collect();
            let term = p.b.unsqueeze(term, &missing)?;
            let operand = p.operand(i)?;
            p.give(i, |b| b.expand_like(term, operand))?;
        }
        Ok(())
    },
    samples: || {
        let of = |equation: &str, operands: &[&[i64]]| {
            let operands = operands.iter().map(|d| floats(d)).collect();
            sample(Attrs::new().with("equation", equation), operands)
        };
        vec![
            of("bij,bjk->bik", &[&[2, 3, 4], &[2, 4, 2]]),
            of("ij,jk", &[&[2, 3], &[3, 4]]),
            of("bhqd,bhkd->bhqk", &[&[2, 2, 3, 4], &[2, 2, 5, 4]]),
            of("...ij,jk->...ik", &[&[2, 2, 3, 4], &[4, 2]]),
            of("ij->ji", &[&[2, 3]]),
            of("ijk->ik", &[&[2, 3, 4]]),
            of("i,j->ij", &[&[3], &[4]]),
            of("ij,kj->i", &[&[2, 3], &[4, 3]]),
            of("i,i->", &[&[3], &[3]]),
            of("bsd, dhk -> bhsk", &[&[2, 3, 4], &[4, 2, 2]]),
        ]
    },
    ..ROW
};

pub(super) fn subscripts(cx: &Infer) -> Result<(Vec<TensorType>, Subscripts), TypeError> {
    let types: Vec<TensorType> = (0..cx.types.len()).map(|i| cx.ty(i).cloned()).collect::<Result<_, _>>()?;
    let terms = Subscripts::parse(cx.op.str("equation"), &types)?;
    Ok((types, terms))
}

/// The subscripts of operands and result. Unused letters replace an ellipsis.
pub(super) struct Subscripts {
    pub(super) operands: Vec<Vec<char>>,
    pub(super) result: Vec<char>,
}

impl Subscripts {
    fn parse(equation: &str, types: &[TensorType]) -> Result<Subscripts, TypeError> {
        let fail = |what: &str| TypeError(format!("equation `{equation}` {what}"));
        let text: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
        let (left, right) = match text.split_once("->") {
            Some((l, r)) => (l.to_string(), Some(r.to_string())),
            None => (text.clone(), None),
        };
        let terms: Vec<&str> = left.split(',').collect();
        if terms.len() != types.len() {
            return Err(fail(&format!("has {} terms for {} operands", terms.len(), types.len())));
        }
        let free: Vec<char> = ('A'..='Z').chain('a'..='z').filter(|c| !text.contains(*c)).collect();
        let letters = |term: &str| term.replace("...", "").chars().count();
        let mut widest = 0;
        for (term, ty) in terms.iter().zip(types) {
            let covered = letters(term);
            if covered > ty.rank() || (covered != ty.rank() && !term.contains("...")) {
                return Err(fail(&format!("does not fit {ty}")));
            }
            widest = widest.max(ty.rank() - covered);
        }
        if widest > free.len() {
            return Err(fail("leaves no letters for its ellipsis"));
        }
        let spell = |term: &str, width: usize| -> Vec<char> {
            let dots: String = free[widest - width..widest].iter().collect();
            term.replace("...", &dots).chars().collect()
        };
        let operands: Vec<Vec<char>> =
            terms.iter().zip(types).map(|(term, ty)| spell(term, ty.rank() - letters(term))).collect();
        let result = match right {
            Some(r) => spell(&r, widest),
            None => {
                // Subscripts that occur once, in alphabetical order, after the ellipsis.
                let mut once: Vec<char> =
                    left.chars().filter(|c| c.is_alphabetic() && left.matches(*c).count() == 1).collect();
                once.sort_unstable();
                free[..widest].iter().copied().chain(once).collect()
            }
        };
        if result.iter().chain(operands.iter().flatten()).any(|c| !c.is_ascii_alphabetic()) {
            return Err(fail("is malformed"));
        }
        Ok(Subscripts { operands, result })
    }
}

//! Symbolic dimensions: integer polynomials over named symbols, kept in one normal form so that equality is equality.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::ops::{Add, Mul, Sub};
use std::sync::Arc;

/// A product of symbols, sorted, repeated for powers. The empty product is 1.
type Monomial = Vec<Arc<str>>;

/// One extent of a tensor: a polynomial with integer coefficients over symbols such as `batch`.
///
/// Two dimensions that are equal as polynomials compare equal; two that differ may still agree at run time.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Dim {
    /// Most extents are a number, which stands here alone and takes no memory of its own.
    constant: i64,
    /// Products of at least one symbol; no coefficient is 0.
    terms: BTreeMap<Monomial, i64>,
}

impl Dim {
    /// No axis is this long. Exporters write this number, or a larger one, where they mean the end of an axis.
    pub const FAR: i64 = 1_000_000_000;

    /// A dimension given by a symbol of its own.
    pub fn symbol(name: &str) -> Dim {
        Dim { constant: 0, terms: BTreeMap::from([(vec![Arc::from(name)], 1)]) }
    }

    /// Reads a sum of products such as `12*batch+3`, as exporters and [`Dim`]'s own text write them. Any other text (a
    /// quotient, `batch-size`) is taken for the name of one symbol.
    pub fn parse(text: &str) -> Dim {
        let mut reader = Reader { rest: text };
        // A longer text is found in damaged files only, and may be nested as deep as it is long.
        let sum = if text.len() <= LONGEST { reader.sum() } else { None };
        match sum {
            Some(d) if reader.rest.trim().is_empty() => d,
            _ => Dim::symbol(text),
        }
    }

    /// The value, if no symbol is involved.
    pub fn known(&self) -> Option<i64> {
        self.terms.is_empty().then_some(self.constant)
    }

    /// Is this the extent 1 that broadcasts?
    pub fn is_one(&self) -> bool {
        self.known() == Some(1)
    }

    /// The quotient if `divisor` divides every term exactly.
    pub fn div_exact(&self, divisor: &Dim) -> Option<Dim> {
        if self == divisor {
            return Some(Dim::from(1));
        }
        let mut divisors = divisor.terms();
        let (Some((factors, coefficient)), None) = (divisors.next(), divisors.next()) else { return None };
        let mut quotient = Dim::from(0);
        for (monomial, c) in self.terms() {
            if c.checked_rem(coefficient) != Some(0) {
                return None;
            }
            let mut rest = monomial.to_vec();
            for f in factors {
                let at = rest.iter().position(|s| s == f)?;
                rest.remove(at);
            }
            quotient.insert(rest, c / coefficient);
        }
        Some(quotient)
    }

    /// Is it, or is it computed from, an extent that cannot be expressed in the inputs' symbols? It equals no other one.
    pub fn is_unnamed(&self) -> bool {
        self.symbols().any(|s| s.starts_with('?'))
    }

    /// The quotient of an extent, rounded down. Where it is no polynomial it is a symbol named by its text, so that equal quotients are
    /// equal. An extent without a name has no quotient.
    pub fn quotient(&self, divisor: i64) -> Option<Dim> {
        match self.known() {
            Some(n) => n.checked_div_euclid(divisor).map(Dim::from),
            None if self.is_unnamed() => None,
            None => self.div_exact(&Dim::from(divisor)).or_else(|| {
                // ⌊⌊n / a⌋ / b⌋ = ⌊n / (a · b)⌋
                let (inner, by) = self.as_quotient().unwrap_or((self.clone(), 1));
                let by = by.checked_mul(divisor)?;
                Some(Dim::symbol(&format!("({inner})/{by}")))
            }),
        }
    }

    /// What a quotient divides, and by what.
    fn as_quotient(&self) -> Option<(Dim, i64)> {
        let mut terms = self.terms();
        let (Some(([symbol], 1)), None) = (terms.next(), terms.next()) else { return None };
        let (inner, by) = symbol.strip_prefix('(')?.rsplit_once(")/")?;
        let depth = |depth: i32, c: char| depth + i32::from(c == '(') - i32::from(c == ')');
        let balanced = inner
            .chars()
            .scan(0, |d, c| {
                Some({
                    *d = depth(*d, c);
                    *d
                })
            })
            .all(|d| d >= 0);
        balanced.then_some((Dim::parse(inner), by.parse().ok().filter(|by| *by > 0)?))
    }

    /// The same with a symbol replaced.
    pub fn substitute(&self, symbol: &str, by: &Dim) -> Dim {
        let mut sum = Dim::from(0);
        for (monomial, c) in self.terms() {
            let factor = |s: &Arc<str>| if &**s == symbol { by.clone() } else { Dim::symbol(s) };
            let term = monomial.iter().fold(Dim::from(c), |p, s| &p * &factor(s));
            sum = &sum + &term;
        }
        sum
    }

    /// The value under an assignment of symbols, or `None` when one is missing.
    pub fn eval(&self, value_of: &dyn Fn(&str) -> Option<i64>) -> Option<i64> {
        let mut sum = 0i64;
        for (monomial, c) in self.terms() {
            let mut product = c;
            for s in monomial {
                product = product.checked_mul(value_of(s)?)?;
            }
            sum = sum.checked_add(product)?;
        }
        Some(sum)
    }

    /// The least and the largest value it can have. A symbol is an extent: below [`Dim::FAR`], and at least 1, or 0 where its
    /// name says that it was computed (`?…`, a quotient).
    pub fn bounds(&self) -> (i128, i128) {
        let factor = |s: &Arc<str>| {
            let named = s.chars().all(|c| c.is_alphanumeric() || "_ .:-".contains(c));
            (i128::from(named), i128::from(Dim::FAR - 1))
        };
        let mut sum = (0i128, 0i128);
        for (monomial, c) in self.terms() {
            let product = |(a, b): (i128, i128), (p, q): (i128, i128)| (a.saturating_mul(p), b.saturating_mul(q));
            let (least, most) = monomial.iter().map(factor).fold((1, 1), product);
            let scaled = (i128::from(c).saturating_mul(least), i128::from(c).saturating_mul(most));
            sum.0 = sum.0.saturating_add(scaled.0.min(scaled.1));
            sum.1 = sum.1.saturating_add(scaled.0.max(scaled.1));
        }
        sum
    }

    /// The terms of the polynomial: a sorted list of symbols (repeated for powers) and its coefficient. Zero has none.
    pub fn terms(&self) -> impl Iterator<Item = (&[Arc<str>], i64)> {
        let constant = (self.constant != 0).then_some((&[][..], self.constant));
        constant.into_iter().chain(self.terms.iter().map(|(m, c)| (m.as_slice(), *c)))
    }

    /// The names of the symbols in it.
    pub fn symbols(&self) -> impl Iterator<Item = &str> {
        self.terms.keys().flatten().map(|s| &**s)
    }

    fn insert(&mut self, monomial: Monomial, c: i64) {
        if monomial.is_empty() {
            self.constant = self.constant.saturating_add(c);
            return;
        }
        match self.terms.entry(monomial) {
            Entry::Vacant(_) if c == 0 => {}
            Entry::Vacant(e) => drop(e.insert(c)),
            Entry::Occupied(mut e) => match e.get().saturating_add(c) {
                0 => drop(e.remove()),
                sum => drop(e.insert(sum)),
            },
        }
    }
}

impl Ord for Dim {
    fn cmp(&self, other: &Dim) -> Ordering {
        self.terms().cmp(other.terms())
    }
}

impl PartialOrd for Dim {
    fn partial_cmp(&self, other: &Dim) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Length of the longest text that is read as a sum of products.
const LONGEST: usize = 256;
/// Terms that a product may have when it is read.
const MOST_TERMS: usize = 256;

/// What is left to read of a sum of products.
struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest.trim_start().strip_prefix(token);
        self.rest = found.unwrap_or(self.rest);
        found.is_some()
    }

    fn sum(&mut self) -> Option<Dim> {
        let mut sum = self.product()?;
        loop {
            if self.eat("+") {
                sum = &sum + &self.product()?;
            } else if self.rest.starts_with(" - ") && self.eat("-") {
                sum = &sum - &self.product()?;
            } else {
                return Some(sum);
            }
        }
    }

    fn product(&mut self) -> Option<Dim> {
        let mut product = self.factor()?;
        while self.eat("*") {
            let factor = self.factor()?;
            if product.terms().count() * factor.terms().count() > MOST_TERMS {
                return None;
            }
            product = &product * &factor;
        }
        Some(product)
    }

    fn factor(&mut self) -> Option<Dim> {
        if self.eat("(") {
            let inner = self.sum()?;
            return self.eat(")").then_some(inner);
        }
        if self.eat("-") {
            return Some(&Dim::from(-1) * &self.factor()?);
        }
        let text = self.rest.trim_start();
        let end = text.find(|c: char| !c.is_alphanumeric() && !"_.?:".contains(c)).unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        self.rest = rest;
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            word.parse().ok().map(|v: i64| Dim::from(v))
        } else {
            (!word.is_empty()).then(|| Dim::symbol(word))
        }
    }
}

impl From<i64> for Dim {
    fn from(value: i64) -> Dim {
        Dim { constant: value, terms: BTreeMap::new() }
    }
}

impl Add<&Dim> for &Dim {
    type Output = Dim;
    fn add(self, other: &Dim) -> Dim {
        let mut sum = self.clone();
        sum.constant = sum.constant.saturating_add(other.constant);
        for (m, c) in &other.terms {
            sum.insert(m.clone(), *c);
        }
        sum
    }
}

impl Sub<&Dim> for &Dim {
    type Output = Dim;
    fn sub(self, other: &Dim) -> Dim {
        self + &(other * &Dim::from(-1))
    }
}

impl Mul<&Dim> for &Dim {
    type Output = Dim;
    fn mul(self, other: &Dim) -> Dim {
        let mut product = Dim::from(0);
        for (ma, ca) in self.terms() {
            for (mb, cb) in other.terms() {
                let mut m: Monomial = ma.iter().chain(mb).cloned().collect();
                m.sort();
                product.insert(m, ca.saturating_mul(cb));
            }
        }
        product
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(v) = self.known() {
            return write!(f, "{v}");
        }
        let mut first = true;
        let constant = (self.constant != 0).then_some((&[][..], self.constant));
        for (monomial, c) in self.terms.iter().rev().map(|(m, c)| (m.as_slice(), *c)).chain(constant) {
            // Without the blanks `a-b` would be a name.
            let size = if first { i128::from(c) } else { i128::from(c).abs() };
            f.write_str(if first {
                ""
            } else if c < 0 {
                " - "
            } else {
                "+"
            })?;
            first = false;
            match (monomial.is_empty(), size) {
                (true, c) => write!(f, "{c}")?,
                (false, 1) => f.write_str(&monomial.join("*"))?,
                (false, c) => write!(f, "{c}*{}", monomial.join("*"))?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotients_of_quotients_read_as_one() {
        let quotient = |d: &Dim, by: i64| d.quotient(by).unwrap();
        let frames = quotient(&(&Dim::symbol("sequence") - &Dim::from(192)), 128);
        assert_eq!(frames.to_string(), "(sequence - 192)/128");
        assert_eq!(quotient(&quotient(&frames, 2), 2).to_string(), "(sequence - 192)/512");
        assert_eq!(quotient(&(&frames + &Dim::from(1)), 2).to_string(), "((sequence - 192)/128+1)/2");
        assert_eq!(quotient(&Dim::symbol("(a)*(b)/2"), 2).to_string(), "((a)*(b)/2)/2");
        assert_eq!(quotient(&Dim::symbol("(N//2)"), 2).to_string(), "((N//2))/2");
    }

    #[test]
    fn polynomials_have_one_normal_form() {
        let (b, t) = (Dim::symbol("batch"), Dim::symbol("time"));
        assert_eq!(&b * &t, &t * &b);
        assert_eq!(&(&b + &Dim::from(3)) - &b, Dim::from(3));
        assert_eq!((&(&b * &t) * &Dim::from(6)).div_exact(&(&t * &Dim::from(2))), Some(&b * &Dim::from(3)));
        assert_eq!((&b + &Dim::from(3)).div_exact(&Dim::from(2)), None);
        assert_eq!((&b * &Dim::from(12)).to_string(), "12*batch");
        let d = &(&b * &Dim::from(12)) - &(&t * &Dim::from(2));
        assert_eq!(Dim::parse(&d.to_string()), d);
        assert_eq!(
            Dim::parse("2*time + batch*(batch + 1) - 3"),
            &(&(&t + &t) + &(&b * &(&b + &Dim::from(1)))) - &Dim::from(3)
        );
        assert_eq!((&b - &Dim::from(192)).to_string(), "batch - 192");
        let least = &b + &Dim::from(i64::MIN);
        assert_eq!(least.to_string(), format!("batch - {}", i64::MIN.unsigned_abs()));
        for name in ["batch-size", "N//2", "a b", "2batch", "*", "", "(batch+1)/2", "x.1_dim_0"] {
            assert_eq!(Dim::parse(name), Dim::symbol(name));
        }
        let deep = "(".repeat(100_000);
        assert_eq!(Dim::parse(&deep), Dim::symbol(&deep));
        let wide = "(a+b)*(c+d)*(e+f)*(g+h)*(i+j)*(k+l)*(m+n)*(o+p)*(q+r)*(s+t)*(u+v)*(w+x)*(y+z)";
        assert_eq!(Dim::parse(wide), Dim::symbol(wide));
        assert_eq!((&Dim::from(i64::MIN) * &Dim::from(-1)).known(), Some(i64::MAX));
        assert_eq!(Dim::from(i64::MIN).div_exact(&Dim::from(-1)), None);
        assert_eq!((&b * &t).eval(&|s| Some(s.len() as i64)), Some(20));
    }
}

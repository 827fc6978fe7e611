//! The activations of a recurrence: the functions that its attribute `activations` names, with their numbers, after the bound `clip`.

use super::super::formula::formula;
use super::super::unary;
use super::super::*;

/// Functions and how many of `alpha`, `beta` each takes.
const FUNCTIONS: [(&str, usize); 11] = [
    ("Relu", 0),
    ("Tanh", 0),
    ("Sigmoid", 0),
    ("Softsign", 0),
    ("Softplus", 0),
    ("LeakyRelu", 1),
    ("ThresholdedRelu", 1),
    ("Elu", 1),
    ("HardSigmoid", 2),
    ("Affine", 2),
    ("ScaledTanh", 2),
];

/// y = f(max(−c, min(c, x))).
pub(super) struct Activation {
    op: Op,
    bound: Option<f64>,
}

/// A recurrence's activations, `count` for all its directions; `defaults` are one direction's. Else why they cannot be had.
pub(super) fn activations(op: &Op, defaults: &[&str], count: usize) -> Result<Vec<Activation>, String> {
    let given = op.attrs.strings("activations").unwrap_or_else(|| defaults.iter().map(|d| d.to_string()).collect());
    let numbers = |name: &str| op.attrs.floats(name).unwrap_or_default().to_vec().into_iter();
    let (mut alphas, mut betas) = (numbers("activation_alpha"), numbers("activation_beta"));
    let bound = op.attrs.get("clip").map(|_| op.float("clip") as f64);
    let one = |name: &String| {
        let known = FUNCTIONS.iter().find(|(f, _)| f.eq_ignore_ascii_case(name));
        let (function, takes) = known.ok_or_else(|| format!("`{name}` is no activation of a recurrence"))?;
        let numbers = [("alpha", &mut alphas), ("beta", &mut betas)].into_iter().take(*takes);
        let given = numbers.filter_map(|(attr, numbers)| Some((attr, numbers.next()?)));
        let attrs = given.fold(Attrs::new(), |attrs, (attr, number)| attrs.with(attr, number));
        if ["Affine", "ScaledTanh"].contains(function) && attrs.0.len() < 2 {
            return Err(format!("its activation {function} is given without its two numbers"));
        }
        Ok(Activation { op: Op::new(function, attrs), bound })
    };
    given.iter().cycle().take(count).map(one).collect()
}

impl Activation {
    /// The same function without a bound.
    pub(super) fn unbounded(&self) -> Activation {
        Activation { op: self.op.clone(), bound: None }
    }

    /// y of x.
    pub(super) fn apply(&self, b: &mut Builder, x: ValueId) -> Built {
        let x = self.bounded(b, x)?;
        let (alpha, beta) = self.numbers();
        match self.op.name.as_str() {
            "Affine" => formula(b, [x], |[x]| x * alpha + beta),
            "ScaledTanh" => formula(b, [x], |[x]| (x * beta).op("Tanh") * alpha),
            _ => Ok(b.node(self.op.clone(), &[Some(x)])?[0]),
        }
    }

    /// x̄ from x, y and ȳ.
    pub(super) fn operand_ct(&self, b: &mut Builder, [x, y, ct]: [ValueId; 3]) -> Built {
        let (alpha, beta) = self.numbers();
        let bounded = self.bounded(b, x)?;
        let x_ct = match self.op.name.as_str() {
            "Affine" => b.scale(ct, alpha)?,
            "ScaledTanh" => formula(b, [y, ct], |[y, ct]| ct * (alpha * beta - y * y * (beta / alpha)))?,
            _ => unary::operand_ct(b, &self.op, [bounded, y, ct])?,
        };
        match self.bound {
            Some(bound) => formula(b, [x, x_ct], |[x, x_ct]| x_ct * x.is_between(-bound, bound)),
            None => Ok(x_ct),
        }
    }

    fn numbers(&self) -> (f64, f64) {
        (self.op.float("alpha") as f64, self.op.float("beta") as f64)
    }

    fn bounded(&self, b: &mut Builder, x: ValueId) -> Built {
        match self.bound {
            Some(bound) => formula(b, [x], |[x]| x.max(-bound).min(bound)),
            None => Ok(x),
        }
    }
}

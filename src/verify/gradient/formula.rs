//! The optimisers' formulas in float64, with PyTorch's semantics. They are written a second time, so that a training graph's updates
//! are compared with something independent.

use serde::Deserialize;
use std::collections::HashMap;

/// `ancre.optimizer` of a training graph.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Optimizer {
    /// `adamw`, `adam`, `sgd` or `none`.
    pub(super) kind: String,
    /// Name of the learning rate's input.
    pub(super) lr: Option<String>,
    /// Decay rates of the moments.
    pub(super) betas: [f64; 2],
    /// Added to the root of the second moment.
    pub(super) eps: f64,
    pub(super) momentum: f64,
    pub(super) nesterov: bool,
    /// Weight decay; none of the router's tensors decays.
    pub(super) weight_decay: f64,
    pub(super) clip_norm: Option<f64>,
    pub(super) accumulate: Option<u32>,
    /// Learning rate of the router relative to the weights'.
    pub(super) router_lr_scale: Option<f64>,
    /// Tensors with a rate and a decay of their own.
    pub(super) groups: Vec<Group>,
}

/// Tensors with a rate and a decay of their own.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Group {
    lr_scale: f64,
    weight_decay: Option<f64>,
    tensors: Vec<String>,
}

/// What an update starts from; maps are by the name of the state.
pub(super) struct Before<'a> {
    pub(super) gradients: &'a HashMap<String, Vec<f64>>,
    pub(super) state: &'a HashMap<String, Vec<f64>>,
    /// Which tensors are the router's.
    pub(super) router: &'a dyn Fn(&str) -> bool,
    pub(super) lr: f64,
    /// Steps done before.
    pub(super) step: u64,
}

impl Optimizer {
    pub(super) fn micro_batches(&self) -> u64 {
        self.accumulate.unwrap_or(1).max(1) as u64
    }

    /// A tensor's learning rate, relative to `lr`, and its weight decay.
    fn rate_and_decay(&self, name: &str, is_router: bool) -> (f64, f64) {
        let group = self.groups.iter().find(|g| g.tensors.iter().any(|t| t == name));
        let (scale, decay) = if is_router { (self.router_lr_scale.unwrap_or(1.0), 0.0) } else { (1.0, self.weight_decay) };
        group.map_or((scale, decay), |g| (scale * g.lr_scale, g.weight_decay.unwrap_or(decay)))
    }

    fn is_adam(&self) -> bool {
        self.kind == "adam" || self.kind == "adamw"
    }

    /// Names of the moments of a tensor.
    pub(super) fn moments(&self) -> &'static [&'static str] {
        match () {
            () if self.is_adam() => &["exp_avg", "exp_avg_sq"],
            () if self.kind == "sgd" && self.momentum != 0.0 => &["momentum_buffer"],
            () => &[],
        }
    }

    /// Is a step the last micro-batch of an update?
    pub(super) fn is_update(&self, step: u64) -> bool {
        (step + 1).is_multiple_of(self.micro_batches())
    }

    /// The factor by which clipping shrinks gradients of a global norm.
    pub(super) fn clip_factor(&self, norm: f64) -> f64 {
        self.clip_norm.map_or(1.0, |limit| (limit / (norm + 1e-6)).min(1.0))
    }

    /// The next value of every state tensor that the step changes.
    pub(super) fn step(&self, before: &Before) -> HashMap<String, Vec<f64>> {
        let mut next = HashMap::new();
        let n = self.micro_batches();
        let (update, zero) = (self.is_update(before.step), Vec::new());
        // What accumulated before this micro-batch, and now.
        let mut gradients: Vec<(&String, Vec<f64>)> = Vec::new();
        for (name, g) in before.gradients {
            let mut g = g.clone();
            if n > 1 {
                let key = format!("{name}.accumulator");
                let so_far = before.state.get(&key).unwrap_or(&zero);
                g.iter_mut().zip(so_far).for_each(|(g, s)| *g += s);
                next.insert(key, if update { vec![0.0; g.len()] } else { g.clone() });
                g.iter_mut().for_each(|g| *g /= n as f64);
            }
            gradients.push((name, g));
        }
        let norm = gradients.iter().flat_map(|(_, g)| g).map(|g| g * g).sum::<f64>().sqrt();
        let factor = self.clip_factor(norm);
        for (name, mut g) in gradients {
            g.iter_mut().for_each(|g| *g *= factor);
            self.update(name, &g, before, update, &mut next);
        }
        next
    }

    fn update(&self, name: &str, g: &[f64], before: &Before, update: bool, next: &mut HashMap<String, Vec<f64>>) {
        let zeros = vec![0.0; g.len()];
        let state =
            |suffix: &str| before.state.get(&format!("{name}.{suffix}")).filter(|s| s.len() == g.len()).unwrap_or(&zeros);
        let w = &before.state[name];
        if !update {
            next.insert(name.to_string(), w.clone());
            for m in self.moments() {
                next.insert(format!("{name}.{m}"), state(m).clone());
            }
            return;
        }
        let (scale, decay) = self.rate_and_decay(name, (before.router)(name));
        let lr = before.lr * scale;
        let coupled = if self.kind == "adamw" { 0.0 } else { decay };
        let g: Vec<f64> = g.iter().zip(w).map(|(g, w)| g + coupled * w).collect();
        if self.is_adam() {
            let [b1, b2] = self.betas;
            let t = ((before.step + 1) / self.micro_batches()) as f64;
            let m: Vec<f64> = state("exp_avg").iter().zip(&g).map(|(m, g)| b1 * m + (1.0 - b1) * g).collect();
            let v: Vec<f64> = state("exp_avg_sq").iter().zip(&g).map(|(v, g)| b2 * v + (1.0 - b2) * g * g).collect();
            let (c1, c2) = (1.0 - b1.powf(t), 1.0 - b2.powf(t));
            let keep = if self.kind == "adamw" { 1.0 - lr * decay } else { 1.0 };
            let change = |(m, v): (&f64, &f64)| lr / c1 * m / ((v / c2).sqrt() + self.eps);
            let new = w.iter().zip(m.iter().zip(&v)).map(|(w, mv)| w * keep - change(mv)).collect();
            next.insert(format!("{name}.exp_avg"), m);
            next.insert(format!("{name}.exp_avg_sq"), v);
            next.insert(name.to_string(), new);
            return;
        }
        let mut direction = g.clone();
        if self.momentum != 0.0 {
            let buffer: Vec<f64> = state("momentum_buffer").iter().zip(&g).map(|(b, g)| self.momentum * b + g).collect();
            direction = if self.nesterov {
                g.iter().zip(&buffer).map(|(g, b)| g + self.momentum * b).collect()
            } else {
                buffer.clone()
            };
            next.insert(format!("{name}.momentum_buffer"), buffer);
        }
        next.insert(name.to_string(), w.iter().zip(&direction).map(|(w, d)| w - lr * d).collect());
    }

    /// The gradient of a tensor from what a first step, with moments at zero, gives back.
    ///
    /// `next` are the state's next values, `w` the tensor before, `norm` the global gradient norm, `lr` the learning rate.
    pub(super) fn gradient_from_step(
        &self,
        name: &str,
        is_router: bool,
        w: &[f64],
        next: &dyn Fn(&str) -> Option<Vec<f64>>,
        norm: f64,
        lr: f64,
    ) -> Option<Vec<f64>> {
        if self.micro_batches() > 1 {
            // The first micro-batch's sum is its gradient.
            return next(&format!("{name}.accumulator"));
        }
        let (scale, decay) = self.rate_and_decay(name, is_router);
        let coupled = if self.kind == "adamw" { 0.0 } else { decay };
        let lr = lr * scale;
        let moved: Vec<f64> = match self.moments() {
            ["exp_avg", ..] => next(&format!("{name}.exp_avg"))?.iter().map(|m| m / (1.0 - self.betas[0])).collect(),
            ["momentum_buffer"] => next(&format!("{name}.momentum_buffer"))?,
            _ if self.kind == "sgd" => next(name)?.iter().zip(w).map(|(new, w)| (w - new) / lr).collect(),
            _ => return None,
        };
        let factor = self.clip_factor(norm);
        Some(moved.iter().zip(w).map(|(m, w)| (m - coupled * w) / factor).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_step(o: &Optimizer, state: &[(&str, f64)], g: f64, lr: f64, step: u64) -> HashMap<String, f64> {
        let state = state.iter().map(|(n, v)| (n.to_string(), vec![*v])).collect();
        let gradients = HashMap::from([("w".to_string(), vec![g])]);
        let before = Before { gradients: &gradients, state: &state, router: &|_| false, lr, step };
        o.step(&before).into_iter().map(|(n, v)| (n, v[0])).collect()
    }

    #[test]
    fn a_first_step_of_adam_is_the_learning_rate() {
        let o = Optimizer { kind: "adamw".into(), betas: [0.9, 0.999], eps: 0.0, weight_decay: 0.1, ..Default::default() };
        let next = one_step(&o, &[("w", 2.0)], -3.0, 0.01, 0);
        assert!((next["w"] - (2.0 * (1.0 - 0.001) + 0.01)).abs() < 1e-12, "{next:?}");
        let back = o.gradient_from_step("w", false, &[2.0], &|n| next.get(n).map(|v| vec![*v]), 3.0, 0.01).unwrap();
        assert!((back[0] + 3.0).abs() < 1e-12);
    }

    #[test]
    fn momentum_clipping_and_accumulation_are_pytorchs() {
        let o = Optimizer { kind: "sgd".into(), momentum: 0.5, nesterov: true, weight_decay: 0.1, ..Default::default() };
        let next = one_step(&o, &[("w", 1.0), ("w.momentum_buffer", 4.0)], 2.0, 0.1, 3);
        // g = 2.1, buffer = 4.1, direction = 2.1 + 2.05
        assert!((next["w"] - (1.0 - 0.415)).abs() < 1e-12 && (next["w.momentum_buffer"] - 4.1).abs() < 1e-12);
        let o = Optimizer { kind: "sgd".into(), clip_norm: Some(1.0), accumulate: Some(2), ..Default::default() };
        let held = one_step(&o, &[("w", 1.0)], 6.0, 0.1, 0);
        assert_eq!((held["w"], held["w.accumulator"]), (1.0, 6.0));
        let done = one_step(&o, &[("w", 1.0), ("w.accumulator", 6.0)], 2.0, 0.1, 1);
        // The mean is 4, clipped to 1.
        assert!((done["w"] - 0.9).abs() < 1e-6 && done["w.accumulator"] == 0.0);
    }
}

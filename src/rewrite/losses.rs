//! The losses that were asked for: what the command line says of them, and what the model's outputs make of that.

use crate::cli::{LossArgs, LossChoice, Reduction};
use crate::error::{Failure, sentence};
use crate::io::arrays::{read_npy, read_tensors, tensors};
use crate::io::tensor::NpTensor;
use crate::rewrite::load_inlined;
use ancre_passes::ir::Graph;
use ancre_passes::pipeline::training::TrainingOptions;
use ancre_passes::transform::loss::teacher::Teacher;
use ancre_passes::transform::loss::{ClassWeights, LossKind, LossOptions, loss_output};
use ancre_passes::transform::{auto_loss, lift};
use std::path::{Path, PathBuf};

/// The losses that were asked for.
#[derive(Clone, Debug)]
pub(super) struct LossRequest {
    terms: Vec<Term>,
    /// The output of losses that name none.
    output: Option<String>,
    /// Names of targets, and of what weights positions, each for an output or for all.
    labels: Vec<(Option<String>, String)>,
    masks: Vec<(Option<String>, String)>,
    /// What all have in common.
    common: LossOptions,
    /// `--distill`. Names of outputs may hold colons, which only the model's outputs tell apart.
    distill: Option<String>,
    /// Whom distillations learn from, once it was read.
    teacher: Option<Teacher>,
}

#[derive(Clone, Debug)]
struct Term {
    /// Which; `None`: by evidence in the model.
    kind: Option<LossKind>,
    /// `OUTPUT[:WEIGHT]`.
    on: Option<String>,
    /// Of the loss that `--distill` adds, which is 1 or the option's own; else `on` may hold one.
    weight: Option<f64>,
}

impl Term {
    fn has_teacher(&self) -> bool {
        self.kind.is_some_and(LossKind::has_teacher)
    }
}

/// Whom distillations learn from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum TeacherRequest {
    Source,
    File(PathBuf),
    Output(String),
}

impl LossRequest {
    /// Reads the options. Fails at a file that cannot be read, or numbers that make no sense.
    pub(super) fn new(a: &LossArgs) -> Result<LossRequest, Failure> {
        let mut common = LossOptions::of(LossKind::CrossEntropy);
        common.sum = a.reduction == Some(Reduction::Sum);
        common.smoothing = a.label_smoothing.unwrap_or(common.smoothing);
        // PyTorch's default.
        common.ignore_index = Some(a.ignore_index.unwrap_or(-100));
        common.huber_delta = a.huber_delta.unwrap_or(common.huber_delta);
        common.class_axis = a.class_axis;
        common.blank = a.ctc_blank.map_or(common.blank, i64::from);
        common.gamma = a.focal_gamma.unwrap_or(common.gamma);
        common.dice_smooth = a.dice_smooth.unwrap_or(common.dice_smooth);
        common.class_weights = a.class_weights.as_deref().map(class_weights).transpose()?.unwrap_or_default();
        let mut terms: Vec<Term> = Vec::new();
        for l in &a.loss {
            let kind = match l.choice {
                LossChoice::Auto => None,
                LossChoice::Kind(kind) => Some(kind),
                LossChoice::None => continue,
            };
            terms.push(Term { kind, on: l.on.clone(), weight: None });
        }
        if a.distill.is_some() && !terms.iter().any(Term::has_teacher) {
            terms.push(Term { kind: Some(LossKind::Distill), on: None, weight: Some(1.0) });
        }
        if terms.is_empty() {
            terms.push(Term { kind: None, on: None, weight: None });
        }
        let (output, labels, masks) = (a.output.clone(), named(&a.labels, "labels")?, named(&a.mask, "mask")?);
        Ok(LossRequest { terms, output, labels, masks, common, distill: a.distill.clone(), teacher: None })
    }

    /// Is the loss the model's own evidence?
    pub(super) fn is_auto(&self) -> bool {
        matches!(self.terms[..], [Term { kind: None, .. }])
    }

    /// The output of the first loss, if one was named.
    pub(super) fn output(&self, g: &Graph) -> Option<String> {
        let own = self.terms.first().and_then(|t| on_output(g, t.on.as_deref()).0);
        own.or_else(|| self.output.clone())
    }

    /// Fills in the losses for a model; `instead` is a loss for those that evidence decides. The error says why there is no evidence.
    pub(super) fn choose(&self, g: &Graph, o: &mut TrainingOptions, instead: Option<LossKind>) -> Result<(), String> {
        let mut chosen = Vec::new();
        for t in &self.terms {
            let (output, weight) = on_output(g, t.on.as_deref());
            if let Some(w) = weight.filter(|w| !(*w >= 0.0 && (*w as f32).is_finite())) {
                return Err(format!("--loss …:{w}: a weight of 0 or more was expected"));
            }
            let output = output.or_else(|| self.output.clone());
            let kind = match t.kind.or(instead) {
                Some(kind) => kind,
                None => auto_loss::choose(g, output.as_deref()).map_err(|e| sentence(&e, e.hint()))?,
            };
            let mut loss = self.common.clone();
            (loss.kind, loss.weight) = (kind, weight.or(t.weight).unwrap_or(1.0));
            let read = loss_output(g, output.as_deref()).ok().map(|v| g.name(v).to_string());
            let of = |all: &[(Option<String>, String)]| {
                let own = all.iter().find(|(on, _)| on.is_some() && *on == read);
                own.or_else(|| all.iter().find(|(on, _)| on.is_none())).map(|(_, name)| name.clone())
            };
            (loss.labels, loss.mask) = (of(&self.labels), of(&self.masks));
            loss.output = output;
            chosen.push(loss);
        }
        let outputs: Vec<&str> = g.outputs().iter().map(|o| g.name(o.value)).collect();
        for (flag, all) in [("labels", &self.labels), ("mask", &self.masks)] {
            let stray = all.iter().filter_map(|(on, _)| on.as_deref()).find(|on| !outputs.contains(on));
            if let Some(on) = stray {
                return Err(format!("--{flag} {on}=…: the model's outputs are {}", outputs.join(", ")));
            }
        }
        o.loss = chosen.remove(0);
        o.more = chosen;
        o.output = o.loss.output.clone();
        o.teacher = self.teacher.clone();
        Ok(())
    }

    /// Reads `--distill`, and the teacher if there is one. `source` is the model as it was before anything changed it.
    pub(super) fn read_teacher(&mut self, source: &Graph) -> Result<(), Failure> {
        let mut of = self.terms.iter().any(Term::has_teacher).then_some(TeacherRequest::Source);
        if let Some(text) = &self.distill {
            let (given, temperature, weight) = distillation(source, text)?;
            (of, self.common.temperature) = (Some(given), temperature);
            if let Some(weight) = weight {
                let own = self.terms.iter_mut().find_map(|t| t.weight.as_mut());
                let what = || format!("--distill {text}: the weight belongs to --loss distill:OUTPUT:WEIGHT");
                *own.ok_or_else(|| Failure::input(what()))? = weight;
            }
        }
        self.teacher = match of {
            None => None,
            Some(TeacherRequest::Output(name)) => Some(Teacher::Output(name)),
            Some(TeacherRequest::Source) => Some(Teacher::Graph(Box::new(source.clone()))),
            Some(TeacherRequest::File(path)) => {
                let (mut g, ..) = load_inlined(&path)?;
                lift::lift_constants(&mut g);
                ancre_passes::transform::dropout::evaluation_mode(&mut g);
                Some(Teacher::Graph(Box::new(g)))
            }
        };
        Ok(())
    }
}

fn is_output(g: &Graph, name: &str) -> bool {
    g.outputs().iter().any(|o| g.name(o.value) == name)
}

/// Takes `OUTPUT[:WEIGHT]` apart. The names of the model's outputs may hold colons.
fn on_output(g: &Graph, text: Option<&str>) -> (Option<String>, Option<f64>) {
    let Some(text) = text.filter(|t| !t.is_empty()) else { return (None, None) };
    let split = text.rsplit_once(':').and_then(|(name, w)| Some((name, w.parse::<f64>().ok()?)));
    match split {
        Some((name, weight)) if !is_output(g, text) => ((!name.is_empty()).then(|| name.to_string()), Some(weight)),
        _ => (Some(text.to_string()), None),
    }
}

/// Reads `[OUTPUT=]NAME`.
fn named(all: &[String], flag: &str) -> Result<Vec<(Option<String>, String)>, Failure> {
    let pair = |text: &String| match text.rsplit_once('=') {
        Some((on, name)) if !on.is_empty() && !name.is_empty() => Ok((Some(on.to_string()), name.to_string())),
        None if !text.is_empty() => Ok((None, text.clone())),
        _ => Err(Failure::input(format!("--{flag} needs a name"))),
    };
    let pairs: Vec<(Option<String>, String)> = all.iter().map(pair).collect::<Result<_, _>>()?;
    match pairs.iter().enumerate().find(|(i, (on, _))| pairs[..*i].iter().any(|(earlier, _)| earlier == on)) {
        Some((_, (_, name))) => Err(Failure::input(format!("--{flag} {name}: one output has two"))
            .help(format!("give --{flag} OUTPUT=NAME once for each output"))),
        None => Ok(pairs),
    }
}

/// Reads `source|FILE|output=NAME[:T[:WEIGHT]]`. The names of the model's outputs may hold colons.
fn distillation(g: &Graph, text: &str) -> Result<(TeacherRequest, f64, Option<f64>), Failure> {
    let names_output = |of: &str| of.strip_prefix("output=").is_some_and(|name| is_output(g, name));
    let (mut of, mut numbers) = (text, Vec::new());
    while numbers.len() < 2
        && !names_output(of)
        && let Some((rest, number)) = of.rsplit_once(':')
        && let Ok(number) = number.parse::<f64>()
    {
        of = rest;
        numbers.insert(0, number);
    }
    let (temperature, weight) = (numbers.first().copied().unwrap_or(1.0), numbers.get(1).copied());
    if !(temperature > 0.0 && temperature.is_finite()) || weight.is_some_and(|w| !(w >= 0.0 && w.is_finite())) {
        let what = "a temperature above 0 and a weight of 0 or more were expected";
        return Err(Failure::input(format!("--distill {text}: {what}")));
    }
    let teacher = match (of, of.strip_prefix("output=")) {
        ("source", _) => TeacherRequest::Source,
        (_, Some(name)) if !name.is_empty() => TeacherRequest::Output(name.to_string()),
        _ => TeacherRequest::File(PathBuf::from(of)),
    };
    Ok((teacher, temperature, weight))
}

/// Reads `--class-weights`.
fn class_weights(text: &str) -> Result<ClassWeights, Failure> {
    if text == "balanced" {
        return Ok(ClassWeights::Fed);
    }
    let numbers = |text: &str| -> Option<Vec<f64>> {
        let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|w| !w.is_empty());
        words.map(|w| w.parse().ok()).collect::<Option<Vec<f64>>>().filter(|all| !all.is_empty())
    };
    let path = Path::new(text);
    let all = match numbers(text) {
        Some(all) => all,
        None => {
            let suffix = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
            let arrays = match suffix.as_str() {
                "npy" => Some(tensors(&[read_npy(path)?], path)?),
                "npz" | "safetensors" => Some(read_tensors(path)?),
                _ => None,
            };
            match arrays {
                Some(arrays) => match &arrays.values().collect::<Vec<&NpTensor>>()[..] {
                    [one] if one.shape().len() == 1 => one.to_f64(),
                    _ => return Err(Failure::input("--class-weights: holds no single vector").at(path)),
                },
                None => {
                    let text = std::fs::read_to_string(path).map_err(|e| {
                        Failure::input(format!("cannot be read: {e}"))
                            .at(path)
                            .help("--class-weights takes balanced, numbers w0,w1,… or a file of them")
                    })?;
                    let what = "--class-weights: numbers were expected, with commas or spaces between";
                    numbers(&text).ok_or_else(|| Failure::input(what).at(path))?
                }
            }
        }
    };
    match all.iter().find(|w| !(**w >= 0.0 && w.is_finite())) {
        Some(w) => Err(Failure::input(format!("--class-weights: {w} is no number of 0 or more"))),
        None => Ok(ClassWeights::Given(all)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ancre_passes::text::parse;

    fn colons() -> Graph {
        parse("net (float[n, 2] x) => (\"Identity:0\", y) { \"Identity:0\" = Relu (x) y = Relu (x) }").unwrap()
    }

    #[test]
    fn an_output_s_name_may_hold_colons() {
        let g = colons();
        for (text, output, weight) in [
            ("Identity:0", Some("Identity:0"), None),
            ("Identity:0:0.5", Some("Identity:0"), Some(0.5)),
            ("y:2", Some("y"), Some(2.0)),
            ("y", Some("y"), None),
            (":3", None, Some(3.0)),
        ] {
            assert_eq!(on_output(&g, Some(text)), (output.map(String::from), weight), "{text}");
        }
    }

    #[test]
    fn a_teacher_s_name_may_hold_colons() {
        let g = colons();
        let of = |text: &str| distillation(&g, text).ok();
        let output = |name: &str| TeacherRequest::Output(name.into());
        assert_eq!(of("source"), Some((TeacherRequest::Source, 1.0, None)));
        assert_eq!(of("source:4:0.5"), Some((TeacherRequest::Source, 4.0, Some(0.5))));
        assert_eq!(of("C:\\t.onnx:2"), Some((TeacherRequest::File("C:\\t.onnx".into()), 2.0, None)));
        assert_eq!(of("output=aux:3"), Some((output("aux"), 3.0, None)));
        assert_eq!(of("output=Identity:0"), Some((output("Identity:0"), 1.0, None)));
        assert_eq!(of("output=Identity:0:2:0.5"), Some((output("Identity:0"), 2.0, Some(0.5))));
        assert_eq!(of("output=y:3"), Some((output("y"), 3.0, None)));
        assert_eq!((of("source:0"), of("output=y:0")), (None, None));
    }

    #[test]
    fn class_weights_are_numbers_or_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.txt");
        std::fs::write(&path, "1 2.5\n0\n").unwrap();
        let given = class_weights(path.to_str().unwrap()).unwrap();
        assert_eq!(given, ClassWeights::Given(vec![1.0, 2.5, 0.0]));
        assert_eq!(class_weights("1,2.5,0").unwrap(), given);
        assert_eq!(class_weights("balanced").unwrap(), ClassWeights::Fed);
        assert!(class_weights("1,-2").is_err() && class_weights("no.txt").is_err());
    }
}

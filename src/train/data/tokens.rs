//! A stream of tokens, cut into windows.

use super::wanted::{Slot, Target, Wanted};
use super::{DataOptions, Dataset};
use crate::engine::Tensors;
use crate::error::Failure;
use crate::io::tensor::NpTensor;
use crate::text::Tokens;
use ancre_passes::ir::DType;
use std::path::{Path, PathBuf};

/// A data set of windows of a token stream.
pub(super) struct TokenSet {
    path: PathBuf,
    tokens: Tokens,
    window: usize,
    stride: usize,
    samples: usize,
    fills: Fills,
    notices: Vec<String>,
}

/// What an input of a language model is fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fill {
    /// The window's tokens, starting so many tokens after the window does.
    Tokens(usize),
    /// 0, 1, 2, …
    Positions,
    /// The same number everywhere.
    All(u8),
    /// Nothing: past keys and values of length 0.
    Past,
}

impl TokenSet {
    /// Checks the tokens of a file against the model.
    pub(super) fn open(path: &Path, tokens: Tokens, wanted: &Wanted, o: &DataOptions) -> Result<TokenSet, Failure> {
        let fail = |e: Failure| e.at(path);
        let (fills, ids) = fills(wanted).map_err(fail)?;
        let target = wanted.only_target("tokens").map_err(fail)?;
        let window = window(ids, target.map(|t| &t.slot), o).map_err(fail)?;
        let shifted = fills.iter().any(|(_, f)| *f == Fill::Tokens(1));
        let need = window + usize::from(shifted);
        let count = tokens.len();
        if count < need {
            let what = format!("holds {count} tokens, one sample needs {need}");
            return Err(Failure::input(what)
                .at(path)
                .help("give a longer file, or a smaller --window where the model allows it"));
        }
        if let Some(classes) = target.and_then(|t| t.classes) {
            let about = tokens.about();
            if let (Some(vocabulary), Some(name)) = (about.vocabulary.filter(|v| *v > classes), &about.tokenizer) {
                let what = format!(
                    "has tokens of {name}, whose vocabulary of {vocabulary} is larger than the model's of {classes}"
                );
                return Err(Failure::input(what)
                    .at(path)
                    .help(format!("use the model's own tokenizer, or rewrite the model with --classes {vocabulary}")));
            }
            if let Some((at, token)) = tokens.range(0..count).enumerate().find(|(_, t)| *t as usize >= classes) {
                let what = format!("token {at} is {token}; `{}` of the model takes 0 to {}", ids.name, classes - 1);
                return Err(Failure::input(what)
                    .at(path)
                    .help("use the model's own tokenizer, and u16 in little-endian order"));
            }
        }
        let stride = o.stride.unwrap_or(window);
        let mut notices = Vec::new();
        if let Some(target) = target.filter(|_| shifted) {
            notices.push(format!("`{}` is fed the next tokens: the ids moved by one", target.slot.name));
        }
        let samples = (count - need) / stride + 1;
        Ok(TokenSet { path: path.to_path_buf(), tokens, window, stride, samples, fills, notices })
    }

    fn tensor(&self, slot: &Slot, fill: Fill, rows: &[usize]) -> Option<NpTensor> {
        let batch = if slot.batched { rows.len() } else { 1 };
        if fill == Fill::Past {
            let dims = slot.shape.iter().map(|d| d.unwrap_or(0));
            let shape: Vec<usize> = slot.batched.then_some(batch).into_iter().chain(dims).collect();
            return NpTensor::zeros(slot.dtype, &shape);
        }
        let mut values = Vec::with_capacity(batch * self.window);
        for row in rows.iter().take(batch) {
            let start = row * self.stride;
            match fill {
                Fill::Tokens(shift) => {
                    let range = start + shift..start + shift + self.window;
                    values.extend(self.tokens.range(range).map(f64::from));
                }
                Fill::Positions => values.extend((0..self.window).map(|i| i as f64)),
                Fill::All(v) => values.extend(std::iter::repeat_n(f64::from(v), self.window)),
                Fill::Past => {}
            }
        }
        let shape: Vec<usize> = slot.batched.then_some(batch).into_iter().chain([self.window]).collect();
        NpTensor::from_f64s(slot.dtype, &shape, &values)
    }
}

/// Inputs with what each is fed.
type Fills = Vec<(Slot, Fill)>;

/// What each input is fed, and the input of the ids.
fn fills(wanted: &Wanted) -> Result<(Fills, &Slot), Failure> {
    let help = "give arrays named like the inputs instead (.npz, .safetensors, a directory of .npy files)";
    let mut fills = Fills::new();
    let mut ids: Vec<&Slot> = Vec::new();
    for slot in &wanted.inputs {
        let name = slot.name.to_ascii_lowercase();
        let integer = matches!(slot.dtype, DType::I64 | DType::I32 | DType::Bool);
        let line = slot.shape.len() == 1;
        let open = slot.shape.iter().filter(|d| d.is_none()).count();
        let fill = if line && name.contains("mask") {
            Fill::All(1)
        } else if line && integer && name.contains("position") {
            Fill::Positions
        } else if line && integer && (name.contains("type") || name.contains("segment")) {
            Fill::All(0)
        } else if line && integer && slot.batched && slot.dtype != DType::Bool {
            ids.push(slot);
            Fill::Tokens(0)
        } else if slot.dtype.is_float() && name.contains("past") && open == 1 {
            Fill::Past
        } else {
            let what = format!("tokens cannot fill input {}; ids, masks and positions [N, T] they can", slot.text());
            return Err(Failure::input(what).help(help));
        };
        fills.push((slot.clone(), fill));
    }
    let [one] = ids[..] else {
        let what = format!("tokens feed one input of ids, int64 [N, T]; the model reads {}", wanted.listed());
        return Err(Failure::input(what).help(help));
    };
    let Some(Target { slot: target, loss, .. }) = wanted.only_target("tokens")? else { return Ok((fills, one)) };
    if target.shape.len() != 1 || target.dtype.is_float() {
        let what = format!("tokens give a label for each position, and the loss {loss} reads {}", target.text());
        return Err(Failure::input(what).help("rewrite a language model with --loss next-token, or give arrays (.npz)"));
    }
    let shift = usize::from(loss != "next-token");
    fills.push((target.clone(), Fill::Tokens(shift)));
    Ok((fills, one))
}

/// Tokens in one sample: the graph's sequence length, or what was asked for.
fn window(ids: &Slot, target: Option<&Slot>, o: &DataOptions) -> Result<usize, Failure> {
    let fixed = ids.shape[0].or(target.and_then(|t| t.shape[0]));
    match (fixed, o.window) {
        (Some(own), Some(asked)) if own != asked => Err(Failure::input(format!(
            "--window {asked} does not fit input {}, whose sequence length is {own}",
            ids.text()
        ))
        .help("leave it away")),
        (Some(1), _) => Err(Failure::input(format!("input {} takes one token, which has no next one", ids.text()))
            .help("export the model for a longer or an open sequence length")),
        (_, Some(1)) => Err(Failure::input("--window 1: one token has no next one").help("give at least 2")),
        (Some(own), _) => Ok(own),
        (None, Some(asked)) => Ok(asked),
        (None, None) => Err(Failure::input(format!("input {} leaves the sequence length open", ids.text()))
            .help("say how many tokens one sample has: --window N")),
    }
}

impl Dataset for TokenSet {
    fn len(&self) -> usize {
        self.samples
    }

    fn describe(&self) -> String {
        let (tokens, file) = (self.tokens.describe(), self.path.display());
        format!("{} windows of {} tokens in {file} ({tokens}; stride {})", self.samples, self.window, self.stride)
    }

    fn batch(&self, rows: &[usize], _epoch: u64) -> Result<Tensors, Failure> {
        let fill = |(slot, fill): &(Slot, Fill)| {
            let tensor = self.tensor(slot, *fill, rows);
            let fault = || Failure::input(format!("input {} cannot be filled with tokens", slot.text())).at(&self.path);
            Ok((slot.name.clone(), tensor.ok_or_else(fault)?))
        };
        self.fills.iter().map(fill).collect()
    }

    fn notices(&self) -> &[String] {
        &self.notices
    }

    fn bytes_per_token(&self) -> Option<f64> {
        self.tokens.bytes_per_token()
    }

    fn is_sequence(&self) -> bool {
        true
    }
}

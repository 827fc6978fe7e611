//! `inspect`: the residual structure, changing nothing.

use crate::cli::InspectArgs;
use crate::error::Failure;
use crate::io::files::Outputs;
use crate::rewrite;
use crate::topology::weights::{self, json_of};
use ancre_passes::analysis::residual::find_residuals;
use ancre_passes::analysis::{dot, explain, picture, report};
use serde_json::json;
use std::fmt::Write;

/// Runs `inspect` and returns what goes to stdout. Fails when the model cannot be read, or `--why` names nothing in it.
pub fn inspect(a: &InspectArgs) -> Result<String, Failure> {
    let (g, ..) = rewrite::load_inlined(&a.model)?;
    let structure = find_residuals(&g);
    let model = a.model.display().to_string();
    let mut drawings = Outputs::default();
    if let Some(path) = &a.dot {
        drawings.add_bytes(dot::draw(&g, &structure).as_bytes(), path)?;
    }
    if let Some(path) = &a.svg {
        let name = a.model.file_name().map_or(model.clone(), |n| n.to_string_lossy().into_owned());
        drawings.add_bytes(picture::svg(&g, &structure, &name).as_bytes(), path)?;
    }
    drawings.commit()?;
    if let Some(name) = &a.why {
        return explain::why(&g, &structure, name).ok_or_else(|| {
            Failure::input(format!("has no node or value named `{name}`"))
                .help("--rejected lists all adds that were not taken")
                .at(&a.model)
        });
    }
    if a.rejected {
        return Ok(explain::rejected(&g, &structure));
    }
    let routed = weights::of_graph(&g);
    if a.json {
        let mut report = report::inspect_json(&g, &structure, &model);
        if let Ok(Some((router, weights))) = routed {
            report["router"] = json!(router);
            report["topology"] = json_of(&weights);
        }
        return Ok(report.to_string());
    }
    let nothing = structure.identity_count() + structure.projections.len() == 0 && !structure.rejected.is_empty();
    let mut text = report::inspect_text(&g, &structure) + if nothing { "--rejected says why.\n" } else { "" };
    if let Err(why) = &routed {
        let _ = writeln!(text, "\nRouted by ancre-rewrite; the weights are not in the file: {why}.");
    }
    if let Ok(Some((r, weights))) = routed {
        let options = weights::options(&r);
        let _ = writeln!(text, "\nRouted by ancre-rewrite ({options}). The weight of each state in each block:\n");
        weights.iter().for_each(|w| text.push_str(&(w.text() + "\n")));
        let _ = writeln!(text, "`ancre-rewrite topology {model}` draws them.");
    }
    Ok(text)
}

//! `inspect`: the residual structure, changing nothing.

use crate::cli::InspectArgs;
use crate::error::Failure;
use crate::io::files::Outputs;
use crate::rewrite;
use ancre_passes::analysis::residual::find_residuals;
use ancre_passes::analysis::{dot, explain, report};

/// Runs `inspect` and returns what goes to stdout.
///
/// # Errors
/// When the model cannot be read, or `--why` names nothing in it.
pub fn inspect(a: &InspectArgs) -> Result<String, Failure> {
    let (g, ..) = rewrite::load_inlined(&a.model)?;
    let structure = find_residuals(&g);
    if let Some(path) = &a.dot {
        let mut outputs = Outputs::default();
        outputs.add_bytes(dot::draw(&g, &structure).as_bytes(), path)?;
        outputs.commit()?;
    }
    let model = a.model.display().to_string();
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
    if a.json {
        return Ok(report::inspect_json(&g, &structure, &model).to_string());
    }
    Ok(report::inspect_text(&g, &structure))
}

//! The page: the pictures one below the other, in a file that needs nothing beside itself, on a screen or on paper.

use super::scene::escaped;
use super::{Topology, draw};
use std::fmt::Write;

const STYLE: &str = "body{font:15px/1.45 Helvetica,Arial,sans-serif;color:#222;margin:1.5rem}\
h1{font-size:1.5rem;margin:0}h2{font-size:1.15rem;margin:1.6rem 0 .3rem}table{border-collapse:collapse;margin:.6rem 0}td,th{padding:.2rem .7rem;border-bottom:1px solid #dde1e6;text-align:right}\
td:first-child,th:first-child{text-align:left}p{color:#555;margin:.2rem 0;max-width:70rem}\
figure{margin:0;overflow-x:auto;display:inline-block;max-width:100%;vertical-align:top}figure svg{display:block}\
@page{size:A4 landscape;margin:12mm}\
@media print{body{margin:0}section{break-inside:auto}h2{break-after:avoid}\
figure{overflow:visible;break-inside:avoid}figure svg{max-width:100%;max-height:178mm;width:auto;height:auto}}";

/// A page with this title, whose paragraphs come first, and `body`, which is HTML.
pub(crate) fn document(title: &str, paragraphs: &[&str], body: &str) -> String {
    let title = escaped(title);
    let paragraphs: String = paragraphs.iter().map(|p| format!("<p>{}</p>\n", escaped(p))).collect();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <h1>{title}</h1>\n{paragraphs}{body}</body>\n</html>\n"
    )
}

pub(super) fn html(t: &Topology) -> String {
    let mut out = String::new();
    for i in 0..t.weights.len() {
        let heading = t.heading(i);
        let _ = writeln!(out, "<section>\n<h2>{}</h2>", escaped(&heading));
        for picture in t.pictures(i) {
            let _ = write!(out, "<figure>\n{}</figure>\n", picture.svg(&heading));
        }
        out.push_str("</section>\n");
    }
    let curves = draw::curves(&t.course);
    if !curves.is_empty() {
        out.push_str("<section>\n<h2>The run</h2>\n");
        curves.iter().for_each(|c| _ = write!(out, "<figure>\n{}</figure>\n", c.svg("The run")));
        out.push_str("</section>\n");
    }
    document(&t.title(), &[&t.options(), draw::LEGEND], &out)
}

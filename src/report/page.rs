//! The page: the summary first, then the figures, each with its tables folded beneath it.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::report::plot::draw::Picture;
use crate::report::plot::figure::{Figure, Table};
use crate::report::plot::palette;
use crate::report::summary::Summary;
use crate::report::tables::Tables;

/// The content security policy: nothing may be loaded; only the page's own style applies.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// The beginning of every page's title.
const TITLE: &str = "Trephine report: ";

/// Whether `start` is the start of a report page.
pub fn is_page(start: &[u8]) -> bool {
    let start = String::from_utf8_lossy(start);
    start.starts_with("<!DOCTYPE html>") && start.contains(&format!("<title>{TITLE}"))
}

/// The whole page.
pub fn page(tables: &Tables, summary: &Summary, figures: &[Figure], pictures: &[Vec<Picture>]) -> String {
    let title = tables.read.iter().map(|(label, _)| label.as_str()).collect::<Vec<_>>().join(", ");
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                // No icon: a browser would ask for one otherwise.
                title { (TITLE) (title) }
                style { (PreEscaped(style())) }
            }
            body {
                header {
                    h1 { "Trephine report" }
                    p.folders { (title) }
                }
                main {
                    section id="summary" aria-label="Summary" {
                        div.sentences {
                            @for sentence in &summary.sentences { p { (sentence) } }
                            @if summary.sentences.is_empty() { p { "The folders contain only spectra." } }
                        }
                        (contents(figures))
                    }
                    @for (figure, pictures) in figures.iter().zip(pictures) { (section(figure, pictures)) }
                }
                footer { (footer(tables)) }
            }
        }
    };
    markup.into_string()
}

fn style() -> String {
    let dark = palette::dark_rules();
    let sheet = include_str!("page.css");
    format!("{sheet}@media screen and (prefers-color-scheme:dark){{{dark}}}")
}

fn contents(figures: &[Figure]) -> Markup {
    html! {
        @if figures.len() > 1 {
            nav aria-label="Figures" {
                ol { @for figure in figures { li { a href=(format!("#{}", figure.id)) { (figure.title) } } } }
            }
        }
    }
}

fn section(figure: &Figure, pictures: &[Picture]) -> Markup {
    html! {
        section id=(figure.id) {
            h2 { (figure.title) }
            p.see { (figure.see) }
            div.plots {
                @for (plot, picture) in figure.plots.iter().zip(pictures) {
                    div.plot { (picture.inline(plot, &figure.see)) }
                }
            }
            @for note in &figure.notes { p.note { (note) } }
            @for table in &figure.tables { (numbers(table)) }
        }
    }
}

fn numbers(table: &Table) -> Markup {
    html! {
        details {
            summary { (table.caption) }
            div.wide tabindex="0" role="region" aria-label=(table.caption) {
                table {
                    thead {
                        tr {
                            @for (at, heading) in table.headings.iter().enumerate() {
                                th scope="col" class=[(at < table.words).then_some("words")] { (heading) }
                            }
                        }
                    }
                    tbody {
                        @for row in &table.rows {
                            tr {
                                @for (at, cell) in row.iter().enumerate() {
                                    @let class = (at < table.words).then_some("words");
                                    @if at == 0 { th scope="row" class=[class] { (cell) } }
                                    @else { td class=[class] { (cell) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn footer(tables: &Tables) -> Markup {
    html! {
        p { "Written by Trephine " (env!("CARGO_PKG_VERSION")) " from:" }
        ul {
            @for (label, files) in &tables.read { li { (label) ": " (files.join(", ")) } }
        }
    }
}

//! The report: what its page says, how it is built, and that it loads nothing from elsewhere.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::common::{data, job, run, trephine};
use crate::report_files::{analysis, analyzed, autopsy, dissected, fidelity, measured, written};
use scraper::{ElementRef, Html, Selector};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};
use trephine::Kind;
use trephine::checkpoint::Identity;
use trephine::commands::analyze::ANALYSIS;
use trephine::commands::autopsy::AUTOPSY;
use trephine::commands::extract::extract;
use trephine::commands::extract::output::Spectrum;
use trephine::commands::fidelity::FIDELITY;
use trephine::report::{Report, Reported, report};
use trephine::run::Silent;

/// Method A with a served checkpoint, beside Method B.
fn adapters() -> &'static [PathBuf; 2] {
    static MADE: OnceLock<(TempDir, [PathBuf; 2])> = OnceLock::new();
    let (_, folders) = MADE.get_or_init(|| {
        let home = tempdir().unwrap();
        let [a, b] = ["method-a", "method-b"].map(|name| home.path().join(name));
        let mut plain = job(&data("base"), &data("tuned"), &a);
        plain.served = Some(data("base-fp8"));
        extract(&plain, &Silent).unwrap();
        extract(&job(&data("base-fp8"), &data("tuned"), &b), &Silent).unwrap();
        (home, [a, b])
    });
    folders
}

fn reported(folders: &[PathBuf], home: &Path) -> Reported {
    let (out, svg) = (home.join("report.html"), Some(home.join("svg")));
    report(&Report { folders: folders.into(), out, svg }).unwrap()
}

struct Drawn {
    home: TempDir,
    text: String,
    page: Html,
    told: Reported,
}

fn drawn(folders: &[PathBuf]) -> Drawn {
    let home = tempdir().unwrap();
    let told = reported(folders, home.path());
    let text = fs::read_to_string(home.path().join("report.html")).unwrap();
    assert_eq!(told.bytes, text.len() as u64);
    let page = Html::parse_document(&text);
    check(&text, &page);
    Drawn { home, text, page, told }
}

fn select<'a>(page: &'a Html, what: &str) -> Vec<ElementRef<'a>> {
    page.select(&Selector::parse(what).unwrap()).collect()
}

fn within<'a>(element: ElementRef<'a>, what: &str) -> Vec<ElementRef<'a>> {
    element.select(&Selector::parse(what).unwrap()).collect()
}

fn words(element: ElementRef) -> String {
    element.text().collect::<String>().trim().to_owned()
}

/// Asserts what holds for every page, whatever its input.
fn check(text: &str, page: &Html) {
    assert_eq!(page.errors, Vec::<String>::new());
    for outside in
        ["http:", "https:", "src=", "@import", "url(", "<script", "<link", "<img", "javascript:", "data:"]
    {
        assert!(!text.contains(outside) || text.contains("hostile"), "the page says {outside}");
    }
    for element in ["script", "link", "img", "iframe", "object", "embed", "base", "use", "image", "b", "i"] {
        assert!(select(page, element).is_empty(), "an element {element}");
    }
    let policy = select(page, "meta[http-equiv=Content-Security-Policy]");
    assert!(policy[0].attr("content").unwrap().starts_with("default-src 'none';"));
    assert_eq!((select(page, "h1").len(), select(page, "html[lang=en]").len()), (1, 1));
    assert!(!words(select(page, "#summary p")[0]).is_empty());

    let all = select(page, "[id]");
    let ids: BTreeSet<&str> = all.iter().map(|element| element.attr("id").unwrap()).collect();
    assert_eq!(ids.len(), all.len(), "an id stands twice");
    for link in select(page, "a") {
        let to = link.attr("href").unwrap().strip_prefix('#').unwrap();
        assert!(ids.contains(to), "a link to {to}");
    }
    for figure in select(page, "main section:not(#summary)") {
        assert!(!words(within(figure, "h2")[0]).is_empty());
        let see = words(within(figure, "p.see")[0]);
        assert!(see.len() > 40 && see.ends_with('.'), "{see}");
        assert!(!within(figure, "svg").is_empty() && !within(figure, "table").is_empty());
        for svg in within(figure, "svg") {
            check_plot(svg, &ids);
        }
    }
    for table in select(page, "table") {
        let columns = within(table, "thead th").len();
        assert!(within(table, "tbody tr").iter().all(|row| within(*row, "th, td").len() == columns));
    }
}

/// Asserts that a figure has a title, a line on what to see, and named axes.
fn check_plot(svg: ElementRef, ids: &BTreeSet<&str>) {
    let id = svg.attr("id").unwrap();
    assert_eq!(svg.attr("role"), Some("img"), "{id}");
    let labels: Vec<&str> = svg.attr("aria-labelledby").unwrap().split(' ').collect();
    assert!(labels.len() == 2 && labels.iter().all(|label| ids.contains(label)), "{id}");
    assert!(!words(within(svg, "title")[0]).is_empty() && words(within(svg, "desc")[0]).len() > 40, "{id}");
    let texts: Vec<String> = within(svg, "text").into_iter().map(words).collect();
    let axes: &[&str] = match id.split('-').next().unwrap() {
        "errors" => &["layer", "relative error, ‖delta − B·A‖ / ‖delta‖"],
        "energy" => &["rank of every module", "captured energy, %"],
        "served" | "methods" => &["distance from the tuned weights, % of that without", "all"],
        "orthogonality" => &["layer", "cos(D, N)", "chance"],
        "noise" => &["layer"],
        "weights" => &["magnitude of a weight, |w|", "weights per octave, %"],
        "ranks" => &["layer", "suggested rank, singular values"],
        "spectra" | "beside" => &["index of the singular value", "singular value"],
        other => panic!("an unknown plot {other}"),
    };
    for axis in axes {
        assert!(texts.iter().any(|text| text == axis), "{id} does not say {axis}: {texts:?}");
    }
    assert_eq!(
        svg.attr("viewbox").or(svg.attr("viewBox")).map(|size| size.starts_with("0 0 3600 ")),
        Some(true)
    );
}

/// The row of a table, by the start of its caption and the first cell.
fn row(page: &Html, caption: &str, first: &str) -> Vec<String> {
    let found =
        select(page, "details").into_iter().find(|d| words(within(*d, "summary")[0]).starts_with(caption));
    let rows = within(found.unwrap_or_else(|| panic!("no table '{caption}'")), "tbody tr");
    let cells = rows.into_iter().map(|row| within(row, "th, td").into_iter().map(words).collect::<Vec<_>>());
    cells
        .into_iter()
        .find(|cells| cells[0] == first)
        .unwrap_or_else(|| panic!("no row '{first}' in '{caption}'"))
}

fn spectra(folder: &Path) -> Vec<Spectrum> {
    let packed = fs::read(folder.join("spectra.jsonl.zst")).unwrap();
    let text = String::from_utf8(zstd::decode_all(&packed[..]).unwrap()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_pair_of_extractions_is_compared() {
    let Drawn { home, text, page, told } = drawn(adapters());
    let sections: Vec<&str> =
        select(&page, "main section").iter().map(|section| section.attr("id").unwrap()).collect();
    assert_eq!(sections, ["summary", "errors", "energy", "served", "spectra"]);
    let plots = select(&page, "svg").len();
    assert_eq!((plots, told.plots.len()), (2 + 3 + 1 + 7, plots));
    assert!(text.len() < 400_000, "{}", text.len());

    // The files are standalone plots: well formed, with the same marks as on the page, in colours that need no page.
    for path in &told.plots {
        let file = fs::read_to_string(path).unwrap();
        let svg = roxmltree::Document::parse(&file).unwrap();
        assert_eq!(svg.root_element().attribute("width"), Some("360"));
        let inside = file.split_once("</desc>").unwrap().1;
        assert!(text.contains(inside.trim().trim_end_matches("</svg>")), "{}", path.display());
        assert_eq!((file.matches("http").count(), file.contains("var(")), (1, false));
    }
    assert_eq!(fs::read_dir(home.path().join("svg")).unwrap().count(), plots);
}

#[test]
fn the_numbers_are_those_of_the_tables() {
    let Drawn { page, told, .. } = drawn(adapters());
    let manifests = adapters().each_ref().map(|folder| crate::common::manifest(folder));
    for (numbers, (manifest, method)) in told.summary.adapters.iter().zip(manifests.iter().zip(['A', 'B'])) {
        assert_eq!((numbers.method, numbers.rank, numbers.modules), (method, 8, 21));
        assert_eq!(numbers.captured_energy, manifest["total"]["captured_energy"].as_f64().unwrap());
        let modules = manifest["modules"].as_array().unwrap();
        let worst = modules.iter().map(|m| m["relative_error"].as_f64().unwrap()).fold(0.0, f64::max);
        assert_eq!(numbers.worst_error, Some(worst));
        let name = numbers.worst_module.as_ref().unwrap();
        assert!(modules.iter().any(|m| m["name"] == **name && m["relative_error"] == worst));
        assert!(words(select(&page, "#summary")[0]).contains(name));
    }
    // The error left on the served checkpoint: measured for A, and B's own error.
    let served = &manifests[0]["total"]["served"];
    let ratio = served["with_adapter"].as_f64().unwrap() / served["without_adapter"].as_f64().unwrap();
    let [only] = &told.summary.served[..] else { panic!("{:?}", told.summary.served) };
    assert_eq!((only.served.as_str(), only.tuned.as_str()), ("base-fp8", "tuned"));
    let found: Vec<f64> = only.remaining.iter().map(|remaining| remaining.ratio.unwrap()).collect();
    let error = manifests[1]["total"]["relative_error"].as_f64().unwrap();
    assert!((found[0] - ratio).abs() < 1e-9 && (found[1] - error).abs() < 1e-9, "{found:?}");
    assert!(found[1] < found[0] && found[0] < 1.0, "{found:?}");

    // The result of rank 4, summed here.
    for (at, folder) in adapters().iter().enumerate() {
        let (mut held, mut all) = (0.0, 0.0);
        for spectrum in spectra(folder) {
            held += spectrum.singular_values[..4].iter().map(|value| value * value).sum::<f64>();
            all += spectrum.delta_norm.powi(2);
        }
        let cells = row(&page, "The largest share of all modules' energy", "4");
        assert_eq!(cells[at + 1], format!("{:.1} %", 100.0 * held / all));
    }
    let cells = row(&page, "method-b: error by kind", "q_proj");
    let errors = manifests[1]["modules"].as_array().unwrap().iter();
    let errors = errors.filter(|module| module["name"].as_str().unwrap().ends_with("q_proj"));
    let errors: Vec<f64> = errors.map(|module| module["relative_error"].as_f64().unwrap()).collect();
    let mean = errors.iter().sum::<f64>() / errors.len() as f64;
    assert_eq!(cells[1..4], [errors.len().to_string(), "8".into(), format!("{mean:.4}")]);
}

#[test]
fn an_analysis_is_drawn_as_it_says() {
    let home = tempdir().unwrap();
    let Drawn { page, told, .. } = drawn(&[analyzed(home.path(), "analysis", 5)]);
    assert_eq!(told.summary.sentences[0], "Method B pays: it leaves 50.0 %, Method A 60.0 %.");
    let [only] = &told.summary.analyses[..] else { panic!("{:?}", told.summary) };
    assert_eq!((only.modules, only.signal_to_noise, only.suggested_rank), (35, Some(4.5), [1, 2, 3]));

    // Only the down projections deviate: kinds are in the order of their names.
    let dots = |plot: usize| {
        let filled = format!("#orthogonality-1-{plot} circle[fill='#D55E00']");
        let rings = format!("#orthogonality-1-{plot} circle[stroke='#0072B2']");
        [filled, rings].map(|what| select(&page, &what).len())
    };
    assert_eq!((dots(1), dots(2), dots(7)), ([6, 1], [1, 6], [1, 6]), "five layers, and one of the legend");
    let band = select(&page, "#orthogonality-1-1 polygon");
    assert_eq!(band.len(), 1, "the band of chance");
    let cells = row(&page, "analysis: change and base noise", "down_proj");
    assert_eq!(cells[1..6], ["5", "4.50", "0.0200", "0.0020", "1.93e-22"]);
    assert_eq!(row(&page, "analysis: noise of the base and", "k_proj")[4], "-");
    assert_eq!(row(&page, "analysis: spans of the k leading", "up_proj")[1..4], ["8", "0.1400", "0.1250"]);
    // Every cell shows its rank: the layer plus the index of the kind.
    let texts: Vec<String> = select(&page, "#ranks-1 text").into_iter().map(words).collect();
    assert!(["0", "10"].iter().all(|rank| texts.contains(&(*rank).to_owned())), "{texts:?}");
    let left = row(&page, "Distance from tuned when base-fp8 is served", "all");
    assert_eq!(left[2..], ["60.0 %", "50.0 %", "20.0 %"]);
}

#[test]
fn an_autopsy_is_drawn_as_it_says() {
    let home = tempdir().unwrap();
    let folders = ["one", "two"].map(|name| dissected(home.path(), name));
    let Drawn { page, told, .. } = drawn(&folders);
    let sentence =
        "one: 16 tensors of tuned were examined; 1 with errors, 0 with warnings only (1 × wrong scale).";
    assert_eq!(told.summary.sentences[0], sentence);
    assert_eq!((told.summary.autopsies.len(), told.summary.autopsies[1].errors), (2, 1));
    assert_eq!(select(&page, "#weights svg").len(), 7, "a plot for each kind, none for norms");
    let cells = row(&page, "one: weights by kind", "q_proj");
    assert_eq!(cells[1..], ["2", "0", "0.0200", "0.0200", "0.1250", "25.0 %", "0"]);
    let finding = row(&page, "two: findings", "model.layers.1.q_proj");
    assert_eq!(
        finding[1..],
        [
            "error",
            "wrong scale",
            "(std x root of inputs is 96; healthy 0.05 to 50): scales inverted, or never applied?"
        ]
    );
    // A third of the counts in a quarter of an octave's width: log2(5/4) of an octave.
    let most: f64 = 100.0 / 3.0 / (2f64.log2() - 1.75f64.log2());
    let labels: Vec<f64> =
        select(&page, "#weights-1 text").into_iter().filter_map(|t| words(t).parse().ok()).collect();
    let top = labels.iter().copied().filter(|label| *label > 1.0).fold(0.0, f64::max);
    assert!(top <= 1.05 * most && top > 0.6 * most, "{labels:?} {most}");
}

#[test]
fn what_autopsy_writes_is_read() {
    let home = tempdir().unwrap();
    let folders = ["base-fp8", "tuned"].map(|name| {
        let out = home.path().join(name);
        run(trephine().args(["autopsy", "--quiet", &data(name), "--out"]).arg(&out)).code(0);
        out
    });
    let Drawn { page, told, .. } = drawn(&folders);
    assert_eq!(told.summary.sentences.len(), 2);
    assert!(told.summary.sentences[1].ends_with(" tensors of tuned were examined; nothing is wrong."));
    let plots = select(&page, "#weights svg");
    assert!(plots.len() >= 7, "{}", plots.len());
    for svg in plots {
        // One line for the dense checkpoint and one for the quantized one; the second is dashed.
        let hill = within(svg, "polyline[stroke='#0072B2']");
        let points = hill.iter().map(|line| line.attr("points").unwrap().split_whitespace().count()).max();
        assert!(points > Some(40) && within(svg, "polyline[stroke='#D55E00']").len() > 10, "{points:?}");
    }
}

#[test]
fn fidelity_stands_beside_the_extractions_of_the_same_weights() {
    let home = tempdir().unwrap();
    let [_, b] = adapters();
    let inputs = &crate::common::manifest(b)["inputs"];
    let inputs =
        ["base", "tuned"].map(|side| serde_json::from_value::<Identity>(inputs[side].clone()).unwrap());
    let same = measured(home.path(), "same", inputs.clone());
    let one = drawn(&[b.clone(), same.clone()]);
    let [served] = &one.told.summary.served[..] else { panic!("{:?}", one.told.summary.served) };
    let names: Vec<&str> = served.remaining.iter().map(|remaining| remaining.adapter.as_str()).collect();
    assert_eq!(names, ["method-b", "method-b (fidelity)", "another"]);
    let ratios: Vec<f64> = served.remaining.iter().map(|remaining| remaining.ratio.unwrap()).collect();
    assert!((ratios[1] - 0.5).abs() < 1e-12 && (ratios[2] - 1.2).abs() < 1e-12, "{ratios:?}");
    assert_eq!(row(&one.page, "Distance from tuned", "q_proj")[3..], ["50.0 %", "120.0 %"]);
    assert!(words(select(&one.page, "#served")[0]).contains("each is measured over its own"));

    // Identical distances share one column.
    let manifest = crate::common::manifest(b);
    let mut again = fidelity(inputs);
    again.adapters.truncate(1);
    again.modules = manifest["modules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|module| {
            let mut record = again.modules[0].clone();
            record.name = module["name"].as_str().unwrap().into();
            record.distances.without = module["delta_norm"].as_f64().unwrap();
            record.distances.with =
                vec![record.distances.without * module["relative_error"].as_f64().unwrap()];
            record
        })
        .collect();
    let again = written(home.path(), "again", FIDELITY, &again);
    assert_eq!(drawn(&[b.clone(), again]).told.summary.served[0].remaining.len(), 1);

    // Different weights get a different plot.
    let other = measured(home.path(), "other", [(); 2].map(|()| Identity { files: Vec::new() }));
    let two = drawn(&[b.clone(), other]);
    assert_eq!((two.told.summary.served.len(), select(&two.page, "#served svg").len()), (2, 2));
}

#[test]
fn the_same_tables_give_the_same_bytes() {
    let [one, two] = [(); 2].map(|()| drawn(adapters()));
    assert!(one.text == two.text);
    let files = |drawn: &Drawn| crate::common::contents(&drawn.home.path().join("svg"));
    assert!(files(&one) == files(&two));
    let [a, b] = adapters().clone();
    assert!(drawn(&[b, a]).text != one.text);
}

/// A folder with a manifest, modified from a real one.
fn changed(home: &Path, name: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
    let folder = home.join(name);
    fs::create_dir_all(&folder).unwrap();
    let mut manifest = crate::common::manifest(&adapters()[1]);
    change(&mut manifest);
    fs::write(folder.join("extraction.json"), manifest.to_string()).unwrap();
    folder
}

#[test]
fn each_table_is_enough_by_itself() {
    let home = tempdir().unwrap();
    let [manifest, values] = ["manifest", "values"].map(|name| home.path().join(name));
    for (folder, file) in [(&manifest, "extraction.json"), (&values, "spectra.jsonl.zst")] {
        fs::create_dir(folder).unwrap();
        fs::copy(adapters()[1].join(file), folder.join(file)).unwrap();
    }
    let sections = |drawn: &Drawn| -> Vec<String> {
        let sections = select(&drawn.page, "main section");
        sections.iter().map(|section| section.attr("id").unwrap().to_owned()).collect()
    };
    assert_eq!(sections(&drawn(&[manifest])), ["summary", "errors", "served"]);
    assert_eq!(sections(&drawn(&[values])), ["summary", "energy", "spectra"]);
    let analysis = analyzed(home.path(), "analysis", 3);
    assert_eq!(
        sections(&drawn(&[analysis])),
        ["summary", "methods", "orthogonality", "noise", "ranks", "beside"]
    );
    let files = || Identity { files: Vec::new() };
    let fidelity = measured(home.path(), "fidelity", [files(), files()]);
    assert_eq!(sections(&drawn(&[fidelity])), ["summary", "served"]);
    let autopsy = dissected(home.path(), "autopsy");
    assert_eq!(sections(&drawn(&[autopsy])), ["summary", "weights"]);

    let empty = changed(home.path(), "empty", |manifest| manifest["modules"] = json!([]));
    let empty = drawn(&[empty]);
    assert_eq!(sections(&empty), ["summary"]);
    assert!(empty.told.summary.sentences[0].contains("contains no module that changed"));

    let one = changed(home.path(), "one", |manifest| {
        manifest["modules"].as_array_mut().unwrap().truncate(1);
    });
    assert_eq!(
        select(&drawn(&[one]).page, "#errors-1 rect[fill='#440154']").len(),
        2,
        "the cell and the ramp's end"
    );

    // A delta of zero.
    let still = changed(home.path(), "still", |manifest| {
        for module in manifest["modules"].as_array_mut().unwrap() {
            (module["delta_norm"], module["relative_error"], module["captured_energy"]) =
                (0.into(), 0.into(), 1.into());
        }
    });
    assert!(
        drawn(&[still])
            .told
            .summary
            .sentences
            .iter()
            .any(|sentence| sentence.contains("nothing to correct with"))
    );
}

#[test]
fn names_in_files_are_only_names() {
    const NAMES: [&str; 6] = [
        "model.layers.0.</title></svg></style><script>alert('hostile')</script>",
        "model.layers.1.\"><img src=x onerror=alert(1)>",
        "model.layers.2.<b>&amp;&lt;i&gt;",
        "model.layers.18446744073709551616.a\u{0}b\u{1b}[31m\u{202e}c\nd",
        "",
        "model.layers.3.' onload='alert(1)",
    ];
    let home = tempdir().unwrap();
    let folder = changed(home.path(), "<b>'\"&hostile", |manifest| {
        let modules = manifest["modules"].as_array_mut().unwrap();
        for (module, name) in modules.iter_mut().zip(NAMES) {
            module["name"] = name.into();
        }
        modules[6]["name"] = "x.".repeat(50_000).into();
        manifest["base"]["name"] = "</p><script>1</script>".into();
        manifest["tuned"]["name"] = "http://tuned\u{0}".into();
    });
    let values: String = spectra(&adapters()[1])
        .into_iter()
        .zip(NAMES)
        .map(|(spectrum, name)| {
            serde_json::to_string(&Spectrum { module: name.into(), ..spectrum }).unwrap() + "\n"
        })
        .collect();
    fs::write(folder.join("spectra.jsonl.zst"), zstd::encode_all(values.as_bytes(), 1).unwrap()).unwrap();
    let mut analyzed = analysis(1);
    analyzed.verdict[0].text = NAMES[0].into();
    let mut measured = fidelity([(); 2].map(|()| Identity { files: Vec::new() }));
    (measured.adapters[0].name, measured.served.name) = (NAMES[1].into(), NAMES[3].into());
    let mut dissected = autopsy();
    dissected.tensors[8].verdicts[0].why = NAMES[1].into();
    (dissected.tensors[3].statistics.histogram.first, dissected.tensors[4].statistics.histogram.first) =
        (i32::MAX, i32::MIN);
    for (at, name) in NAMES.into_iter().enumerate() {
        (dissected.tensors[at].name, dissected.tensors[at].statistics.count) = (name.into(), u64::MAX);
        (analyzed.modules[at].name, analyzed.kinds[at].name) = (name.into(), name.into());
        measured.modules[at % 2].name = name.into();
    }
    written(home.path(), "<b>'\"&hostile", ANALYSIS, &analyzed);
    written(home.path(), "<b>'\"&hostile", FIDELITY, &measured);
    written(home.path(), "<b>'\"&hostile", AUTOPSY, &dissected);
    let Drawn { home: _plots, text, page, told } = drawn(&[folder]);
    assert!(!text.chars().any(|c| c.is_control() && c != '\n') && !text.contains('\u{202e}'));
    assert!(text.len() < 400_000, "{}", text.len());
    assert!(!text.contains("onerror=alert(1)>") && !text.contains("<script"));
    assert!(select(&page, "th").iter().any(|cell| words(*cell) == NAMES[1]), "names are shown as they are");
    for element in select(&page, "*") {
        assert!(element.value().attrs().all(|(name, _)| !name.starts_with("on")), "{:?}", element.value());
    }
    for path in &told.plots {
        roxmltree::Document::parse(&fs::read_to_string(path).unwrap()).unwrap();
    }
}

#[test]
fn numbers_out_of_any_range_are_drawn_all_the_same() {
    let home = tempdir().unwrap();
    let folder = changed(home.path(), "odd", |manifest| {
        let odd = [-1.0, 1e308, 5e-324, -1e308, 0.0, 1e-300, 1e12];
        for (at, module) in manifest["modules"].as_array_mut().unwrap().iter_mut().enumerate() {
            module["delta_norm"] = odd[at % 7].into();
            module["relative_error"] = odd[(at + at / 7) % 7].into();
        }
        manifest["rank"] = u64::MAX.into();
    });
    let values: String = [
        json!({"module": "a", "shape": [0, 0], "delta_norm": 0.0, "converged": u64::MAX, "singular_values": []}),
        json!({"module": "b", "shape": [1, u64::MAX], "delta_norm": 1e308, "converged": 0, "singular_values": [1e308, -1e308, 0.0]}),
        json!({"module": "c", "shape": [9, 9], "delta_norm": 5e-324, "converged": 2, "singular_values": [1e-320, 5e-324]}),
    ]
    .iter()
    .map(|line| line.to_string() + "\n")
    .collect();
    fs::write(folder.join("spectra.jsonl.zst"), zstd::encode_all(values.as_bytes(), 1).unwrap()).unwrap();
    assert!(!select(&drawn(&[folder]).page, "svg").is_empty());
}

/// 64 layers with seven kinds of modules, or with the projections of 128 experts each.
fn large(home: &Path, name: &str, experts: usize) -> PathBuf {
    let kinds = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let mut lines = String::new();
    let folder = changed(home, name, |manifest| {
        let one = manifest["modules"][0].clone();
        let mut modules = Vec::new();
        for layer in 0..64 {
            for (at, kind) in kinds.iter().enumerate() {
                let names: Vec<String> = match (experts, at) {
                    (0, _) | (_, 0..4) => vec![format!("model.layers.{layer}.{kind}")],
                    _ => {
                        (0..experts).map(|e| format!("model.layers.{layer}.mlp.experts.{e}.{kind}")).collect()
                    }
                };
                for (expert, name) in names.into_iter().enumerate() {
                    let error = 0.2 + 0.5 * (layer as f64 / 64.0) + 0.02 * at as f64 + 0.0001 * expert as f64;
                    let mut module = one.clone();
                    (module["name"], module["relative_error"]) = (name.clone().into(), error.into());
                    modules.push(module);
                    let count = if experts == 0 { 640 } else { 64 };
                    let value = |i: usize| 1.5 / (1.0 + i as f64 + layer as f64 / 9.0).powf(0.7);
                    let values: Vec<f64> = (0..count).map(value).collect();
                    let spectrum = json!({"module": name, "shape": [5120, 5120], "delta_norm": 5.0,
                        "converged": count * 2 / 5, "singular_values": values});
                    lines += &format!("{spectrum}\n");
                }
            }
        }
        manifest["modules"] = modules.into();
    });
    fs::write(folder.join("spectra.jsonl.zst"), zstd::encode_all(lines.as_bytes(), 1).unwrap()).unwrap();
    folder
}

#[test]
fn large_models_make_pages_that_can_still_be_read() {
    let home = tempdir().unwrap();
    for (name, experts) in [("dense", 0), ("experts", 24)] {
        let folder = large(home.path(), name, experts);
        let Drawn { text, page, .. } = drawn(&[folder]);
        assert!(text.len() < 1_000_000, "{name}: {}", text.len());
        // A cell for each layer and kind, and the forty cells of the colour ramp.
        let rectangles = select(&page, "#errors-1 rect");
        assert_eq!(rectangles.iter().filter(|r| r.attr("fill") != Some("#FFFFFF")).count(), 64 * 7 + 40);
        assert!(select(&page, "#errors-1 text").len() < 60, "labels of layers are thinned");
        assert!(select(&page, "tr").len() < 120, "tables of modules are cut");
        assert!(text.contains("modules with the largest errors (all are in extraction.json)"));
    }
    let deep = drawn(&[analyzed(home.path(), "deep", 64)]);
    assert!(deep.text.len() < 600_000, "{}", deep.text.len());
}

fn refused(folder: PathBuf) -> trephine::Error {
    let home = tempdir().unwrap();
    let out = home.path().join("report.html");
    let error = report(&Report { folders: vec![folder], out: out.clone(), svg: None }).unwrap_err();
    assert!(!out.exists());
    assert_eq!(error.kind(), Kind::Input, "{error}");
    error
}

#[test]
fn what_cannot_be_read_is_refused_by_name() {
    let home = tempdir().unwrap();
    let says = |folder: PathBuf, words: &[&str]| {
        let error = refused(folder.clone());
        let text = format!("{error} {}", error.cure().unwrap_or_default());
        for word in words {
            assert!(text.contains(word), "no '{word}' in: {text}");
        }
        assert!(text.contains(folder.to_str().unwrap()), "{text}");
    };
    says(home.path().join("nowhere"), &["no such folder"]);
    fs::create_dir(home.path().join("nothing")).unwrap();
    says(
        home.path().join("nothing"),
        &["nothing to report on", "extraction.json, spectra.jsonl.zst", "analysis.json"],
    );
    fs::create_dir_all(home.path().join("not finished/.trephine")).unwrap();
    says(home.path().join("not finished"), &["run the same extract again"]);
    let later = changed(home.path(), "later", |manifest| manifest["trephine"] = "0.99.3".into());
    says(later, &["written by trephine 0.99.3", "extraction.json"]);
    let other = changed(home.path(), "other", |manifest| {
        manifest["trephine"] = "7.0.0".into();
        manifest.as_object_mut().unwrap().remove("modules");
    });
    says(other, &["cannot be read by trephine", "written by trephine 7.0.0", "modules"]);
    let mut table = serde_json::to_value(analysis(1)).unwrap();
    (table["version"], table["trephine"]) = (99.into(), "0.7.1".into());
    let later = written(home.path(), "later analysis", ANALYSIS, &table);
    says(later, &["analysis.json has version 99, written by trephine 0.7.1", "reads version 1"]);
    table["version"] = 1.into();
    table.as_object_mut().unwrap().remove("total");
    let torn = written(home.path(), "torn analysis", ANALYSIS, &table);
    says(torn, &["missing field `total`", "written by trephine 0.7.1", "analysis.json"]);
    let foreign = home.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("extraction.json"), "[1, 2").unwrap();
    says(foreign.clone(), &["not written by trephine"]);
    fs::remove_file(foreign.join("extraction.json")).unwrap();
    fs::write(foreign.join("spectra.jsonl.zst"), "no zstd").unwrap();
    says(foreign.clone(), &["cannot read the spectra"]);
    fs::write(foreign.join("spectra.jsonl.zst"), zstd::encode_all(&b"{}\n"[..], 1).unwrap()).unwrap();
    says(foreign, &["line 1 of the spectra cannot be read", "module"]);
}

#[test]
fn the_command_tells_what_the_page_says() {
    let home = tempdir().unwrap();
    let mut command = trephine();
    command.current_dir(home.path()).arg("report").args(adapters());
    let ended = run(&mut command).code(0);
    assert!(
        ended.stdout.contains("When base-fp8 is served") && ended.stdout.contains("\nreport: report.html (")
    );
    assert!(home.path().join("report.html").exists());
    command.args(["--json", "--out", "deep/page.html", "--svg", "plots"]);
    let told: Value = serde_json::from_str(&run(&mut command).code(0).stdout).unwrap();
    assert_eq!(
        (told["out"].as_str(), told["adapters"][1]["method"].as_str()),
        (Some("deep/page.html"), Some("B"))
    );
    assert_eq!(
        told["plots"].as_array().unwrap().len(),
        fs::read_dir(home.path().join("plots")).unwrap().count()
    );
    let nothing = run(trephine().arg("report").arg(home.path())).code(3);
    nothing.says("nothing to report on: the folder has none of extraction.json").says("hint: ");
    run(trephine().arg("report")).code(2);
}

#[test]
fn only_a_report_is_replaced() {
    let home = tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    let to = |out: &Path| run(trephine().arg("report").arg(&adapters()[0]).arg("--out").arg(out));
    fs::write(at("model.safetensors"), "years of work").unwrap();
    fs::write(at("other.html"), "<!DOCTYPE html><title>Mine</title>").unwrap();
    fs::create_dir(at("folder")).unwrap();
    for name in ["model.safetensors", "other.html"] {
        to(&at(name)).code(2).says("is not a report").says("hint: give another --out");
    }
    to(&at("folder")).code(2).says("this is a folder").says("hint: ");
    to(&at("model.safetensors/page.html")).code(2).says("a file is in its place").says("hint: ");
    to(Path::new("/dev/null")).code(2).says("must be a regular file");
    assert_eq!(fs::read_to_string(at("model.safetensors")).unwrap(), "years of work");
    fs::write(at("empty.html"), "").unwrap();
    for _ in 0..2 {
        to(&at("empty.html")).code(0);
    }
    assert!(fs::read_to_string(at("empty.html")).unwrap().contains("<title>Trephine report: "));
}

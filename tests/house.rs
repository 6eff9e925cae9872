//! The structure of the code: imports point down, no two files import each other in a circle, no command uses another,
//! the pure rooms touch no file, and only the command line prints.
//!
//! An import is counted from the file that names an item to the file that *defines* it: a re-export in a folder's
//! `mod.rs` does not tie the folder's files together.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms from the ground up: each may use itself and those before it.
const ROOMS: [&str; 21] = [
    "simd",
    "printable",
    "shared",
    "error",
    "quant",
    "factorize",
    "storage",
    "durable",
    "container",
    "checkpoint",
    "calibration",
    "lora",
    "pipeline",
    "model",
    "corpus",
    "delta",
    "run",
    "commands",
    "report",
    "fuzzing",
    "cli",
];

/// Pure rooms: slices in, slices out.
const PURE: [&str; 2] = ["quant", "factorize"];

/// The maximum number of source files in a folder.
const MOST_FILES: usize = 14;

/// One source file: its module path, and its code without comments, literals and tests.
struct Source {
    path: PathBuf,
    module: Vec<String>,
    code: String,
}

impl Source {
    fn name(&self) -> String {
        self.path.strip_prefix(root()).unwrap().display().to_string()
    }

    fn room(&self) -> &str {
        self.module.first().map_or("lib", String::as_str)
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            rust_files(&entry, found);
        } else if entry.extension().is_some_and(|end| end == "rs") {
            found.push(entry);
        }
    }
}

fn sources() -> Vec<Source> {
    let mut paths = Vec::new();
    rust_files(&root(), &mut paths);
    paths.sort();
    let source = |path: PathBuf| {
        let inside = path.strip_prefix(root()).unwrap().with_extension("");
        let mut module: Vec<String> = inside.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        if ["mod", "lib", "main"].contains(&module.last().unwrap().as_str()) {
            module.pop();
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = without_tests(&without_comments(&text)).to_owned();
        Source { path, module, code }
    };
    paths.into_iter().map(source).collect()
}

fn without_comments(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

/// The code before the file's tests, which may import anything.
fn without_tests(code: &str) -> &str {
    ["#[cfg(test)]\nmod", "#[cfg(all(test"]
        .iter()
        .filter_map(|mark| code.find(mark))
        .min()
        .map_or(code, |at| &code[..at])
}

/// Every path below `prefix` in `code`, with the groups of a `use` expanded: `a::{b, c::d}` gives `a::b` and `a::c::d`.
fn paths(code: &str, prefix: &str) -> Vec<Vec<String>> {
    fn spread(text: &str, before: &[String], found: &mut Vec<Vec<String>>) -> usize {
        let (mut path, mut word, mut at) = (before.to_vec(), String::new(), 0);
        while let Some(c) = text[at..].chars().next() {
            if c.is_alphanumeric() || c == '_' {
                word.push(c);
                at += c.len_utf8();
            } else if text[at..].starts_with("::") {
                path.push(std::mem::take(&mut word));
                at += 2;
            } else if c == '{' && word.is_empty() && (at == 0 || text[..at].ends_with("::")) {
                at += 1;
                loop {
                    at += text[at..].len() - text[at..].trim_start().len();
                    if text[at..].starts_with('}') {
                        return at + 1;
                    }
                    at += spread(&text[at..], &path, found);
                    // The rest of an item: `as name`, a comma, or something that is not a path.
                    at += text[at..].find([',', '}']).unwrap_or(text.len() - at);
                    at += usize::from(text[at..].starts_with(','));
                }
            } else {
                break;
            }
        }
        if !word.is_empty() && word != "self" {
            path.push(word);
        }
        found.push(path);
        at
    }
    let mut found = Vec::new();
    for (at, word) in code.match_indices(prefix) {
        let before = code[..at].chars().next_back();
        if before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':') {
            spread(&code[at + word.len()..], &[], &mut found);
        }
    }
    found
}

/// All source files, and which of them defines the item that a path names.
struct House {
    sources: Vec<Source>,
    files: BTreeMap<Vec<String>, usize>,
    /// For each `mod.rs`: the names that it re-exports, and the paths that they come from.
    again: BTreeMap<Vec<String>, BTreeMap<String, Vec<String>>>,
}

impl House {
    fn build() -> House {
        let sources = sources();
        let is_library = |source: &Source| !source.module.is_empty() && source.room() != "cli";
        let files: BTreeMap<Vec<String>, usize> = (0..sources.len())
            .filter(|index| !sources[*index].module.is_empty())
            .map(|index| (sources[index].module.clone(), index))
            .collect();
        let mut again = BTreeMap::new();
        for source in sources.iter().filter(|source| is_library(source)) {
            let mut names = BTreeMap::new();
            for line in source.code.split(';').filter(|line| line.contains("use self::")) {
                for path in paths(line, "self::") {
                    let name = path.last().unwrap().clone();
                    names.insert(name, [source.module.clone(), path].concat());
                }
            }
            again.insert(source.module.clone(), names);
        }
        House { sources, files, again }
    }

    /// The file that defines the item at `path` (from the crate's root).
    fn file_of(&self, path: &[String]) -> Option<usize> {
        let length = (1..=path.len()).rev().find(|length| self.files.contains_key(&path[..*length]))?;
        let (module, rest) = path.split_at(length);
        let onward = rest.first().and_then(|name| self.again.get(module)?.get(name));
        match onward {
            Some(onward) if onward.as_slice() != path => self.file_of(onward),
            _ => self.files.get(module).copied(),
        }
    }

    /// For each file, the files that it imports.
    fn imports(&self) -> Vec<BTreeSet<usize>> {
        let of = |index: usize| {
            let source = &self.sources[index];
            let mut code = String::new();
            for statement in source.code.split_inclusive(';') {
                // A folder's re-exports of its files do not count as imports.
                if !statement.contains("use self::") {
                    code.push_str(statement);
                }
            }
            let mut used = paths(&code, "crate::");
            if ["cli", "lib"].contains(&source.room()) {
                used.extend(paths(&code, "trephine::"));
            }
            for (ups, word) in [(1, "super::"), (2, "super::super::")] {
                let from = source.module.len().saturating_sub(ups);
                let above = paths(&code, word).into_iter().filter(|path| path[0] != "super");
                used.extend(above.map(|path| [source.module[..from].to_vec(), path].concat()));
            }
            used.iter().filter_map(|path| self.file_of(path)).filter(|file| *file != index).collect()
        };
        (0..self.sources.len()).map(of).collect()
    }

    /// The circles among files: groups in which each file reaches every other one.
    fn circles(&self) -> Vec<Vec<String>> {
        let imports = self.imports();
        let reach = |start: usize| {
            let (mut seen, mut open) = (BTreeSet::new(), vec![start]);
            while let Some(file) = open.pop() {
                for next in &imports[file] {
                    if seen.insert(*next) {
                        open.push(*next);
                    }
                }
            }
            seen
        };
        let reached: Vec<BTreeSet<usize>> = (0..imports.len()).map(reach).collect();
        let mut circles = BTreeSet::new();
        for (file, seen) in reached.iter().enumerate().filter(|(file, seen)| seen.contains(file)) {
            let circle = seen.iter().filter(|other| reached[**other].contains(&file));
            circles.insert(circle.map(|other| self.sources[*other].name()).collect::<Vec<_>>());
        }
        circles.into_iter().collect()
    }
}

fn floor(room: &str) -> Option<usize> {
    ROOMS.iter().position(|known| *known == room)
}

#[test]
fn every_room_has_its_floor() {
    for source in sources().iter().filter(|source| !source.module.is_empty()) {
        let known = floor(source.room()).is_some();
        assert!(known, "{} is in no room of this test's list: put it where it belongs", source.name());
    }
}

#[test]
fn imports_point_down() {
    let house = House::build();
    let (mut seen, mut wrong) = (0, Vec::new());
    for (source, used) in house.sources.iter().zip(house.imports()) {
        let Some(own) = floor(source.room()) else { continue };
        for other in used.iter().map(|index| &house.sources[*index]) {
            let Some(below) = floor(other.room()) else { continue };
            seen += 1;
            if below > own {
                wrong.push(format!("{} imports {}, which is above it", source.name(), other.name()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 300, "only {seen} imports were found: does this test still read the code?");
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let circles = House::build().circles();
    let lines: Vec<String> = circles.iter().map(|circle| circle.join(", ")).collect();
    assert!(lines.is_empty(), "{} circles:\n{}", lines.len(), lines.join("\n"));
}

#[test]
fn no_command_knows_another() {
    let house = House::build();
    let mut wrong = Vec::new();
    for (source, used) in house.sources.iter().zip(house.imports()) {
        for other in used.iter().map(|index| &house.sources[*index]) {
            let (a, b) = (&source.module, &other.module);
            if a.len() > 1 && b.len() > 1 && a[0] == "commands" && b[0] == "commands" && a[1] != b[1] {
                wrong.push(format!("{} imports {}", source.name(), other.name()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn folders_can_be_read_at_a_glance() {
    let mut folders: BTreeMap<PathBuf, usize> = BTreeMap::new();
    for source in sources() {
        *folders.entry(source.path.parent().unwrap().to_owned()).or_default() += 1;
    }
    for (folder, files) in folders.iter().filter(|(folder, _)| !folder.ends_with("cli")) {
        assert!(*files <= MOST_FILES, "{} holds {files} files: give it rooms", folder.display());
    }
}

#[test]
fn pure_rooms_touch_no_file() {
    let banned =
        ["std::fs", "fs::", "File::", "std::path", "std::net", "std::process", "std::env", "std::io"];
    for source in sources().iter().filter(|source| PURE.contains(&source.room())) {
        for word in banned {
            assert!(!source.code.contains(word), "{} says {word}, and its room is pure", source.name());
        }
    }
}

#[test]
fn only_the_command_line_speaks() {
    let banned = [
        "indicatif",
        "println!",
        "print!",
        "eprintln!",
        "eprint!",
        "dbg!",
        "comfy_table",
        "clap::",
        "stdout()",
    ];
    let quiet = |source: &&Source| floor(source.room()).is_some() && source.room() != "cli";
    for source in sources().iter().filter(quiet) {
        for word in banned {
            let found = source.code.contains(word);
            assert!(!found, "{} says {word}: only the command line does", source.name());
        }
    }
}

#[test]
fn the_command_line_uses_the_library_by_its_name() {
    for source in sources().iter().filter(|source| source.room() == "cli") {
        let used = paths(&source.code, "crate::");
        let wrong = used.iter().find(|path| path[0] != "cli" && floor(&path[0]).is_some());
        assert!(wrong.is_none(), "{} includes {wrong:?} by crate::", source.name());
    }
}

#[test]
fn this_test_reads_groups_of_imports() {
    let code = "use crate::{Error, lora::{self, Lock as Bar}, run::x};\nuse crate::quant::{A, B::C};\ncrate::delta::go()";
    let found: Vec<String> = paths(code, "crate::").iter().map(|path| path.join("::")).collect();
    let expected = ["Error", "lora", "lora::Lock", "run::x", "quant::A", "quant::B::C", "delta::go"];
    assert_eq!(found, expected);
}

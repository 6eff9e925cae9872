//! The house keeps its order: imports point down, the pure rooms touch no file, and only the command line speaks.

use std::fs;
use std::path::{Path, PathBuf};

/// The rooms from the ground up: each may use those before it.
const ROOMS: [&str; 10] = [
    "error",
    "quant",
    "checkpoint",
    "factorize",
    "ledger",
    "adapter",
    "pipeline",
    "convert",
    "analysis",
    "report",
];

/// Rooms that are pure: slices in, slices out.
const PURE: [&str; 2] = ["quant", "factorize"];

/// One source file: the room it is in, and its code without comments.
struct Source {
    path: PathBuf,
    room: String,
    code: String,
}

fn sources() -> Vec<Source> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                walk(&entry, found);
            } else if entry.extension().is_some_and(|end| end == "rs") {
                found.push(entry);
            }
        }
    }
    let (root, mut paths) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), Vec::new());
    walk(&root, &mut paths);
    let source = |path: PathBuf| {
        let inside = path.strip_prefix(&root).unwrap();
        let room = inside.components().next().unwrap().as_os_str().to_str().unwrap();
        let room = room.trim_end_matches(".rs").to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let code = text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n");
        Source { path, room, code }
    };
    paths.into_iter().map(source).collect()
}

/// The code before the file's tests, which may use what they like.
fn without_tests(code: &str) -> &str {
    ["#[cfg(test)]\nmod", "#[cfg(all(test"]
        .iter()
        .filter_map(|mark| code.find(mark))
        .min()
        .map_or(code, |at| &code[..at])
}

/// What follows every `crate::` in `code`: a name, or the names of a group.
fn crate_paths(code: &str) -> Vec<String> {
    let after = code.match_indices("crate::").map(|(at, word)| &code[at + word.len()..]);
    let names = |rest: &str| -> Vec<String> {
        let name = |text: &str| {
            text.trim()
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        let Some(group) = rest.strip_prefix('{') else { return vec![name(rest)] };
        let (mut depth, mut start, mut found) = (0, 0, Vec::new());
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' | '}' if depth == 0 => {
                    found.push(name(&group[start..at]));
                    start = at + 1;
                    if c == '}' {
                        break;
                    }
                }
                _ => {}
            }
        }
        found
    };
    after.flat_map(names).filter(|name| !name.is_empty()).collect()
}

fn floor(room: &str) -> Option<usize> {
    ROOMS.iter().position(|known| *known == room)
}

#[test]
fn every_room_has_its_floor() {
    for source in sources() {
        let known = floor(&source.room).is_some() || ["lib", "main", "cli"].contains(&source.room.as_str());
        assert!(
            known,
            "{} is in no room of this test's list: put it where it belongs",
            source.path.display()
        );
    }
}

#[test]
fn imports_point_down() {
    let mut seen = 0;
    for source in sources().iter().filter(|source| floor(&source.room).is_some()) {
        let own = floor(&source.room).unwrap();
        for name in crate_paths(without_tests(&source.code)) {
            let Some(used) = floor(&name) else { continue };
            seen += 1;
            assert!(used <= own, "{} imports {name}, which is above it", source.path.display());
        }
    }
    assert!(seen > 50, "only {seen} imports were found: does this test still read the code?");
}

#[test]
fn pure_rooms_touch_no_file() {
    let banned =
        ["std::fs", "fs::", "File::", "std::path", "std::net", "std::process", "std::env", "std::io"];
    for source in sources().iter().filter(|source| PURE.contains(&source.room.as_str())) {
        for word in banned {
            let found = without_tests(&source.code).contains(word);
            assert!(!found, "{} says {word}, and its room is pure", source.path.display());
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
    for source in sources().iter().filter(|source| !["cli", "main"].contains(&source.room.as_str())) {
        for word in banned {
            let found = without_tests(&source.code).contains(word);
            assert!(!found, "{} says {word}: only the command line does", source.path.display());
        }
    }
}

#[test]
fn the_command_line_uses_the_library_by_its_name() {
    for source in sources().iter().filter(|source| ["cli", "main"].contains(&source.room.as_str())) {
        let rooms = crate_paths(&source.code);
        let wrong = rooms.iter().find(|name| floor(name).is_some());
        assert!(wrong.is_none(), "{} includes {wrong:?} by crate::", source.path.display());
    }
}

#[test]
fn this_test_reads_groups_of_imports() {
    let code = "use crate::{Error, ledger::{self, Lock}, pipeline::x};\nuse crate::quant::{A, B};\ncrate::adapter::go()";
    assert_eq!(crate_paths(code), ["Error", "ledger", "pipeline", "quant", "adapter"]);
}

//! Completions and manual pages contain every subcommand and every option that `--help` shows.

use std::collections::BTreeMap;
use std::fs;

use crate::common::{run, trephine};
use regex::Regex;
use tempfile::tempdir;

/// Every subcommand with its long options, from the program's own help.
fn options() -> BTreeMap<String, Vec<String>> {
    let help = |arguments: &[&str]| run(trephine().args(arguments)).code(0).stdout;
    let named = Regex::new(r"(?m)^  ([a-z-]+)  ").unwrap();
    let top = help(&["--help"]);
    let (commands, _) = top.split_once("\nOptions:").unwrap();
    let long = Regex::new(r"(?m)^ +(?:-[a-z], )?--([a-z-]+)").unwrap();
    let of = |command: &str| {
        let help = help(&[command, "--help"]);
        let (_, options) = help.split_once("\nUsage:").unwrap();
        long.captures_iter(options).map(|found| found[1].to_owned()).collect()
    };
    let commands = named.captures_iter(commands).map(|found| found[1].to_owned());
    commands.filter(|name| name != "help").map(|name| (name.clone(), of(&name))).collect()
}

#[test]
fn help_is_understood_by_this_test() {
    let options = options();
    for command in ["extract", "verify", "sanitize", "completions", "man"] {
        assert!(options.contains_key(command), "{:?}", options.keys());
    }
    assert!(
        options["extract"].len() > 20 && options["sanitize"].contains(&"max-rank".to_owned()),
        "{options:?}"
    );
}

#[test]
fn completions_know_every_option() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(trephine().args(["completions", shell])).code(0).stdout;
        for (command, options) in options() {
            assert!(script.contains(&command), "{shell} does not know {command}");
            for option in options {
                // fish completions name long options with -l.
                let known =
                    [format!("--{option}"), format!("-l {option}")].iter().any(|word| script.contains(word));
                assert!(known, "{shell} does not know --{option} of {command}");
            }
        }
    }
    run(trephine().args(["completions", "tcsh"])).code(2).says("invalid value 'tcsh'");
}

#[test]
fn manual_pages_know_every_option() {
    let home = tempdir().unwrap();
    let out = home.path().join("man/man1");
    run(trephine().args(["man", "--out"]).arg(&out)).code(0);
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap().replace('\\', "");
    let top = read("trephine.1");
    let options = options();
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1 + options.len());
    for (command, options) in options {
        assert!(top.contains(&format!("trephine-{command}(1)")), "{command}");
        let page = read(&format!("trephine-{command}.1"));
        assert!(page.starts_with(".ie") && page.contains(".SH SYNOPSIS"), "{command}");
        assert!(page.contains(".SH EXAMPLES") && page.contains(".SH \"SEE ALSO\""), "{command}");
        assert!(page.contains("trephinefR(1)"), "{command}");
        for option in options {
            assert!(page.contains(&format!("--{option}")), "{command} --{option}");
        }
    }
    assert_eq!(run(trephine().arg("man")).code(0).stdout.replace('\\', ""), top);
}

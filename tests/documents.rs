//! The manual pages and completions: what is in them is what the programs know, in both languages.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{podsecctl, stderr, stdout};

#[path = "../packaging/documents.rs"]
#[expect(dead_code, reason = "its main is the example's")]
mod generator;

const LANGUAGES: [&str; 2] = ["", "ru"];

fn page(language: &str, name: &str) -> String {
    fs::read_to_string(Path::new("packaging/man").join(language).join(format!("{name}.md"))).expect("a page")
}

/// Terms of a page, each behind its subsection: ("podsecctl check", "--json").
fn terms(text: &str) -> BTreeSet<(String, String)> {
    let mut section = String::new();
    let mut found = BTreeSet::new();
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("### ").or_else(|| line.strip_prefix("## ")) {
            section = heading.trim_matches('`').to_owned();
        } else if let Some(term) = line.strip_prefix("#### ") {
            found.insert((section.clone(), term.to_owned()));
        }
    }
    found
}

/// Options and arguments of a command and those below it, as the pages name them.
fn arguments(command: &clap::Command, name: &str, found: &mut BTreeSet<(String, String)>) {
    for argument in command.get_arguments() {
        let long = argument.get_long().map(|long| format!("--{long}"));
        let short = argument.get_short().map(|short| format!("-{short}"));
        let value = argument.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
        let term = long.or(short).or(value).unwrap_or_else(|| argument.get_id().as_str().to_uppercase());
        found.insert((name.to_owned(), term));
    }
    for below in command.get_subcommands() {
        arguments(below, &format!("{name} {}", below.get_name()), found);
    }
}

/// Names of the commands that do something.
fn commands(command: &clap::Command, name: &str, found: &mut BTreeSet<String>) {
    for below in command.get_subcommands() {
        let name = format!("{name} {}", below.get_name());
        if !below.has_subcommands() {
            found.insert(name.clone());
        }
        commands(below, &name, found);
    }
}

#[test]
fn pages_have_every_option_and_command_and_no_other() {
    for (name, command) in [("podsecd", podsecd::cli::command()), ("podsecctl", podsecd::ctl::command())] {
        let mut known = BTreeSet::new();
        arguments(&command, name, &mut known);
        known.extend(["--help", "--version"].map(|option| (name.to_owned(), option.to_owned())));
        let mut subcommands = BTreeSet::new();
        commands(&command, name, &mut subcommands);
        for language in LANGUAGES {
            let text = page(language, &format!("{name}.8"));
            let told = terms(&text).into_iter().filter_map(|(section, term)| {
                let section = match section.as_str() {
                    "OPTIONS" | "ПАРАМЕТРЫ" => name.to_owned(),
                    command if command.starts_with(name) => command.to_owned(),
                    _ => return None,
                };
                let term = term.split(' ').next().unwrap_or_default();
                Some((section, term.trim_matches(['`', ',', '*', '.']).to_owned()))
            });
            assert_eq!(told.collect::<BTreeSet<_>>(), known, "{name}.8 {language}");
            let headings = text.lines().filter_map(|line| line.strip_prefix("### ")).map(|line| line.trim_matches('`'));
            assert_eq!(headings.map(str::to_owned).collect::<BTreeSet<_>>(), subcommands, "{name}.8 {language}");
        }
    }
}

#[test]
fn pages_have_every_key_of_the_configuration_with_its_default_and_no_other() {
    // A test of `config` holds this file against the code.
    let mut table = String::new();
    let mut known = BTreeSet::new();
    for line in fs::read_to_string("policy/podsecd.toml").expect("shipped").lines() {
        match line.strip_prefix('#').filter(|rest| !rest.starts_with(' ') && !rest.is_empty()) {
            Some(head) if head.starts_with('[') => table = head.to_owned(),
            Some(key) => drop(known.insert((table.clone(), format!("`{key}`")))),
            None => {}
        }
    }
    assert!(known.len() > 40, "{known:?}");
    for language in LANGUAGES {
        let told = terms(&page(language, "podsecd.toml.5")).into_iter().filter(|(_, term)| term.contains(" = "));
        let told = told.map(|(section, term)| (if section.starts_with('[') { section } else { String::new() }, term));
        assert_eq!(told.collect::<BTreeSet<_>>(), known, "podsecd.toml.5 {language}");
    }
}

#[test]
fn pages_have_every_key_of_tables_in_lists_and_no_other() {
    let root = tempfile::tempdir().expect("a directory");
    fs::create_dir_all(root.path().join("etc/podsecd")).expect("made");
    let mut known = BTreeSet::new();
    for table in ["[[containers.store]]", "[[controlplane.restart]]"] {
        // A key that there is not is refused with those that there are.
        fs::write(root.path().join("etc/podsecd/podsecd.toml"), format!("{table}\nx = 1\n")).expect("written");
        let refused = stderr(&podsecctl(&["config", "check", "--root", &root.path().to_string_lossy()]));
        let keys = refused.split("expected one of ").nth(1).expect(&refused).split(';').next().unwrap_or_default();
        known.extend(keys.split(", ").map(|key| (table.to_owned(), key.to_owned())));
    }
    assert!(known.len() > 4, "{known:?}");
    for language in LANGUAGES {
        let told = terms(&page(language, "podsecd.toml.5")).into_iter();
        let told = told.filter(|(section, _)| section.starts_with("[["));
        assert_eq!(told.collect::<BTreeSet<_>>(), known, "podsecd.toml.5 {language}");
    }
}

/// What a page says of exit codes.
fn exit_codes(language: &str, name: &str) -> BTreeSet<String> {
    let told = terms(&page(language, name)).into_iter();
    let told = told.filter(|(section, _)| ["EXIT STATUS", "КОД ЗАВЕРШЕНИЯ"].contains(&section.as_str()));
    told.map(|(_, term)| term.trim_matches('`').to_owned()).collect()
}

#[test]
fn every_exit_code_of_podsecctl_is_in_its_pages_and_happens() {
    let root = tempfile::tempdir().expect("a directory");
    fs::create_dir_all(root.path().join("etc/podsecd")).expect("made");
    let at = root.path().to_string_lossy().into_owned();
    let mut seen = BTreeSet::new();
    for (arguments, expected) in
        [(&["config", "check"][..], 0), (&["status"], 1), (&["check", "kubeapi"], 3), (&["--x"], 2)]
    {
        let tree = ["--root", &at];
        let arguments = [arguments, if expected == 2 { &[] } else { &tree }].concat();
        let code = podsecctl(&arguments).status.code().expect("it ends by itself");
        assert_eq!(code, expected, "{arguments:?}");
        seen.insert(code.to_string());
    }
    fs::write(root.path().join("etc/podsecd/podsecd.toml"), "x = 1\n").expect("written");
    seen.insert(podsecctl(&["config", "check", "--root", &at]).status.code().expect("it ends").to_string());
    for language in LANGUAGES {
        assert_eq!(exit_codes(language, "podsecctl.8"), seen, "{language}");
    }
}

#[test]
fn the_exit_codes_of_a_delivery_are_in_podsecds_pages() {
    let source = fs::read_to_string("daemon/mail/attempt.rs").expect("a source");
    let codes =
        source.lines().filter_map(|line| line.strip_prefix("const EX_")?.split(" = ").nth(1)?.strip_suffix(';'));
    let mut known: BTreeSet<_> = codes.map(str::to_owned).collect();
    assert_eq!(known.len(), 4, "{known:?}");
    known.extend(["0", "1", "2", "78"].map(str::to_owned));
    for language in LANGUAGES {
        assert_eq!(exit_codes(language, "podsecd.8"), known, "{language}");
    }
}

/// The journal's fields that a text names in such quotes.
fn fields(text: &str, quote: char) -> BTreeSet<&str> {
    let is_field = |word: &&str| ["PODSEC_", "K8S_", "AUDIT_"].iter().any(|prefix| word.starts_with(prefix));
    let is_name = |word: &&str| word.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_'));
    text.split(quote).flat_map(|part| part.split(", ")).filter(is_field).filter(is_name).collect()
}

#[test]
fn pages_have_every_field_of_the_journal_and_no_other() {
    let (mut directories, mut known) = (vec![PathBuf::from("daemon")], BTreeSet::new());
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                directories.push(path);
            } else {
                let source = fs::read_to_string(path).expect("a source");
                known.extend(fields(&source, '"').into_iter().map(str::to_owned));
            }
        }
    }
    assert!(known.len() > 30, "{known:?}");
    for language in LANGUAGES {
        let text = page(language, "podsecd.8");
        let terms: String = text.lines().filter(|line| line.starts_with("#### ")).collect();
        let told = fields(&terms, '`').into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
        assert_eq!(told, known, "podsecd.8 {language}");
    }
}

#[test]
fn the_readme_asks_for_findings_fields_and_checks_that_there_are() {
    let text = fs::read_to_string("README.md").expect("a README");
    let ids: BTreeSet<_> = podsecd::checks::ids().into_iter().map(|id| id.0.to_owned()).collect();
    let mut asked = BTreeSet::new();
    for finding in text.split("PODSEC_FINDING=").skip(1) {
        let finding = finding.split(['`', ' ']).next().unwrap_or_default();
        let (check, name) = finding.split_once('/').expect(finding);
        let names = name.trim_matches(['{', '}']).split(',');
        asked.extend(names.map(|name| format!("{check}/{name}")));
    }
    assert!(asked.len() > 20, "{asked:?}");
    assert_eq!(asked.difference(&ids).collect::<Vec<_>>(), Vec::<&String>::new());
    let named = text
        .split('`')
        .filter(|word| word.split_once('/').is_some_and(|(check, _)| podsecd::checks::NAMES.contains(&check)));
    let unknown: Vec<_> = named.filter(|word| !ids.contains(*word)).collect();
    assert_eq!(unknown, Vec::<&str>::new());
    for check in podsecd::checks::NAMES {
        assert!(text.contains(&format!("\n| `{check}` | ")), "what {check} needs");
    }
    let known = page("", "podsecd.8");
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    for field in words.filter(|word| ["PODSEC_", "K8S_", "AUDIT_"].iter().any(|prefix| word.starts_with(prefix))) {
        assert!(fields(&known, '`').contains(field), "{field}");
    }
}

#[test]
fn both_languages_have_the_same_structure() {
    for (name, _) in generator::PAGES {
        let structure = |language| {
            let text = page(language, name);
            let headings = text.lines().filter(|line| line.starts_with('#'));
            // Titles of sections are translated, all others are names.
            let same = headings.map(|line| if line.starts_with("## ") { "##" } else { line }.to_owned());
            same.collect::<Vec<_>>()
        };
        assert_eq!(structure(""), structure("ru"), "{name}");
    }
}

#[test]
fn man_shows_the_pages_without_warnings() {
    let directory = tempfile::tempdir().expect("a directory");
    generator::write(directory.path()).expect("written");
    for (language, word) in [("", "DESCRIPTION"), ("ru", "ОПИСАНИЕ")] {
        for (name, section) in generator::PAGES {
            let file = directory.path().join("man").join(language).join(section).join(name);
            let mut man = Command::new("man");
            man.args(["--warnings", "-E", "UTF-8", "-l"]).arg(&file);
            let output = man.env("LC_ALL", "C.UTF-8").env("MANWIDTH", "120").output().expect("man-db is installed");
            assert!(output.status.success(), "{}: {}", file.display(), stderr(&output));
            assert_eq!(stderr(&output), "", "{}", file.display());
            assert!(stdout(&output).contains(word), "{}", stdout(&output));
        }
    }
}

#[test]
fn what_is_special_to_roff_is_shown_as_it_is_written() {
    for (markdown, roff) in [
        (".TH is\n'text' \\fB", ".PP\n\\&.TH is\n\\&'text' \\efB\n"),
        ("`--a-b` a-b", ".PP\n\\fB\\-\\-a\\-b\\fR a-b\n"),
        ("    a\n    .b", ".PP\n.RS 4\n.nf\na\n\\&.b\n.fi\n.RE\n"),
        ("#### `-x`\n\none\n\ntwo", ".TP\n\\fB\\-x\\fR\none\n.IP\ntwo\n"),
    ] {
        assert_eq!(generator::roff(markdown), roff, "{markdown}");
    }
}

#[test]
fn shells_understand_the_completions() {
    let directory = tempfile::tempdir().expect("a directory");
    generator::write(directory.path()).expect("written");
    let files = [
        ("bash", ["podsecd.bash", "podsecctl.bash"]),
        ("zsh", ["_podsecd", "_podsecctl"]),
        ("fish", ["podsecd.fish", "podsecctl.fish"]),
    ];
    for (shell, names) in files {
        for name in names {
            let file = directory.path().join("completions").join(shell).join(name);
            assert!(file.exists(), "{}", file.display());
            // Who has no such shell needs no completion for it; tests/run installs all of them.
            if let Ok(output) = Command::new(shell).arg("-n").arg(&file).output() {
                assert!(output.status.success(), "{}: {}", file.display(), stderr(&output));
            }
        }
    }
    let script = "source \"$0\"; COMP_WORDS=(podsecctl for); COMP_CWORD=1
        _podsecctl podsecctl for podsecctl; echo \"${COMPREPLY[@]}\"";
    let mut bash = Command::new("bash");
    let output = bash.args(["-c", script]).arg(directory.path().join("completions/bash/podsecctl.bash")).output();
    assert_eq!(stdout(&output.expect("bash runs")), "forwards\n");
}

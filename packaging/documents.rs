//! Makes the manual pages and the completions: `cargo run --locked --example documents -- DIRECTORY`.
//!
//! Pages are Markdown (`packaging/man`, Russian ones in `ru/`). `# name section` is the title, `##` a section, `###` a
//! subsection, `####` the term that the paragraphs after it explain. Out comes roff with the macros of man(7). In code
//! `-` is the character that one types; in prose it is a hyphen.

use std::fs;
use std::io;
use std::path::Path;

use clap_complete::{Shell, generate_to};
use pulldown_cmark::{Event, HeadingLevel, Parser, Tag, TagEnd};

/// Pages: file below `packaging/man` and `packaging/man/ru`, and the directory of their section.
pub(crate) const PAGES: [(&str, &str); 3] =
    [("podsecd.8", "man8"), ("podsecctl.8", "man8"), ("podsecd.toml.5", "man5")];

fn main() -> io::Result<()> {
    let directory = std::env::args_os().nth(1);
    let directory = directory.ok_or_else(|| io::Error::other("usage: documents DIRECTORY"))?;
    write(Path::new(&directory))
}

/// Writes all of them below `directory`: `man/man8/podsecd.8`, `man/ru/man8/podsecd.8`, `completions/bash/podsecctl.bash`.
pub(crate) fn write(directory: &Path) -> io::Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/man");
    for language in ["", "ru"] {
        for (page, section) in PAGES {
            let text = fs::read_to_string(source.join(language).join(format!("{page}.md")))?;
            let section = directory.join("man").join(language).join(section);
            fs::create_dir_all(&section)?;
            fs::write(section.join(page), roff(&text))?;
        }
    }
    for (shell, name) in [(Shell::Bash, "bash"), (Shell::Zsh, "zsh"), (Shell::Fish, "fish")] {
        let completions = directory.join("completions").join(name);
        fs::create_dir_all(&completions)?;
        generate_to(shell, &mut podsecd::cli::command(), "podsecd", &completions)?;
        generate_to(shell, &mut podsecd::ctl::command(), "podsecctl", &completions)?;
    }
    Ok(())
}

/// What roff(7) is to be written.
#[derive(Default)]
struct Page {
    /// Finished lines.
    out: String,
    /// Text of the heading, paragraph or block of code that is open.
    text: String,
    /// A term was written, and its explanation begins.
    after_term: bool,
    /// Paragraphs belong to a term.
    in_term: bool,
    /// A block of code is open.
    in_code: bool,
}

/// A page in man(7).
pub(crate) fn roff(markdown: &str) -> String {
    let mut page = Page::default();
    Parser::new(markdown).for_each(|event| page.take(event));
    page.out
}

impl Page {
    fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Start(Tag::Strong) => self.text.push_str(r"\fB"),
            Event::Start(Tag::Emphasis) => self.text.push_str(r"\fI"),
            Event::End(TagEnd::Strong | TagEnd::Emphasis) => self.text.push_str(r"\fR"),
            Event::Code(code) => {
                self.text.push_str(r"\fB");
                self.text.push_str(&literal(&code));
                self.text.push_str(r"\fR");
            }
            Event::Start(Tag::CodeBlock(_)) => self.in_code = true,
            Event::Text(text) if self.in_code => self.text.push_str(&literal(&text)),
            Event::Text(text) => self.text.push_str(&prose(&text)),
            Event::SoftBreak | Event::HardBreak => self.text.push('\n'),
            Event::End(TagEnd::Heading(level)) => self.head(level),
            Event::End(TagEnd::Paragraph) => self.paragraph(),
            Event::End(TagEnd::CodeBlock) => self.example(),
            _ => {}
        }
    }

    fn head(&mut self, level: HeadingLevel) {
        let text = std::mem::take(&mut self.text);
        (self.in_term, self.after_term) = (level == HeadingLevel::H4, level == HeadingLevel::H4);
        let heading = match level {
            HeadingLevel::H1 => {
                let (name, section) = text.rsplit_once(' ').unwrap_or((&text, "8"));
                let version = env!("CARGO_PKG_VERSION");
                format!(".TH {} {section} \"\" \"podsecd {version}\"\n", name.to_uppercase())
            }
            HeadingLevel::H2 => format!(".SH {}\n", argument(&text)),
            HeadingLevel::H3 => format!(".SS {}\n", argument(&text)),
            _ => format!(".TP\n{}\n", lines(&text)),
        };
        self.out.push_str(&heading);
    }

    fn paragraph(&mut self) {
        let text = std::mem::take(&mut self.text);
        let begin = match (std::mem::take(&mut self.after_term), self.in_term) {
            (true, _) => "",
            (false, true) => ".IP\n",
            (false, false) => ".PP\n",
        };
        self.out.push_str(&format!("{begin}{}\n", lines(&text)));
    }

    fn example(&mut self) {
        let text = std::mem::take(&mut self.text);
        self.in_code = false;
        self.out.push_str(&format!(".PP\n.RS 4\n.nf\n{}\n.fi\n.RE\n", lines(text.trim_end())));
    }
}

/// Escapes prose.
fn prose(text: &str) -> String {
    text.replace('\\', r"\e")
}

/// Escapes what one types: each character stays what it is, also where it is copied.
fn literal(text: &str) -> String {
    let escaped = |character| match character {
        '\\' => r"\e".to_owned(),
        '-' => r"\-".to_owned(),
        '\'' => r"\(aq".to_owned(),
        '`' => r"\(ga".to_owned(),
        '^' => r"\(ha".to_owned(),
        '~' => r"\(ti".to_owned(),
        other => other.to_string(),
    };
    text.chars().map(escaped).collect()
}

/// A line that begins with a control character is text all the same.
fn lines(text: &str) -> String {
    let line = |line: &str| if line.starts_with(['.', '\'']) { format!(r"\&{line}") } else { line.to_owned() };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// One argument of a macro.
fn argument(text: &str) -> String {
    format!("\"{}\"", text.replace('"', r"\(dq"))
}

//! `podsecctl audit scan`: all findings of audit logs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use crate::checks::kubeapi::assess::Assessor;
use crate::checks::kubeapi::observe::{Seen, look_at};
use crate::checks::own::ids::AUDIT_LINE_UNREADABLE;
use crate::finding::{Fields, Finding, Id, Kind};
use crate::report::terminal;
use crate::report::text::one_line;
use crate::score::{Levels, Weights, judge, write_finding};
use crate::watch::lines::Lines;
use anyhow::{Context, Result, bail};
use clap::Args;
use flate2::read::MultiGzDecoder;
use nix::fcntl::OFlag;

/// How often the progress is drawn.
const REDRAW: Duration = Duration::from_millis(200);
/// How much is written at once, in bytes.
const FLUSH: usize = 64 << 10;

#[derive(Args)]
pub(crate) struct Scan {
    /// Audit logs, the oldest first; - is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// A log to read, and how much of it was read, as far as its size is known.
struct Source {
    name: String,
    reader: Box<dyn Read>,
    /// The file behind the reader, whose position shows the progress also through a decompressor.
    file: Option<File>,
}

struct Printer<W> {
    out: W,
    /// What is to be written.
    lines: Vec<u8>,
    json: bool,
    assessor: Assessor,
    weights: Weights,
    levels: Levels,
    counts: BTreeMap<Id, u64>,
}

impl Scan {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let mut printer = Printer {
            out: io::stdout().lock(),
            lines: Vec::with_capacity(2 * FLUSH),
            json: self.json,
            assessor: Assessor::default(),
            weights: Weights::shipped(),
            levels: Levels::default(),
            counts: BTreeMap::new(),
        };
        for path in &self.files {
            let mut source = Source::open(path)?;
            printer.scan(&mut source).with_context(|| format!("cannot read {} to its end", source.name))?;
        }
        printer.finish(self.files.len())?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Source {
    fn open(path: &PathBuf) -> Result<Source> {
        if path.as_os_str() == "-" {
            let reader = Box::new(io::stdin().lock());
            return Ok(Source { name: "standard input".into(), reader, file: None });
        }
        let name = one_line(&path.display().to_string()).into_owned();
        // The logs lie in a directory of u7s-admin, and root scans them: nothing there may make it wait, or read for ever.
        let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
        let file = File::options().read(true).custom_flags(flags).open(path);
        let file = file.with_context(|| format!("cannot open {name}"))?;
        if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            bail!("{name} is no regular file; a pipe can be read as standard input: podsecctl audit scan -");
        }
        let other = file.try_clone()?;
        let gzip = path.extension().is_some_and(|extension| extension == "gz");
        let reader: Box<dyn Read> = if gzip { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
        Ok(Source { name, reader, file: Some(other) })
    }

    /// Draws how far it is read.
    fn draw(&mut self) {
        use std::io::Seek;
        let Some(file) = &mut self.file else { return };
        let (Ok(at), Ok(metadata)) = (file.stream_position(), file.metadata()) else { return };
        if let Some(percent) = (at * 100).checked_div(metadata.len()) {
            eprint!("\r{}: {percent} % of {} MiB\x1b[K", self.name, metadata.len() >> 20);
        }
    }
}

impl<W: Write> Printer<W> {
    fn scan(&mut self, source: &mut Source) -> Result<()> {
        let mut lines = Lines::at(0, Vec::new());
        let mut draw = io::stderr().is_terminal().then(|| Instant::now() + REDRAW);
        loop {
            let reader = &mut source.reader;
            let count = lines.fill(|block| read_block(reader, block))?;
            let mut result = Ok(());
            let mut take = |seen: Seen<'_>| {
                if result.is_ok() {
                    result = self.take(seen, &source.name);
                }
            };
            if count == 0 {
                lines.finish(|piece| look_at(piece, &mut take));
                if draw.is_some() {
                    eprint!("\r\x1b[K");
                }
                return result;
            }
            lines.drain(|piece| look_at(piece, &mut take));
            result?;
            if let Some(due) = &mut draw
                && Instant::now() >= *due
            {
                source.draw();
                *due = Instant::now() + REDRAW;
            }
        }
    }

    fn take(&mut self, seen: Seen<'_>, file: &str) -> Result<()> {
        let finding = match seen {
            Seen::Refused(event) => self.assessor.assess(*event),
            Seen::Unreadable { offset, length } => Some(Finding {
                time: SystemTime::now(),
                id: AUDIT_LINE_UNREADABLE,
                kind: Kind::Event,
                subject: file.into(),
                message: format!("{length} bytes of {file} at offset {offset} are no audit event").into(),
                fields: Fields::default(),
            }),
        };
        finding.map_or(Ok(()), |finding| self.print(finding))
    }

    fn print(&mut self, finding: Finding<'_>) -> Result<()> {
        *self.counts.entry(finding.id).or_default() += 1;
        let scored = judge(finding, &self.weights, &self.levels);
        if self.json {
            write_finding(&mut self.lines, &scored);
        } else {
            self.lines.extend_from_slice(terminal::line(&scored).as_bytes());
        }
        self.lines.push(b'\n');
        if self.lines.len() >= FLUSH { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        self.out.write_all(&self.lines)?;
        self.lines.clear();
        Ok(())
    }

    /// The sum, for people.
    fn finish(&mut self, files: usize) -> Result<()> {
        self.flush()?;
        if !self.json {
            let total: u64 = self.counts.values().sum();
            writeln!(self.out, "{total} findings in {files} file{}", if files == 1 { "" } else { "s" })?;
            for (id, count) in &self.counts {
                writeln!(self.out, "{count:>9} {:<28} {}", id.0, self.weights.get(*id).meaning)?;
            }
        }
        self.out.flush()?;
        Ok(())
    }
}

fn read_block(reader: &mut dyn Read, block: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(block) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
